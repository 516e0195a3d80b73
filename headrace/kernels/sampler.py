"""The native sampler behind numpy records: one request record a row in, one result record a row out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from headrace.kernels.interface import Float32, Int32

if TYPE_CHECKING:
    from headrace.kernels._native import ThreadPool

MAX_TOP = 20

REQUEST_DTYPE = np.dtype(
    [
        ("seed", "<u8"), ("base", "<u8"), ("choice", "<u4"), ("index", "<u4"),
        ("temperature", "<f4"), ("top_p", "<f4"), ("min_p", "<f4"),
        ("repetition", "<f4"), ("presence", "<f4"), ("frequency", "<f4"),
        ("top_k", "<i4"), ("top_count", "<i4"), ("given", "<i4"), ("mask", "<i4"),
        ("history", "<i4"), ("prompt_count", "<i4"), ("output_count", "<i4"),
        ("bias", "<i4"), ("bias_count", "<i4"), ("row", "<i4"),
    ]
)  # fmt: skip
RESULT_DTYPE = np.dtype([("token", "<i4"), ("status", "<i4"), ("logprob", "<f4"), ("top_count", "<i4")])

OK = 0
NOT_A_NUMBER = 1
NOTHING_ALLOWED = 2


def neutral_request() -> npt.NDArray[np.void]:
    """One request record [1] that means: arg-max, nothing modified, no logprobs."""
    request = np.zeros(1, REQUEST_DTYPE)
    request["top_p"] = request["repetition"] = 1.0
    request["top_count"] = request["given"] = request["mask"] = -1
    return request


def _no_masks() -> npt.NDArray[np.uint32]:
    return np.zeros((0, 0), np.uint32)


@dataclass(frozen=True, slots=True)
class SampleTables:
    """Arrays that request records point into.

    ``history``: tokens of prompts and outputs (penalties). ``bias_tokens``, ``bias_values``: logit biases, −inf bans.
    ``masks``: [masks, ceil(vocab / 32)], bit *t* of a row set means that token *t* is allowed.
    """

    history: Int32 = field(default_factory=lambda: np.zeros(0, np.int32))
    bias_tokens: Int32 = field(default_factory=lambda: np.zeros(0, np.int32))
    bias_values: Float32 = field(default_factory=lambda: np.zeros(0, np.float32))
    masks: npt.NDArray[np.uint32] = field(default_factory=_no_masks)


@dataclass(frozen=True, slots=True)
class Samples:
    """Results of a batch: ``records`` [rows] of RESULT_DTYPE, and the best raw logprobs [rows, MAX_TOP], best first.

    Of ``top_tokens`` and ``top_logprobs`` the first ``records["top_count"]`` entries of a row are filled.
    """

    records: npt.NDArray[np.void]
    top_tokens: Int32
    top_logprobs: Float32


class Sampler:
    """Chooses tokens from rows of logits; each row's choice depends on that row and its request alone.

    Order of work on a row: raw logprobs (before anything else), repetition penalty (prompt and output), frequency and
    presence penalty (output), bias, mask, temperature, top-k, top-p of what is left, min-p against the heaviest token,
    and the draw: a Philox number with key ``seed`` and counter (``index``, ``choice``, ``base``) into the cumulative
    weights in order of token id. A temperature below 1e-6 takes the arg-max. Ties always go to the lower token id.
    """

    def __init__(self, vocab: int, threads: int | ThreadPool = 1) -> None:
        """``threads``: how many, or the pool of a chain to share: two pools would spin against each other."""
        from headrace.kernels import _native

        self.vocab = vocab
        pool = _native.ThreadPool(threads) if isinstance(threads, int) else threads
        self._native = _native.Sampler(vocab, pool)

    def sample(self, logits: Float32, requests: npt.NDArray[np.void], tables: SampleTables | None = None) -> Samples:
        """Answer ``requests`` (records of REQUEST_DTYPE), each from its ``row`` of ``logits`` [rows, vocab].

        Several requests may share a row (the first tokens of forks). A request whose status is not OK has token −1: NaN or
        +inf among its logits, or no token left after bias and mask. Raises ValueError for records that point outside the
        arrays.
        """
        rows = len(requests)
        samples = Samples(np.empty(rows, RESULT_DTYPE), np.empty((rows, MAX_TOP), np.int32), np.empty((rows, MAX_TOP), np.float32))
        used = tables if tables is not None else SampleTables()
        self._native.run(
            logits,
            requests.view(np.uint8).reshape(rows, REQUEST_DTYPE.itemsize),
            (used.history, used.bias_tokens, used.bias_values, used.masks),
            (samples.records.view(np.uint8).reshape(rows, RESULT_DTYPE.itemsize), samples.top_tokens, samples.top_logprobs),
        )
        return samples
