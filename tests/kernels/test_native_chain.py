"""The native chain against the torch chain on random models, and bit for bit against itself under every schedule."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import numpy as np
import pytest
from chain_tools import MemoryWeights, Piece, Tiny, make_batch, new_pool, tiny_config

from headrace.errors import HeadraceError
from headrace.kernels import _native
from headrace.kernels.formats import runnable_instruction_sets
from headrace.kernels.interface import Bytes, Float32, KvFormat, StepBatch, kv_head_bytes
from headrace.kernels.native_chain import NativeChain
from headrace.models.config import RopeScaling

TINIES = {
    "grouped": Tiny(),
    "single_kv_head": Tiny(heads=3, kv_heads=1, head_dim=64),
    "every_head_its_own": Tiny(heads=2, kv_heads=2, head_dim=128),
    "qwen2_like": Tiny(bias=True, tied=False, scaling=RopeScaling("linear", 4.0)),
    "qwen3_like": Tiny(qk_norm=True, head_dim=64, hidden=128),
    "llama3_like": Tiny(scaling=RopeScaling("llama3", 8.0, 1.0, 4.0, 64), vocab=256),
    "gemma_like": Tiny(
        heads=4,
        kv_heads=1,
        head_dim=256,
        windows=(9, None, 24),
        thetas=(10_000.0, 1_000_000.0, 10_000.0),
        qk_norm=True,
        post_norm=True,
        activation="gelu_tanh",
        embedding_scale=9.8,
    ),
}
PROMPT = [int(token) for token in np.random.default_rng(11).integers(0, 203, 77)]
PAGES = [6, 2, 9, 4, 0]


@pytest.fixture(autouse=True)
def best_isa() -> Iterator[None]:
    yield
    _native.set_isa("auto")


KINDS: list[tuple[str, KvFormat]] = [(name, "bf16") for name in TINIES]
KINDS += [("grouped", "kv8"), ("grouped", "kv4"), ("gemma_like", "kv8"), ("gemma_like", "kv4")]


@pytest.fixture(params=KINDS, ids="-".join)
def chain(request: pytest.FixtureRequest) -> NativeChain:
    name, kv = request.param
    config = tiny_config(TINIES[name])
    return NativeChain(config, MemoryWeights(config, 7), 2, kv=kv)


def all_logits(chain: NativeChain, batch: StepBatch, pool: Bytes) -> Float32:
    chain.forward(batch, pool)
    return chain.logits(0, len(batch.output_rows)).copy()


def chunked(chain: NativeChain, size: int, pool: Bytes) -> Float32:
    parts = []
    for start in range(0, len(PROMPT), size):
        parts.append(all_logits(chain, make_batch([Piece(PROMPT[start : start + size], start, PAGES)]), pool))
    return np.concatenate(parts)


@pytest.mark.torch
@pytest.mark.parametrize("name", TINIES)
def test_agrees_with_torch(name: str) -> None:
    from headrace.kernels.torch_chain import TorchChain

    config = tiny_config(TINIES[name])
    weights = MemoryWeights(config, 7)
    native, torch_chain = NativeChain(config, weights, 2), TorchChain(config, weights)
    assert native.page_layout == torch_chain.page_layout
    batch = make_batch([Piece(PROMPT, 0, PAGES), Piece(PROMPT[5:25], 0, [1, 3])])
    got, expected = all_logits(native, batch, new_pool(native, 10)), None
    torch_chain.forward(batch, np.zeros((10, native.page_layout.page_bytes), np.uint8))
    expected = torch_chain.logits(0, len(batch.output_rows))
    # K and V are rounded to bf16 by both; a value that falls on the other side of a rounding border differs by 1/256. The
    # native chain rounds queries and attention's weights as well.
    assert np.abs(got - expected).max() < 0.01 * np.abs(expected).max()
    assert np.abs(got - expected).mean() < 0.006 * np.abs(expected).std()
    np.testing.assert_allclose(native.hidden() @ head_values(weights, config.tied_head).T, got, rtol=1e-4, atol=1e-4)


@pytest.mark.torch
@pytest.mark.parametrize("kv", ["kv8", "kv4"])
@pytest.mark.parametrize("name", ["grouped", "gemma_like", "single_kv_head"])
def test_coded_pages_agree_with_torch(name: str, kv: KvFormat) -> None:
    from headrace.kernels.torch_chain import TorchChain

    config = tiny_config(TINIES[name])
    weights = MemoryWeights(config, 7)
    native, torch_chain = NativeChain(config, weights, 2, kv=kv), TorchChain(config, weights, kv=kv)
    assert native.page_layout == torch_chain.page_layout
    batch = make_batch([Piece(PROMPT[:64], 0, PAGES[:4])])
    pools = np.zeros((2, 10, native.page_layout.page_bytes), np.uint8)
    got = all_logits(native, batch, pools[0])
    torch_chain.forward(batch, pools[1])
    spec = config.attention_blocks[0]
    first_layer = pools[:, :, : spec.kv_heads * kv_head_bytes(kv, spec.head_dim)]
    assert (first_layer[0] != first_layer[1]).mean() < 0.01  # values on a rounding border may fall on either side
    # Read by torch what native kernels wrote: one more token on the same pages.
    more = make_batch([Piece(PROMPT[64:65], 64, PAGES)])
    expected = torch_chain.logits(0, 64)
    assert np.abs(got - expected).mean() < {"kv8": 0.005, "kv4": 0.05}[kv] * expected.std()
    torch_chain.forward(more, pools[0].copy())
    step = all_logits(native, more, pools[0])
    assert np.abs(step - torch_chain.logits(0, 1)).mean() < {"kv8": 0.005, "kv4": 0.02}[kv] * expected.std()


def head_values(weights: MemoryWeights, tied: bool) -> Float32:
    raw = weights.tensor("embedding" if tied else "head")
    return raw.data.view(np.float32).reshape(raw.shape)


def test_chunks_change_nothing(chain: NativeChain) -> None:
    whole = chunked(chain, len(PROMPT), new_pool(chain, 10))
    assert np.isfinite(whole).all()
    for size in (1, 7, 16, 64):
        pool = new_pool(chain, 10)
        assert chunked(chain, size, pool).tobytes() == whole.tobytes()


def test_threads_change_nothing(chain: NativeChain) -> None:
    results = []
    for threads in (1, 2, 3):
        chain.set_threads(threads)
        assert chain.threads == threads
        results.append(chunked(chain, 40, new_pool(chain, 10)).tobytes())
    assert len(set(results)) == 1


def test_instruction_sets_agree(chain: NativeChain) -> None:
    results = []
    for name in runnable_instruction_sets():
        _native.set_isa(name)
        pool = new_pool(chain, 10)
        results.append(chunked(chain, 40, pool).tobytes() + pool.tobytes())
    assert len(set(results)) == 1


def test_neighbours_change_nothing(chain: NativeChain) -> None:
    alone = chunked(chain, len(PROMPT), new_pool(chain, 10))
    generator = np.random.default_rng(3)
    pool = new_pool(chain, 80)
    chain.forward(make_batch([Piece(PROMPT[:60], 0, PAGES)]), pool)
    pieces = []
    for neighbour in range(20):
        tokens = generator.integers(0, chain.config.vocab, int(generator.integers(1, 40)))
        pieces.append(Piece([int(token) for token in tokens], 0, [10 + 3 * neighbour + i for i in range(3)]))
    pieces.insert(9, Piece(PROMPT[60:], 60, PAGES))
    first = sum(len(piece.tokens) for piece in pieces[:9])
    together = all_logits(chain, make_batch(pieces, range(first, first + 17)), pool)
    assert together.tobytes() == alone[60:].tobytes()


def test_kept_rows_are_the_asked_ones_in_order(chain: NativeChain) -> None:
    pool = new_pool(chain, 10)
    whole = chunked(chain, len(PROMPT), pool)
    rows = [40, 3, 76, 3]
    some = all_logits(chain, make_batch([Piece(PROMPT, 0, PAGES)], rows), pool)
    assert some.tobytes() == whole[rows].tobytes()
    assert chain.logits(0, 4).flags.c_contiguous
    written = pool.copy()
    chain.forward(make_batch([Piece(PROMPT, 0, PAGES)], []), pool)
    assert chain.hidden().shape == (0, chain.config.hidden)
    assert pool.tobytes() == written.tobytes()
    all_logits(chain, make_batch([Piece(PROMPT, 0, PAGES)], rows), pool)
    assert chain.logits(1, 2).tobytes() == whole[rows[1:3]].tobytes()
    assert chain.hidden().shape == (4, chain.config.hidden)
    np.testing.assert_array_equal(chain.greedy(0, 4), whole[rows].argmax(1))
    np.testing.assert_array_equal(chain.greedy(2, 1), whole[rows[2:3]].argmax(1))


def test_old_views_stay_readable(chain: NativeChain) -> None:
    pool = new_pool(chain, 10)
    chain.forward(make_batch([Piece(PROMPT[:1], 0, PAGES)]), pool)
    hidden, logits = chain.hidden(), chain.logits(0, 1)
    chain.forward(make_batch([Piece(PROMPT, 0, PAGES)]), pool)
    chain.logits(0, len(PROMPT))
    assert np.isfinite(hidden).all()
    assert np.isfinite(logits).all()


def test_greedy_takes_the_lowest_of_equal_ids() -> None:
    config = tiny_config(Tiny(vocab=1000))
    weights = MemoryWeights(config, 7)
    weights._tensors["embedding"][:] = weights._tensors["embedding"][0]
    weights._tensors["embedding"][:5] *= -1
    chain = NativeChain(config, weights, 2)
    chain.forward(make_batch([Piece([7, 8, 9], 0, [0])]), new_pool(chain, 1))
    logits = chain.logits(0, 3)
    np.testing.assert_array_equal(chain.greedy(0, 3), logits.argmax(1))
    assert set(logits.argmax(1)) <= {0, 5}


def test_spans_of_blocks_make_up_the_whole(chain: NativeChain) -> None:
    batch, pool = make_batch([Piece(PROMPT, 0, PAGES)]), new_pool(chain, 10)
    whole = all_logits(chain, batch, pool)
    for first in range(len(chain.config.blocks)):
        chain.forward_span(batch, pool, first, first + 1)
    assert chain.logits(0, len(PROMPT)).tobytes() == whole.tobytes()
    with pytest.raises(ValueError, match="the last"):
        chain.forward_span(batch, pool, 1, 2)
    with pytest.raises(ValueError, match="span"):
        chain.forward_span(batch, pool, 0, 99)


def test_weights_that_do_not_fit_are_refused() -> None:
    config = tiny_config(Tiny())
    other = MemoryWeights(tiny_config(Tiny(head_dim=64)), 7)
    with pytest.raises(HeadraceError, match="chain") as caught:
        NativeChain(config, other, 1)
    assert caught.value.code == "model_file"
    with pytest.raises(HeadraceError, match="threads"):
        NativeChain(config, other, 0)


@pytest.mark.parametrize(
    ("field", "index", "value"),
    [
        ("token_ids", 3, 203),
        ("token_ids", 0, -1),
        ("positions", 76, 2048),
        ("positions", 5, 4),
        ("slice_starts", 0, 1),
        ("slice_starts", 1, 78),
        ("page_starts", 1, 4),
        ("page_ids", 2, 10),
        ("page_ids", 2, -1),
        ("page_ids", 1, 6),
        ("output_rows", 0, 77),
    ],
)
def test_indices_out_of_bounds_are_named_and_nothing_runs(field: str, index: int, value: int) -> None:
    config = tiny_config(Tiny())
    chain = NativeChain(config, MemoryWeights(config, 7), 1)
    batch, pool = make_batch([Piece(PROMPT, 0, PAGES)]), new_pool(chain, 10)
    getattr(batch, field)[index] = value
    with pytest.raises(ValueError, match=rf"{field}\[{index}\] is {value}"):
        chain.forward(batch, pool)
    assert (pool == 0xFF).all()


def test_arrays_of_the_wrong_form_are_named() -> None:
    config = tiny_config(Tiny())
    chain = NativeChain(config, MemoryWeights(config, 7), 1)
    batch, pool = make_batch([Piece(PROMPT, 0, PAGES)]), new_pool(chain, 10)
    with pytest.raises(ValueError, match="pool has pages of"):
        chain.forward(batch, np.zeros((10, 64), np.uint8))
    with pytest.raises(ValueError, match="pool must be 2-dimensional uint8"):
        chain.forward(batch, pool[:, ::2])
    frozen = pool.copy()
    frozen.flags.writeable = False
    with pytest.raises(ValueError, match="pool must be writable"):
        chain.forward(batch, frozen)
    with pytest.raises(ValueError, match="kept rows"):
        chain.logits(0, 1)
    batch.positions = batch.positions.astype(np.int64)
    with pytest.raises(ValueError, match="positions must be 1-dimensional int32"):
        chain.forward(batch, pool)
    batch.positions = batch.positions[:5].astype(np.int32)
    with pytest.raises(ValueError, match="positions and token_ids"):
        chain.forward(batch, pool)


def test_a_change_of_threads_waits_for_the_call_under_way() -> None:
    """Scratch is sized for the threads that a call begins with; more threads inside it would write beyond its end."""
    layers = 100  # many regions between which a change could slip in
    config = tiny_config(Tiny(windows=(None,) * layers, thetas=(10_000.0,) * layers))
    chain = NativeChain(config, MemoryWeights(config, 7), 1)
    batch = make_batch([Piece(PROMPT, 0, PAGES)])
    expected = all_logits(chain, batch, new_pool(chain, 10)).tobytes()
    started = Event()

    def forward() -> tuple[float, float, bytes]:
        pool = new_pool(chain, 10)
        started.set()
        began = time.perf_counter()
        chain.forward(batch, pool)
        ended = time.perf_counter()
        return began, ended, chain.logits(0, len(PROMPT)).tobytes()

    with ThreadPoolExecutor(1) as runner:
        for threads in (5, 2, 4, 1, 3, 2):
            started.clear()
            running = runner.submit(forward)
            assert started.wait(20)
            time.sleep(0.002)
            chain.set_threads(threads)
            changed = time.perf_counter()
            began, ended, logits = running.result()
            assert not began + 0.002 < changed < began + 0.6 * (ended - began), "the threads changed in the middle of a call"
            assert logits == expected
            assert chain.threads == threads
