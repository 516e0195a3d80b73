"""How far one runner's predictions are from another's, on real text: top-1 agreement, KL divergence, perplexity."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

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


def even_windows(tokens: Sequence[int], length: int, count: int) -> Int32:
    """``count`` windows of ``length`` consecutive tokens that have none in common, spread over the text: [count, length]."""
    whole = len(tokens) // length
    if whole < count:
        raise HeadraceError("invalid_value", f"{len(tokens)} tokens are too few for {count} windows of {length}", param="count")
    windows = np.asarray(tokens[: whole * length], np.int32).reshape(whole, length)
    return windows[np.linspace(0, whole - 1, count).astype(np.int64)]


def window_logits(
    runner: ChainRunner, tokens: Int32, step_tokens: int = 256, first_token: int | None = None, every: int = 1
) -> Iterator[Float32]:
    """Logits of one window, in pieces [rows, vocab] that are valid until the next one.

    The window is computed alone, in steps of at most ``step_tokens``, on pages of its own. ``first_token`` stands before
    it and has no logits of its own (a model's begin-of-text). ``every``: only of each so manieth position, from the first on.
    """
    row = tokens if first_token is None else np.concatenate([np.asarray([first_token], np.int32), tokens])
    page = runner.page_layout.tokens
    pages = np.arange(-(-len(row) // page), dtype=np.int32)
    pool = np.zeros((len(pages), runner.page_layout.page_bytes), dtype=np.uint8)
    piece = max(1, _LOGIT_VALUES // runner.config.vocab)
    skipped = len(row) - len(tokens)
    for start in range(0, len(row), step_tokens):
        end = min(start + step_tokens, len(row))
        wanted = [at - start for at in range(start, end) if at >= skipped and (at - skipped) % every == 0]
        runner.forward(_one_slice(row, (start, end), pages, wanted), pool)
        for first in range(0, len(wanted), piece):
            yield runner.logits(first, min(piece, len(wanted) - first))


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
    return compare_many(reference, {"": candidate}, Text(windows, first_token), progress)[""]


@dataclass(frozen=True, slots=True, eq=False)
class Text:
    """What predictions are compared on: windows [n, length], the token before each, and each how manieth position is scored.

    ``sparse``: candidates that read only each so manieth window.
    """

    windows: Int32
    first_token: int | None = None
    every: int = 1
    sparse: Mapping[str, int] = field(default_factory=dict)

    def readers(self, candidates: Mapping[str, ChainRunner], index: int) -> dict[str, ChainRunner]:
        """Those that read window ``index``."""
        return {name: runner for name, runner in candidates.items() if index % self.sparse.get(name, 1) == 0}


@dataclass(slots=True)
class _Tally:
    """What is summed up over the positions of one candidate."""

    agreed: int = 0
    loss: float = 0.0
    reference_loss: float = 0.0
    predicted: int = 0
    divergences: list[Float64] = field(default_factory=list)


def compare_many(
    reference: ChainRunner,
    candidates: Mapping[str, ChainRunner],
    text: Text,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Quality]:
    """:func:`compare_chains` of several candidates; the reference is computed once. ``seconds`` are those of all together."""
    began = time.perf_counter()
    tallies = {name: _Tally() for name in candidates}
    for index, window in enumerate(text.windows):
        following = window[1 :: text.every]  # of each scored position; the last one may have none
        readers = text.readers(candidates, index)
        runs = [window_logits(runner, window, first_token=text.first_token, every=text.every) for runner in readers.values()]
        position = 0
        for expected in window_logits(reference, window, first_token=text.first_token, every=text.every):
            known, best = log_softmax(expected), expected.argmax(axis=-1)
            share, targets = np.exp(known), following[position : position + len(known)]
            at = np.arange(len(targets))
            loss = float(known[at, targets].sum(dtype=np.float64))
            for name, run in zip(readers, runs, strict=True):
                actual, tally = next(run), tallies[name]
                tally.reference_loss -= loss
                tally.predicted += len(targets)
                tally.agreed += int((best == actual.argmax(axis=-1)).sum())
                guessed = log_softmax(actual)
                tally.loss -= float(guessed[at, targets].sum(dtype=np.float64))
                tally.divergences.append((share * (known - guessed)).sum(axis=-1, dtype=np.float64))
            position += len(known)
        if progress is not None:
            progress(index + 1, len(text.windows))
    seconds = time.perf_counter() - began
    return {name: _quality(tally, seconds) for name, tally in tallies.items()}


def _quality(tally: _Tally, seconds: float) -> Quality:
    every = np.concatenate(tally.divergences)
    return Quality(
        positions=len(every),
        top1_agreement=tally.agreed / len(every),
        mean_kl=float(every.mean()),
        p99_kl=float(np.quantile(every, 0.99)),
        reference_perplexity=math.exp(tally.reference_loss / tally.predicted),
        candidate_perplexity=math.exp(tally.loss / tally.predicted),
        seconds=seconds,
    )


def log_softmax(logits: Float32) -> Float32:
    """Log-probabilities of each row; sums in float64."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    totals = np.exp(shifted).sum(axis=-1, keepdims=True, dtype=np.float64)
    return np.asarray(shifted - np.log(totals).astype(np.float32))


def _one_slice(row: Int32, span: tuple[int, int], pages: Int32, wanted: Sequence[int]) -> StepBatch:
    start, end = span
    count = end - start
    return StepBatch(
        token_ids=np.ascontiguousarray(row[start:end]),
        positions=np.arange(start, end, dtype=np.int32),
        slice_starts=np.asarray([0, count], dtype=np.int32),
        page_starts=np.asarray([0, len(pages)], dtype=np.int32),
        page_ids=pages,
        output_rows=np.asarray(wanted, dtype=np.int32),
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
        reference = TorchChain(opened.config, opened.weights, kv="fp32")
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
