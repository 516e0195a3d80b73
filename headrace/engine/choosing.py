"""From the chain's kept rows to tokens: greedy rows without logits, all others through the native sampler."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from headrace.engine.batch import Assembly, Draw
from headrace.engine.request import MASK_WINDOW, Choice, Matcher
from headrace.engine.wire import TokenLogprob
from headrace.errors import HeadraceError
from headrace.kernels.interface import ChainRunner
from headrace.kernels.sampler import NOT_A_NUMBER, OK, REQUEST_DTYPE, Sampler, Samples, SampleTables

logger = logging.getLogger("headrace.engine.choosing")

LOGIT_BYTES = 32 * 1024 * 1024  # logits kept at a time
MASK_SECONDS = 0.05  # a mask's thread time, mean over a choice's last MASK_WINDOW tokens
_NO_TABLES = SampleTables()

Failure = Literal["not_finite", "nothing_allowed", "grammar_failed"]


class Chosen(NamedTuple):
    """A token for a choice; ``logprob`` when it was asked for. ``failed`` set: there is no token, and why. ``row``: the kept row
    that it comes from."""

    choice: Choice
    token: int
    logprob: TokenLogprob | None = None
    failed: Failure | None = None
    row: int = -1


@dataclass(slots=True)
class Outcome:
    """What a step's rows said.

    ``unscorable``: choices of which a prompt row was not finite. ``head_seconds``: time in the head, which belongs to the
    model and not to sampling.
    """

    chosen: list[Chosen] = field(default_factory=list)
    scored: list[tuple[Choice, TokenLogprob]] = field(default_factory=list)
    unscorable: list[Choice] = field(default_factory=list)
    head_seconds: float = 0.0


class Chooser:
    """Asks the chain for logits, a bounded number of rows at a time, and the sampler for tokens."""

    def __init__(self, chain: ChainRunner, sampler: Sampler) -> None:
        self._chain = chain
        self._sampler = sampler
        self._vocab = chain.config.vocab
        self._chunk = max(1, LOGIT_BYTES // (4 * self._vocab))

    def choose(self, assembly: Assembly) -> Outcome:
        """Tokens and scores for every row that the step computed to its end."""
        outcome = Outcome()
        if assembly.greedy:
            self._choose_greedy(assembly, outcome)
        first = 0
        draws = assembly.draws
        for row in range(0, assembly.logit_rows, self._chunk):
            rows = min(self._chunk, assembly.logit_rows - row)
            last = first
            while last < len(draws) and draws[last].row < row + rows:
                last += 1
            self._choose_drawn(draws[first:last], (len(assembly.greedy), row, rows), outcome)
            first = last
        return outcome

    def _choose_greedy(self, assembly: Assembly, outcome: Outcome) -> None:
        count = len(assembly.greedy)
        began = time.perf_counter()
        tokens = self._chain.greedy(0, count).tolist()
        outcome.head_seconds += time.perf_counter() - began
        hidden = self._chain.hidden()[:count]
        bad = frozenset[int]()
        if not np.isfinite(np.vdot(hidden, hidden)):  # NaN and infinity survive every sum, so that one number tells
            bad = frozenset(np.flatnonzero(~np.isfinite(hidden).all(axis=1)).tolist())
        for row, (choice, token) in enumerate(zip(assembly.greedy, tokens, strict=True)):
            outcome.chosen.append(Chosen(choice, token, row=row) if row not in bad else Chosen(choice, -1, None, "not_finite", row))

    def _choose_drawn(self, draws: list[Draw], place: tuple[int, int, int], outcome: Outcome) -> None:
        """Answer draws; ``place``: kept rows before all with logits, logit rows before these, and these."""
        behind, first, rows = place
        began = time.perf_counter()
        logits = self._chain.logits(behind + first, rows)
        outcome.head_seconds += time.perf_counter() - began
        requests, tables, failed = _requests(draws, self._vocab)
        samples = self._sampler.sample(logits, requests, tables)
        records, chosen = samples.records, outcome.chosen
        for i, (draw, token, status) in enumerate(zip(draws, records["token"].tolist(), records["status"].tolist(), strict=True)):
            choice, row = draw.choice, behind + draw.row
            if status == OK and draw.given < 0:
                chosen.append(Chosen(choice, token, _logprob(samples, i) if choice.scored else None, None, row))
            elif status == OK:
                outcome.scored.append((choice, _logprob(samples, i)))
            elif draw.given >= 0:
                outcome.unscorable.append(choice)
            elif status == NOT_A_NUMBER:
                chosen.append(Chosen(choice, -1, None, "not_finite", row))
            else:
                chosen.append(Chosen(choice, -1, None, "grammar_failed" if i in failed else "nothing_allowed", row))


def _logprob(samples: Samples, row: int) -> TokenLogprob:
    token, _, logprob, count = samples.records[row].item()
    if count == 0:
        return TokenLogprob(token, logprob, [])
    top = list(zip(samples.top_tokens[row, :count].tolist(), samples.top_logprobs[row, :count].tolist(), strict=True))
    return TokenLogprob(token, logprob, top)


def _requests(draws: list[Draw], vocab: int) -> tuple[npt.NDArray[np.void], SampleTables, set[int]]:
    """Sampling records for these draws, the tables that they point into, and which draws' grammars have failed."""
    records = np.frombuffer(bytearray(b"".join([draw.choice.record for draw in draws])), REQUEST_DTYPE)
    records["row"] = [draw.row for draw in draws]
    records["row"] -= draws[0].row
    records["index"] = [draw.generated for draw in draws]
    tables, failed = _Tables(vocab), set[int]()
    for i, draw in enumerate(draws):
        if draw.given >= 0:
            records["given"][i] = draw.given
            wanted = draw.choice.request.params.prompt_logprobs
            records["top_count"][i] = wanted if wanted is not None else 0
        elif (draw.choice.tabled or draw.generated < draw.choice.min_tokens) and not tables.add(records[i : i + 1], draw):
            failed.add(i)
    return records, tables.build(), failed


def _fill_mask(choice: Choice, matcher: Matcher, mask: npt.NDArray[np.uint32]) -> bool:
    """Ask a grammar what may come next. False: it has failed, or its masks hold every neighbour's step up."""
    times = choice.mask_seconds
    began = time.thread_time()  # the thread's own time: a busy machine must not end anybody
    try:
        matcher.mask(mask)
    except HeadraceError as error:
        logger.error("request %d choice %d: %s", choice.request.submit.request_id, choice.index, error.message)
        return False
    except Exception:
        logger.exception("request %d choice %d: the grammar has failed", choice.request.submit.request_id, choice.index)
        return False
    times.append(time.thread_time() - began)
    if sum(times) <= MASK_SECONDS * MASK_WINDOW:
        return True
    milliseconds = 1000 * sum(times) / len(times)
    logger.error("request %d choice %d: a mask takes %.0f ms", choice.request.submit.request_id, choice.index, milliseconds)
    return False


class _Tables:
    """Collects histories, biases and masks of a batch."""

    __slots__ = ("_ahead", "_bias", "_biased", "_histories", "_history", "_masks", "_words")

    def __init__(self, vocab: int) -> None:
        self._histories: list[npt.NDArray[np.int32]] = []
        self._history = 0
        self._biased: list[tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]] = []
        self._bias = 0
        self._masks: list[npt.NDArray[np.uint32]] = []
        self._words = (vocab + 31) // 32
        self._ahead: tuple[Choice, Matcher] | None = None  # whose drafts are being followed, and where they stand

    def add(self, record: npt.NDArray[np.void], draw: Draw) -> bool:
        """Point one record at what its choice needs; False: its grammar has failed, so that nothing is allowed."""
        choice, request = draw.choice, draw.choice.request
        if choice.history is not None:
            length = choice.item.prompt_length
            record["history"], record["prompt_count"], record["output_count"] = self._history, length, draw.generated
            self._histories.append(choice.history[: length + draw.generated])
            self._history += length + draw.generated
        bias = request.bias if draw.generated >= request.params.min_tokens else request.bans
        if len(bias[0]):
            record["bias"], record["bias_count"] = self._bias, len(bias[0])
            self._biased.append(bias)
            self._bias += len(bias[0])
        if choice.matcher is None:
            return True
        mask = np.zeros(self._words, np.uint32)
        matcher = self._matcher(draw, choice.matcher)
        works = matcher is None or _fill_mask(choice, matcher, mask)
        if not works:
            mask[:] = 0
        record["mask"] = len(self._masks)
        self._masks.append(mask)
        return works

    def _matcher(self, draw: Draw, matcher: Matcher) -> Matcher | None:
        """Where the choice's grammar stands at this row; ``None`` behind a drafted token that it forbids, where nobody comes."""
        if draw.after is None:
            self._ahead = None
            return matcher
        ahead = self._ahead[1] if self._ahead is not None and self._ahead[0] is draw.choice else matcher.fork()
        self._ahead = (draw.choice, ahead)
        return ahead if ahead.advance(draw.after) else None

    def build(self) -> SampleTables:
        """The arrays."""
        if not (self._histories or self._biased or self._masks):
            return _NO_TABLES
        return SampleTables(
            np.concatenate(self._histories) if self._histories else _NO_TABLES.history,
            np.concatenate([tokens for tokens, _ in self._biased]) if self._biased else _NO_TABLES.bias_tokens,
            np.concatenate([values for _, values in self._biased]) if self._biased else _NO_TABLES.bias_values,
            np.stack(self._masks) if self._masks else _NO_TABLES.masks,
        )
