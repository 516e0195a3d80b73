"""Adapters in pages: the arithmetic of their places on random shapes, and their numbers there and back."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from adapter_tools import Shape, random_adapter
from chain_tools import Tiny, tiny_config
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import HeadraceError
from headrace.kernels.adapter_layout import lay_out
from headrace.kernels.adapter_pages import place_adapter, read_back
from headrace.models.adapter import MODULES, module_sides
from headrace.models.config import AttentionSpec, MlpSpec, ModelConfig

CONFIG = tiny_config(Tiny())
SMOLLM2 = ModelConfig("llama", 576, 49152, 8192, 1e-5, (AttentionSpec(9, 3, 64, 0.125, 1e5), MlpSpec(1536, "silu")) * 30)

Ranks = list[dict[str, int]]


def ranks(layers: int, most: int) -> st.SearchStrategy[Ranks]:
    layer = st.dictionaries(st.sampled_from(MODULES), st.integers(1, most))
    return st.lists(layer, min_size=layers, max_size=layers)


@settings(max_examples=60, deadline=None)
@given(ranks(2, 70), st.integers(80, 400).map(lambda units: 32 * units))
def test_pieces_lie_apart_inside_pages(wanted: Ranks, page_bytes: int) -> None:
    layout = lay_out(CONFIG, wanted, page_bytes)
    taken: list[tuple[int, int]] = []
    used = longest = 0
    for (layer, module), (a, b) in layout.runs.items():
        inputs, outputs = module_sides(CONFIG)[layer][module]
        rank = wanted[layer][module]
        assert (a.count, a.piece_bytes, b.count, b.piece_bytes) == (rank, 2 * inputs, outputs // 16, 32 * rank)
        for run in (a, b):
            pieces = 0
            for page, offset, first, count in run.spans(page_bytes):
                assert first == pieces
                assert offset % 32 == 0
                assert 0 <= page < layout.pages
                assert offset + count * run.piece_bytes <= page_bytes
                taken.append((page * page_bytes + offset, page * page_bytes + offset + count * run.piece_bytes))
                pieces += count
            assert pieces == run.count
            used += run.count * run.piece_bytes
            longest = max(longest, run.piece_bytes)
    assert taken == sorted(taken)  # ascending: layer after layer, module after module
    assert all(end <= start for (_, end), (start, _) in pairwise(taken))
    assert layout.pages * page_bytes - used < page_bytes + layout.pages * longest
    assert (layout.pages == 0) == (used == 0)


@pytest.mark.parametrize(
    ("rank", "modules", "pages"),
    [(16, "qkvo", 10), (8, "qkvo", 5), (16, "all", 27), (1, "all", 2), (4, "all", 7), (64, "all", 107)],
)
def test_pages_of_the_default_model(rank: int, modules: str, pages: int) -> None:
    """Ranks are not rounded up to slots: an adapter of rank 4 takes a quarter of one of rank 16."""
    names = MODULES if modules == "all" else tuple(modules)
    layout = lay_out(SMOLLM2, [dict.fromkeys(names, rank)] * 30, 360 << 10)
    numbers = sum(rank * sum(module_sides(SMOLLM2)[0][name]) for name in names) * 30
    assert layout.pages == pages
    assert layout.pages * (360 << 10) - 2 * numbers <= (360 << 10) + layout.pages * 3072


def test_rank_wider_than_a_page_is_refused() -> None:
    with pytest.raises(HeadraceError, match="rank 300 of layer 1 q needs 9600 bytes in a row, a page has 8192"):
        lay_out(CONFIG, [{}, {"q": 300}], 8192)


@settings(max_examples=20, deadline=None)
@given(
    st.dictionaries(st.sampled_from(MODULES), st.integers(1, 70), min_size=1),
    st.integers(1, 2),
    st.integers(0, 99),
    st.sampled_from([1, 8]),
)
def test_numbers_come_back_from_scattered_pages(wanted: dict[str, int], every: int, seed: int, strips: int) -> None:
    adapter = random_adapter(CONFIG, Shape(wanted, every), seed)
    layout = lay_out(CONFIG, adapter.ranks, 4096)
    in_strips = np.full((strips, layout.pages + 5, 4096 // strips), 0xFF, np.uint8).transpose(1, 0, 2)
    pool = in_strips if strips > 1 else in_strips[:, 0]
    pages = np.random.default_rng(seed).permutation(len(pool))[: layout.pages].astype(np.int32)
    placed = place_adapter(adapter, CONFIG, pool, pages)
    others = np.setdiff1d(np.arange(len(pool)), pages)
    assert (pool[others] == 0xFF).all()
    again = read_back(placed, CONFIG, pool)
    assert again.ranks == adapter.ranks
    for before, after in zip(adapter.layers, again.layers, strict=True):
        for name, part in before.items():
            assert part.a.tobytes() == after[name].a.tobytes()
            assert part.b.tobytes() == after[name].b.tobytes()
            assert part.scale == after[name].scale
    twice = pool.copy()
    twice[pages] = 0x55
    place_adapter(adapter, CONFIG, twice, pages)
    assert twice.tobytes() == pool.tobytes()  # every byte of a page is defined


def test_wrong_number_of_pages() -> None:
    adapter = random_adapter(CONFIG, Shape({"q": 4}), 1)
    with pytest.raises(ValueError, match="takes 1 pages, not 2"):
        place_adapter(adapter, CONFIG, np.zeros((4, 8192), np.uint8), np.array([1, 2], np.int32))
