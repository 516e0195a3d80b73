"""Blocks divided among ranks, adapters with them: threads as ranks give what one gives, and exchange what the paper counts."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
import pytest

from headrace.errors import HeadraceError
from headrace.kernels import partition
from headrace.kernels.partition import Exchange, Float32, Rank, Share, adapter_share, base_share
from headrace.models.adapter import LowRank, round_bf16
from headrace.models.config import AttentionSpec, MlpSpec

HIDDEN, INNER, ROWS, RANK = 32, 48, 7, 6
ATTENTION = AttentionSpec(4, 2, 8, 0.35, 1e4)
SIDES = {
    "q": (32, 32), "k": (16, 32), "v": (16, 32), "o": (32, 32),
    "gate": (INNER, HIDDEN), "up": (INNER, HIDDEN), "down": (HIDDEN, INNER),
}  # fmt: skip


class Meeting:
    """Ranks as threads that wait for each other; ``sent``: numbers that each rank must get from others."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.barrier = Barrier(count, timeout=20)
        self.parts: list[Float32] = [np.zeros(0, np.float32)] * count
        self.sent = [0.0] * count

    def rank(self, index: int) -> Exchange:
        return Place(self, index)


class Place:
    def __init__(self, meeting: Meeting, index: int) -> None:
        self.meeting, self.index = meeting, index

    def all(self, part: Float32) -> list[Float32]:
        self.meeting.parts[self.index] = part
        self.meeting.barrier.wait()
        parts = list(self.meeting.parts)
        self.meeting.barrier.wait()
        return parts

    def gather(self, part: Float32) -> Float32:
        parts = self.all(part)
        whole = np.concatenate(parts, axis=-1)
        self.meeting.sent[self.index] += whole.size - part.size
        return whole

    def total(self, part: Float32) -> Float32:
        self.meeting.sent[self.index] += 2 * part.size * (self.meeting.count - 1) / self.meeting.count
        first, *others = self.all(part)
        return np.asarray(sum(others, first))


def numbers(seed: int) -> tuple[dict[str, Float32], dict[str, LowRank], Float32]:
    rng = np.random.default_rng(seed)
    base: dict[str, Float32] = {name: rng.standard_normal(sides, np.float32) * np.float32(0.2) for name, sides in SIDES.items()}
    parts = {
        name: LowRank(
            round_bf16(rng.standard_normal((RANK, inputs), np.float32) / 5),
            round_bf16(rng.standard_normal((outputs, RANK), np.float32) / 5),
            0.7,
        )
        for name, (outputs, inputs) in SIDES.items()
    }
    return base, parts, rng.standard_normal((ROWS, HIDDEN), np.float32)


Block = Callable[[Float32, dict[str, Float32], dict[str, Share], Exchange], Float32]


def divided(block: Block, count: int, *, adapted: bool) -> tuple[list[Float32], Meeting]:
    """What each of so many ranks gives."""
    base, parts, x = numbers(3)
    meeting = Meeting(count)

    def run(index: int) -> Float32:
        rank = Rank(index, count)
        own = {name: base_share(name, matrix, rank) for name, matrix in base.items()}
        shares = {name: adapter_share(name, part, rank) for name, part in parts.items()} if adapted else {}
        return block(x, own, shares, meeting.rank(index))

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count))), meeting


def attend(x: Float32, base: dict[str, Float32], shares: dict[str, Share], exchange: Exchange) -> Float32:
    return partition.attention(x, ATTENTION, base, shares, exchange)


@pytest.mark.parametrize("block", [attend, partition.mlp])
def test_two_ranks_give_what_merged_weights_give(block: Block) -> None:
    base, parts, x = numbers(3)
    merged = {name: base[name] + parts[name].delta() for name in base}
    expected = block(x, merged, {}, Meeting(1).rank(0))
    (first, second), _ = divided(block, 2, adapted=True)
    assert first.tobytes() == second.tobytes()
    np.testing.assert_allclose(first, expected, rtol=2e-4, atol=2e-5)
    plain, _ = divided(block, 2, adapted=False)
    assert not np.allclose(plain[0], expected, atol=0.05)


def test_adapters_add_as_little_as_the_paper_says() -> None:
    """5 (N - 1) · rows · rank / N numbers for q, k, v and o, on top of the base's sum."""
    for count in (2,):
        _, with_adapters = divided(attend, count, adapted=True)
        _, plain = divided(attend, count, adapted=False)
        more = [ours - base for ours, base in zip(with_adapters.sent, plain.sent, strict=True)]
        assert more == [5 * (count - 1) * ROWS * RANK / count] * count
        assert plain.sent == [2 * (count - 1) * ROWS * HIDDEN / count] * count


def test_no_number_is_on_two_ranks() -> None:
    _, parts, _ = numbers(3)
    for name, part in parts.items():
        shares = [adapter_share(name, part, Rank(index, 3)) for index in range(3)]
        assert sum(share.a.size for share in shares) == part.a.size
        assert sum(share.b.size for share in shares) == part.b.size


def test_what_cannot_be_divided_is_refused() -> None:
    Rank(0, 2).check(ATTENTION)
    with pytest.raises(HeadraceError, match="2 kv_heads can't be divided among 3"):
        Rank(0, 3).check(ATTENTION)
    with pytest.raises(HeadraceError, match="inner"):
        Rank(0, 5).check(MlpSpec(INNER, "silu"))
    with pytest.raises(HeadraceError, match="no module"):
        base_share("embedding", np.zeros((2, 2), np.float32), Rank(0, 2))
