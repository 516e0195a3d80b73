"""The torch chain against transformers, family by family, through our own loaders; and against itself, batched otherwise."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch_families import CASES, VOCAB, build

from headrace.errors import HeadraceError
from headrace.evaluation.quality import window_logits
from headrace.kernels.interface import Int32, StepBatch
from headrace.kernels.torch_chain import TorchChain
from headrace.models.catalog import find_model, open_model
from headrace.models.folder_model import load_folder

pytestmark = pytest.mark.torch
TOLERANCE = 1e-4  # of the largest logit


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """torch's threads wait for each other after every operator: on a busy machine two are five times slower than one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def int32(values: object) -> Int32:
    return np.asarray(values, dtype=np.int32)


def expected_logits(model: Any, tokens: Int32) -> np.ndarray:
    with torch.inference_mode():
        return np.asarray(model(torch.from_numpy(tokens.astype(np.int64))[None]).logits[0].float().numpy())


def logits(chain: TorchChain, tokens: Int32, step_tokens: int) -> np.ndarray:
    return np.concatenate([np.array(piece) for piece in window_logits(chain, tokens, step_tokens)])


def assert_close(actual: np.ndarray, expected: np.ndarray, tolerance: float = TOLERANCE) -> None:
    assert actual.shape == expected.shape
    scale = np.abs(expected).max()
    assert scale > 1.0, "logits of nearly nothing would agree with anything"
    assert np.abs(actual - expected).max() <= tolerance * scale


@pytest.mark.parametrize("case", CASES)
def test_family_agrees_with_transformers(case: str, tmp_path: Path) -> None:
    model = build(case, tmp_path)
    config, weights = load_folder(tmp_path)
    assert config.eos_ids == (2, 3)
    tokens = int32(np.random.default_rng(3).integers(4, VOCAB, 75))  # far beyond the window of 20
    chain = TorchChain(config, weights, kv="fp32")
    expected = expected_logits(model, tokens)
    assert_close(logits(chain, tokens, step_tokens=75), expected)
    assert_close(logits(chain, tokens, step_tokens=7), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["F16", "BF16"])
def test_half_precision_files_are_read_exactly(dtype: torch.dtype, tmp_path: Path) -> None:
    model = build("gemma3", tmp_path, dtype)
    config, weights = load_folder(tmp_path)
    tokens = int32(np.random.default_rng(4).integers(4, VOCAB, 40))
    assert_close(logits(TorchChain(config, weights, kv="fp32"), tokens, 40), expected_logits(model, tokens))


def test_items_in_one_batch_do_not_touch_each_other(tmp_path: Path) -> None:
    """Two items with interleaved pages among NaN rubbish, the second one joining when the first is half computed."""
    model = build("gemma3", tmp_path)
    chain = TorchChain(*load_folder(tmp_path), kv="fp32")
    rng = np.random.default_rng(5)
    one, two = int32(rng.integers(4, VOCAB, 50)), int32(rng.integers(4, VOCAB, 30))
    pool = np.full((9, chain.page_layout.page_bytes), 255, dtype=np.uint8)
    pages = int32([7, 0, 5, 2, 8, 1])  # four of one, two of two
    chain.forward(StepBatch(one[:33], int32(range(33)), int32([0, 33]), int32([0, 4]), pages[:4], int32([32])), pool)
    assert_close(chain.logits(0, 1), expected_logits(model, one)[32:33])
    both = StepBatch(
        token_ids=np.concatenate([two, one[33:]]),
        positions=int32([*range(30), *range(33, 50)]),
        slice_starts=int32([0, 30, 47]),
        page_starts=int32([0, 2, 6]),
        page_ids=int32([*pages[4:], *pages[:4]]),
        output_rows=int32([29, 40, 46]),
    )
    chain.forward(both, pool)
    expected = np.concatenate([expected_logits(model, two)[29:], expected_logits(model, one)[[43, 49]]])
    assert_close(chain.logits(0, 3), expected)
    assert_close(chain.logits(1, 2), expected[1:])
    assert chain.greedy(0, 3).tolist() == expected.argmax(axis=-1).tolist()
    assert chain.hidden().shape == (3, chain.config.hidden)


def test_bf16_pages_are_half_as_large_and_nearly_as_good(tmp_path: Path) -> None:
    model = build("llama", tmp_path)
    config, weights = load_folder(tmp_path)
    exact, rounded = TorchChain(config, weights, kv="fp32"), TorchChain(config, weights)
    assert exact.page_layout.page_bytes == 2 * rounded.page_layout.page_bytes == 3 * 2 * 2 * 12 * 16 * 4
    tokens = int32(np.random.default_rng(6).integers(4, VOCAB, 40))
    expected, actual = expected_logits(model, tokens), logits(rounded, tokens, 16)
    assert_close(actual, expected, tolerance=0.05)
    assert np.abs(actual - expected).max() > 0.0


def test_page_bytes_follow_the_layout(tmp_path: Path) -> None:
    """A strip for the keys of each head and one for its values: what the layout says is where the bytes are."""
    build("llama", tmp_path)
    chain = TorchChain(*load_folder(tmp_path), kv="fp32")
    pool = np.zeros((2, chain.page_layout.page_bytes), dtype=np.uint8)
    chain.forward(StepBatch(int32([5]), int32([3]), int32([0, 1]), int32([0, 1]), int32([1]), int32([0])), pool)
    assert not pool[0].any()
    assert chain.page_layout.strips == 3 * 2 * 2
    page = pool[1].view(np.float32).reshape(3, 2, 2, 16, 12)  # layer, K or V, head
    assert np.count_nonzero(page) == np.count_nonzero(page[:, :, :, 3]) == 3 * 2 * 2 * 12


@pytest.mark.parametrize("case", ["llama", "gemma3"])
@pytest.mark.parametrize("step_tokens", [1, 7, 50])
def test_pages_in_a_row_are_the_same_bits_as_gathered_ones(case: str, step_tokens: int, tmp_path: Path) -> None:
    """Sequences that stand one page after the other in the pool, as aliases behind it, and nowhere."""
    build(case, tmp_path)
    chain = TorchChain(*load_folder(tmp_path), kv="fp32")
    layout = chain.page_layout
    pages = {1: [3, 4, 5, 6], 2: [7, 0, 2, 1], 3: [8, 9, 10, 11]}
    steps = [(start, min(50, start + step_tokens)) for start in range(0, 50, step_tokens)]
    seen = []
    for placed in (False, True):
        rows = np.full((layout.strips, 16, layout.page_bytes // layout.strips), 255, np.uint8).transpose(1, 0, 2)
        for start, end in steps:
            for owner, own in pages.items():
                first = {1: 3, 2: 12, 3: -1}[owner] if placed else -1
                if placed and owner == 2:  # what an alias would show, once the step has written
                    _forward(chain, rows, start, end, own, -1)
                    rows[12:16] = rows[own]
                seen.append(_forward(chain, rows, start, end, own, first))
    half = len(seen) // 2
    assert all((one == other).all() for one, other in zip(seen[:half], seen[half:], strict=True))


def _forward(chain: TorchChain, rows: np.ndarray, start: int, end: int, pages: list[int], first: int) -> np.ndarray:
    tokens = int32(np.random.default_rng(sum(pages)).integers(4, VOCAB, 50))[start:end]
    ends = int32([0, end - start])
    batch = StepBatch(tokens, int32(range(start, end)), ends, int32([0, 4]), int32(pages), int32([end - start - 1]))
    batch.first_rows = int32([first])
    chain.forward(batch, rows)
    return np.array(chain.logits(0, 1))


def test_a_pool_of_another_shape_is_refused(tmp_path: Path) -> None:
    build("llama", tmp_path)
    chain = TorchChain(*load_folder(tmp_path))
    batch = StepBatch(int32([5]), int32([0]), int32([0, 1]), int32([0, 1]), int32([0]), int32([0]))
    with pytest.raises(HeadraceError, match="pool must be"):
        chain.forward(batch, np.zeros((2, chain.page_layout.page_bytes * 2), dtype=np.uint8))


def real_parity(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import gguf
    from transformers import AutoModelForCausalLM

    monkeypatch.setattr(gguf, "GGUFReader", functools.cache(gguf.GGUFReader))  # transformers reads the same file twice

    opened = open_model(find_model(name))
    path = find_model(name).path
    assert path is not None
    tokens = int32(np.random.default_rng(7).integers(5, opened.config.vocab - 5, 128))
    chain = TorchChain(opened.config, opened.weights, kv="fp32")
    actual = logits(chain, tokens, step_tokens=100)
    model: Any = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    assert_close(actual, expected_logits(model, tokens))


@pytest.mark.model
@pytest.mark.filterwarnings("default")  # transformers' own
def test_smollm2_agrees_with_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    real_parity("smollm2-135m-instruct", monkeypatch)


@pytest.mark.gemma
@pytest.mark.filterwarnings("default")
def test_gemma_agrees_with_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    real_parity("gemma-3-270m", monkeypatch)
