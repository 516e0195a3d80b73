"""How far one runner's predictions are from another's, on real text: top-1 agreement, KL divergence, perplexity."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from headrace.errors import HeadraceError
from headrace.kernels.interface import ChainRunner, Float32, Int32, StepBatch
from headrace.kernels.native_chain import NativeChain
from headrace.models.catalog import find_model, open_model
from headrace.text.open_tokenizer import open_tokenizer

Float64 = npt.NDArray[np.float64]

_LOGIT_VALUES = 1 << 24  # logits looked at together: 64 MiB


@dataclass(frozen=True, slots=True)
class Quality:
    """A candidate measured against a reference.

    ``top1_agreement``: share of positions with the same most likely token. ``mean_kl``, ``p99_kl``: nats of
    KL(reference ‖ candidate). The perplexities are of the text's own next tokens. ``seconds`` is spent in all.
    """

    positions: int
    top1_agreement: float
    mean_kl: float
    p99_kl: float
    reference_perplexity: float
    candidate_perplexity: float
    seconds: float

    @property
    def perplexity_ratio(self) -> float:
        """Candidate over reference; 1 is no loss."""
        return self.candidate_perplexity / self.reference_perplexity


def real_text() -> str:
    """About 400,000 characters of English prose that every Python brings along (its own manual)."""
    from pydoc_data import topics

    return "\n\n".join(topics.topics[name] for name in sorted(topics.topics))


def text_windows(tokens: Sequence[int], length: int, count: int, seed: int = 0) -> Int32:
    """``count`` windows of ``length`` consecutive tokens at seeded places: [count, length]."""
    if len(tokens) <= length:
        raise HeadraceError("invalid_value", f"{len(tokens)} tokens are too few for a window of {length}", param="length")
    starts = np.random.default_rng(seed).integers(0, len(tokens) - length, count)
    return np.take(np.asarray(tokens, dtype=np.int32), starts[:, None] + np.arange(length))


def window_logits(runner: ChainRunner, tokens: Int32, step_tokens: int = 256, first_token: int | None = None) -> Iterator[Float32]:
    """Logits of every position of one window, in pieces [rows, vocab] that are valid until the next one.

    The window is computed alone, in steps of at most ``step_tokens``, on pages of its own. ``first_token`` stands before
    it and has no logits of its own (a model's begin-of-text).
    """
    row = tokens if first_token is None else np.concatenate([np.asarray([first_token], np.int32), tokens])
    page = runner.page_layout.tokens
    pages = np.arange(-(-len(row) // page), dtype=np.int32)
    pool = np.zeros((len(pages), runner.page_layout.page_bytes), dtype=np.uint8)
    piece = max(1, _LOGIT_VALUES // runner.config.vocab)
    skipped = len(row) - len(tokens)
    for start in range(0, len(row), step_tokens):
        batch = _one_slice(row, start, min(start + step_tokens, len(row)), pages)
        runner.forward(batch, pool)
        rows = len(batch.output_rows)
        for first in range(skipped if start == 0 else 0, rows, piece):
            yield runner.logits(first, min(piece, rows - first))


def compare_chains(
    reference: ChainRunner,
    candidate: ChainRunner,
    windows: Int32,
    first_token: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Quality:
    """Run both over the same windows [n, length] and compare their predictions at every position.

    ``progress`` is called with windows done and in all.
    """
    began = time.perf_counter()
    agreed = 0
    divergences: list[Float64] = []
    losses = np.zeros(2)
    for index, window in enumerate(windows):
        position = 0
        pairs = zip(
            window_logits(reference, window, first_token=first_token),
            window_logits(candidate, window, first_token=first_token),
            strict=True,
        )
        for expected, actual in pairs:
            agreed += int((expected.argmax(axis=-1) == actual.argmax(axis=-1)).sum())
            known, guessed = log_softmax(expected), log_softmax(actual)
            divergences.append(_divergence(known, guessed))
            following = window[position + 1 : position + 1 + len(known)]
            at = np.arange(len(following))
            losses -= known[at, following].sum(dtype=np.float64), guessed[at, following].sum(dtype=np.float64)
            position += len(known)
        if progress is not None:
            progress(index + 1, len(windows))
    every = np.concatenate(divergences)
    predicted = windows.shape[0] * (windows.shape[1] - 1)
    return Quality(
        positions=len(every),
        top1_agreement=agreed / len(every),
        mean_kl=float(every.mean()),
        p99_kl=float(np.quantile(every, 0.99)),
        reference_perplexity=math.exp(losses[0] / predicted),
        candidate_perplexity=math.exp(losses[1] / predicted),
        seconds=time.perf_counter() - began,
    )


def log_softmax(logits: Float32) -> Float32:
    """Log-probabilities of each row; sums in float64."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    totals = np.exp(shifted).sum(axis=-1, keepdims=True, dtype=np.float64)
    return np.asarray(shifted - np.log(totals).astype(np.float32))


def _divergence(known: Float32, guessed: Float32) -> Float64:
    """KL of each row, in nats."""
    return np.asarray((np.exp(known) * (known - guessed)).sum(axis=-1, dtype=np.float64))


def _one_slice(row: Int32, start: int, end: int, pages: Int32) -> StepBatch:
    count = end - start
    return StepBatch(
        token_ids=np.ascontiguousarray(row[start:end]),
        positions=np.arange(start, end, dtype=np.int32),
        slice_starts=np.asarray([0, count], dtype=np.int32),
        page_starts=np.asarray([0, len(pages)], dtype=np.int32),
        page_ids=pages,
        output_rows=np.arange(count, dtype=np.int32),
    )


def measure_native(
    model: str, count: int, length: int, threads: int = 2, progress: Callable[[int, int], None] | None = None
) -> Quality:
    """The native chain of a model against plain torch in fp32 (keys and values too): ``count`` windows of ``length`` tokens.

    Needs the ``torch`` extra. Windows begin with the model's begin-of-text where its tokenizer asks for one. Both sides
    use ``threads``; on a machine that is busy with other work the reference is fastest with one, since torch's threads
    wait for each other after every operator.
    """
    import torch

    from headrace.kernels.torch_chain import TorchChain

    opened = open_model(find_model(model))
    tokenizer = open_tokenizer(opened.tokenizer_source)
    bos = tokenizer.bos_id if tokenizer.add_bos else None
    windows = text_windows(tokenizer.encode(real_text()), length, count)
    native = NativeChain(opened.config, opened.weights, threads)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        reference = TorchChain(opened.config, opened.weights, kv_dtype="fp32")
        return compare_chains(reference, native, windows, first_token=bos, progress=progress)
    finally:
        torch.set_num_threads(before)


def disjoint_texts(text: str, share: float, avoid: str = "") -> tuple[str, str]:
    """``text`` in two parts that have no paragraph in common: about ``share`` of its characters, and the rest.

    Repeated paragraphs count once; paragraphs of ``avoid`` are in neither part.
    """
    seen = set(_paragraphs(avoid))
    unique = [one for one in dict.fromkeys(_paragraphs(text)) if one not in seen]
    ends = np.cumsum([len(one) for one in unique] or [0])
    cut = int(np.searchsorted(ends, share * ends[-1]))
    return "\n\n".join(unique[:cut]), "\n\n".join(unique[cut:])


def _paragraphs(text: str) -> list[str]:
    return [part.strip() for part in text.split("\n\n") if part.strip()]
