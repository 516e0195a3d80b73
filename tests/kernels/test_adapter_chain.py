"""Adapters in the native chain: against merged weights and torch, and bit for bit under every schedule."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest
from adapter_tools import Shape, Uses, pages_of, place_all, random_adapter, with_adapters
from chain_tools import MemoryWeights, Piece, Tiny, make_batch, new_pool, tiny_config

from headrace.kernels import _native
from headrace.kernels.formats import runnable_instruction_sets
from headrace.kernels.interface import AdapterDirectory, Bytes, ChainRunner, Float32, Int32, PlacedAdapter, StepAdapters, StepBatch
from headrace.kernels.native_chain import NativeChain
from headrace.models.adapter import MODULES, Adapter
from headrace.models.config import ModelConfig
from headrace.models.merged_weights import MergedWeights

TINIES = {
    "grouped": Tiny(),
    "biased": Tiny(bias=True, tied=False),
    "gemma_like": Tiny(
        heads=4,
        kv_heads=1,
        head_dim=64,
        windows=(9, None),
        qk_norm=True,
        post_norm=True,
        activation="gelu_tanh",
        embedding_scale=9.8,
    ),
}
SHAPES = (
    Shape(dict.fromkeys(MODULES, 16)),
    Shape({"q": 1, "v": 1}),
    Shape({"k": 5, "o": 40, "down": 3}, every=2),
    Shape({"gate": 8, "q": 64}),
    Shape({"up": 4, "down": 64}),
    Shape(dict.fromkeys(("q", "k", "v", "o"), 4)),
)
PROMPT = [int(token) for token in np.random.default_rng(11).integers(0, 203, 77)]
PAGES = [6, 2, 9, 4, 0]
KV_PAGES = 10


@pytest.fixture(autouse=True)
def best_isa() -> Iterator[None]:
    yield
    _native.set_isa("auto")


@pytest.fixture(params=TINIES)
def config(request: pytest.FixtureRequest) -> ModelConfig:
    return tiny_config(TINIES[request.param])


def adapters_of(config: ModelConfig) -> list[Adapter]:
    return [random_adapter(config, shape, 100 + seed) for seed, shape in enumerate(SHAPES)]


def loaded(chain: ChainRunner, adapters: Sequence[Adapter], kv_pages: int = KV_PAGES) -> tuple[Bytes, list[PlacedAdapter]]:
    """A pool of NaN patterns with the adapters behind its first pages."""
    pool = new_pool(chain, kv_pages + pages_of(adapters, chain.config, chain.page_layout.page_bytes))
    return pool, place_all(adapters, chain.config, pool, kv_pages)


def run(chain: ChainRunner, batch: StepBatch, pool: Bytes) -> Float32:
    chain.forward(batch, pool)
    return np.array(chain.logits(0, len(batch.output_rows)))


def alone(chain: ChainRunner, uses: Uses, placed: list[PlacedAdapter], pool: Bytes, size: int = 77) -> Float32:
    parts = []
    for start in range(0, len(PROMPT), size):
        batch = make_batch([Piece(PROMPT[start : start + size], start, PAGES)])
        parts.append(run(chain, with_adapters(batch, [uses], placed), pool))
    return np.concatenate(parts)


@pytest.mark.parametrize(
    "uses", [[(0, 1.0)], [(1, 1.0)], [(2, -0.5)], [(3, 1.0)], [(4, 0.25)], [(5, 2.0), (1, 1.0), (0, -0.5)]], ids=str
)
def test_equals_merged_weights(config: ModelConfig, uses: Uses) -> None:
    weights, adapters = MemoryWeights(config, 7), adapters_of(config)
    chain = NativeChain(config, weights, 2)
    pool, placed = loaded(chain, adapters)
    merged = NativeChain(config, MergedWeights(weights, [(adapters[index], scale) for index, scale in uses]), 2)
    plain = make_batch([Piece(PROMPT, 0, PAGES)])
    got, expected = alone(chain, uses, placed, pool), run(merged, plain, new_pool(merged, KV_PAGES))
    base = run(chain, plain, new_pool(chain, KV_PAGES))
    # Keys and values are rounded to bf16: a value beside a rounding border may fall on either side.
    assert np.abs(got - expected).max() < 0.02 * np.abs(expected).max()
    assert np.abs(got - expected).mean() < 0.02 * np.abs(base - expected).mean()


def test_no_schedule_changes_a_bit(config: ModelConfig) -> None:
    adapters = adapters_of(config)
    chain = NativeChain(config, MemoryWeights(config, 7), 2)
    pool, placed = loaded(chain, adapters)
    uses = [(5, 2.0), (1, 1.0), (0, -0.5)]
    whole = alone(chain, uses, placed, pool)
    assert np.isfinite(whole).all()
    results = set()
    for isa in runnable_instruction_sets():
        _native.set_isa(isa)
        for threads, size in ((1, 77), (2, 7), (3, 64), (2, 1)):
            chain.set_threads(threads)
            pool[:KV_PAGES] = 0xFF
            results.add(alone(chain, uses, placed, pool, size).tobytes())
    assert results == {whole.tobytes()}


def test_neighbours_with_other_adapters_change_nothing(config: ModelConfig) -> None:
    adapters = adapters_of(config)
    chain = NativeChain(config, MemoryWeights(config, 7), 2)
    pool, placed = loaded(chain, adapters, 80)
    generator = np.random.default_rng(3)
    choices: list[Uses] = [[], [(3, 1.0)], [(1, 0.5), (3, 1.0)], [(0, 1.0)], [(0, -0.5), (5, 2.0)], [(4, 1.0), (2, 1.0), (1, 1.0)]]
    for uses in choices:
        expected = alone(chain, uses, placed, pool)
        pieces, others = [], []
        for neighbour in range(20):
            tokens = [int(token) for token in generator.integers(0, chain.config.vocab, int(generator.integers(1, 40)))]
            pieces.append(Piece(tokens, 0, [10 + 3 * neighbour + i for i in range(3)]))
            others.append(choices[int(generator.integers(len(choices)))])
        pieces.insert(9, Piece(PROMPT[60:], 60, PAGES))
        others.insert(9, uses)
        first = sum(len(piece.tokens) for piece in pieces[:9])
        batch = with_adapters(make_batch(pieces, [first + 16, 3, *range(first, first + 17)]), others, placed)
        together = run(chain, batch, pool)
        assert together[2:].tobytes() == expected[60:].tobytes()
        assert together[0].tobytes() == expected[76].tobytes()


def test_steps_without_adapters_are_as_before(config: ModelConfig) -> None:
    adapters = adapters_of(config)
    chain = NativeChain(config, MemoryWeights(config, 7), 2)
    pool, placed = loaded(chain, adapters)
    plain = run(chain, make_batch([Piece(PROMPT, 0, PAGES)]), pool)
    assert alone(chain, [], placed, pool).tobytes() == plain.tobytes()
    changed = [alone(chain, [(index, 1.0)], placed, pool) for index in range(len(adapters))]
    assert len({values.tobytes() for values in (plain, *changed)}) == 1 + len(adapters)
    assert alone(chain, [], placed, pool).tobytes() == plain.tobytes()


def test_one_list_is_a_sum_in_its_order(config: ModelConfig) -> None:
    adapters = adapters_of(config)
    chain = NativeChain(config, MemoryWeights(config, 7), 2)
    pool, placed = loaded(chain, adapters)
    both, turned = (alone(chain, uses, placed, pool) for uses in ([(0, 1.0), (5, 1.0)], [(5, 1.0), (0, 1.0)]))
    assert np.abs(both - turned).max() < 0.01 * np.abs(both).max()
    # The order of the step's own list of adapters is nothing that a result may see.
    again = alone(chain, [(len(placed) - 1, 1.0), (0, 1.0)], [placed[5], *placed[1:5], placed[0]], pool)
    assert again.tobytes() == both.tobytes()
    assert turned.shape == both.shape


def test_adapters_moved_to_other_pages_give_the_same_bits(config: ModelConfig) -> None:
    adapters = adapters_of(config)
    chain = NativeChain(config, MemoryWeights(config, 7), 2)
    pool, placed = loaded(chain, adapters)
    expected = alone(chain, [(0, 1.0)], placed, pool)
    moved = PlacedAdapter(placed[0].pages[::-1].copy(), placed[0].directory)
    pool[moved.pages] = pool[placed[0].pages]
    assert alone(chain, [(0, 1.0)], [moved], pool).tobytes() == expected.tobytes()


def one_slice(uses: Uses, placed: Sequence[PlacedAdapter]) -> StepBatch:
    return with_adapters(make_batch([Piece(PROMPT[:9], 0, PAGES)]), [uses], placed)


def test_refuses_what_would_read_elsewhere() -> None:
    config = tiny_config(Tiny())
    chain = NativeChain(config, MemoryWeights(config, 7), 1)
    pool, placed = loaded(chain, adapters_of(config))
    good = one_slice([(0, 1.0)], placed)
    chain.forward(good, pool)
    own, first = good.adapters, placed[0]
    assert own is not None
    places, scales = first.directory.places, first.directory.scales

    def with_place(row: int, field: int, value: int) -> PlacedAdapter:
        changed = places.copy()
        changed[row, field] = value
        return PlacedAdapter(first.pages, AdapterDirectory(changed, scales))

    def with_pages(pages: list[int]) -> PlacedAdapter:
        return PlacedAdapter(np.array(pages, np.int32), first.directory)

    def int32(*values: int) -> Int32:
        return np.array(values, np.int32)

    bad: dict[str, StepAdapters] = {
        "ids": replace(own, ids=int32(99)),
        "ids.0. is -1": replace(own, ids=int32(-1)),
        "starts must have": replace(own, starts=int32(0, 1, 1)),
        "starts must go": replace(own, starts=int32(0, 2)),
        "scales.0. is not finite": replace(own, scales=np.array([np.nan], np.float32)),
        "each id needs a scale": replace(own, scales=np.zeros(2, np.float32)),
        "the pool has": replace(own, adapters=(with_pages([len(pool), *first.pages[1:]]),)),
        "the step writes that page": replace(own, adapters=(with_pages([PAGES[0], *first.pages[1:]]),)),
        "places.3. has a rank": replace(own, adapters=(with_place(3, 0, 1 << 20),)),
        "places.4. has a rank": replace(own, adapters=(with_place(4, 0, -1),)),
        "places.5. has a rank": replace(own, adapters=(with_place(5, 1, len(first.pages)),)),
        "places.6. has a rank": replace(own, adapters=(with_place(6, 2, 7),)),
        "places.0. has a rank": replace(own, adapters=(with_place(0, 4, pool.shape[1] + 32),)),
        "places.1. has a rank": replace(own, adapters=(PlacedAdapter(first.pages[:1], AdapterDirectory(places, scales)),)),
        "must have 14 rows": replace(own, adapters=(PlacedAdapter(first.pages, AdapterDirectory(places[:7], scales[:7])),)),
        "out of bounds": replace(
            own, adapters=(PlacedAdapter(first.pages, AdapterDirectory(places, scales * np.float32(np.inf))),)
        ),
    }
    before = pool.copy()
    for message, adapters in bad.items():
        with pytest.raises(ValueError, match=message):
            chain.forward(replace(good, adapters=adapters), pool)
    with pytest.raises(ValueError, match="starts must be 1-dimensional int32"):
        chain.forward(replace(good, adapters=replace(own, starts=own.starts.astype(np.int64))), pool)
    assert pool.tobytes() == before.tobytes()


@pytest.mark.torch
@pytest.mark.parametrize("name", TINIES)
def test_agrees_with_torch(name: str) -> None:
    from headrace.kernels.torch_chain import TorchChain

    config = tiny_config(TINIES[name])
    weights, adapters = MemoryWeights(config, 7), adapters_of(tiny_config(TINIES[name]))
    native, torch_chain = NativeChain(config, weights, 2), TorchChain(config, weights)
    pool, placed = loaded(native, adapters)
    pieces = [Piece(PROMPT, 0, PAGES), Piece(PROMPT[5:25], 0, [1, 3]), Piece(PROMPT[:9], 0, [5])]
    uses: list[Uses] = [[(5, 2.0), (1, 1.0), (0, -0.5)], [], [(2, 1.0)]]
    batch = with_adapters(make_batch(pieces), uses, placed)
    got, expected = run(native, batch, pool.copy()), None
    pool[:KV_PAGES] = 0
    expected = run(torch_chain, batch, pool)
    assert np.abs(got - expected).max() < 0.02 * np.abs(expected).max()
    assert np.abs(got - expected).mean() < 0.006 * np.abs(expected).std()
