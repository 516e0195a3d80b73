"""Cost: the fitted time of a step, learnt online from the steps that ran."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from headrace.errors import HeadraceError

# Up to some rows a step is bound by reading the weights, then by computing: hinges let the fit bend upwards there. The first is
# where streams and drafts are weighed: on the machines measured a second and third row cost half of what later ones do.
_HINGES = (3.0, 8.0, 32.0)
_NAMES = ("base", "token", "token_beyond_3", "token_beyond_8", "token_beyond_32", "pair", "logit_row", "adapter_page")
_SCALES = (
    1.0,
    64.0,
    64.0,
    64.0,
    64.0,
    16384.0,
    16.0,
    16.0,
)  # typical feature sizes, so that the normal equations are well conditioned
_SIZE = len(_NAMES)
_FORGETTING = 0.998
_ANCHOR = 1e-4  # information that always pulls to the present coefficients: unexcited directions stay where they are
_FIRST_GUESS = (5e-3, 1e-4, 0.0, 3e-4, 0.0, 3e-7, 1e-4, 3e-5)  # seconds; before anything was measured
_EAGER = 64  # observations after which the equations are solved only every _SOLVE_EVERY-th time
_SOLVE_EVERY = 8
_PACE_RATE = 0.1  # how fast the speed of the machine as a whole is followed
_CLIP = 3.0  # residuals beyond this many typical ones count less and less (Huber)
_RECENT = 1000
_FORMAT = 1


class StepTime(NamedTuple):
    """One step that ran: the first three arguments of :meth:`Cost.predict`, and the seconds that it took."""

    tokens: int
    pairs: int
    rows: int
    seconds: float


@dataclass(frozen=True, slots=True)
class CostErrors:
    """How well predictions made before each step met its measured time, over the last steps.

    ``within_tenth``: fraction within ±10 %. ``median`` and ``p95``: absolute relative error.
    """

    count: int
    within_tenth: float
    median: float
    p95: float


class Cost:
    """T = a + b·tokens + Σ b_h·max(0, tokens - h) for h in 3, 8, 32 + c·pairs + d·rows + e·adapters, in seconds.

    None is negative. ``tokens``: rows computed; ``pairs``: query-key pairs, the sum over rows of the keys they see; ``rows``: rows
    through the head; ``adapters``: pages of the different adapters that a step reads, which is what they cost.
    Recursive least squares with forgetting on relative errors, kept as normal equations so that the non-negative
    solution is exact. A common factor, the pace, follows the speed of the whole machine within some tens of steps (others use
    its cores, its clock drops), while the proportions between the terms are learnt slowly. A step that took far longer than
    foreseen (its thread was preempted) has little weight in both, until such steps become typical.
    """

    __slots__ = ("_coefficients", "_information", "_observed", "_pace", "_recent", "_spread", "_target")

    def __init__(self) -> None:
        self._coefficients = list(_FIRST_GUESS)
        self._information = [[0.0] * _SIZE for _ in range(_SIZE)]
        self._target = [0.0] * _SIZE
        self._observed = 0
        self._pace = 1.0
        self._spread = 0.1
        self._recent: deque[float] = deque(maxlen=_RECENT)
        self._pull_to_present(1.0)

    @property
    def observed(self) -> int:
        """Steps learnt from, also in earlier lives."""
        return self._observed

    @property
    def pace(self) -> float:
        """Present times of steps as a multiple of those first learnt: how much slower the whole machine is now."""
        return self._pace

    def coefficients(self) -> dict[str, float]:
        """Seconds by term: base, token, token_beyond_3, token_beyond_8, token_beyond_32, pair, logit_row, adapter_page."""
        return {name: self._pace * value for name, value in zip(_NAMES, self._coefficients, strict=True)}

    def predict(self, tokens: int, pairs: int, rows: int, adapters: int = 0) -> float:
        """Expected seconds of a step."""
        base, token, beyond_low, beyond, beyond_high, pair, row, adapter = self._coefficients
        seconds = base + token * tokens + pair * pairs + row * rows + adapter * adapters
        if tokens > _HINGES[0]:
            seconds += beyond_low * (tokens - _HINGES[0])
            if tokens > _HINGES[1]:
                seconds += beyond * (tokens - _HINGES[1])
                if tokens > _HINGES[2]:
                    seconds += beyond_high * (tokens - _HINGES[2])
        return self._pace * seconds

    def max_tokens_within(self, seconds: float, load: Sequence[int], start: int) -> int:
        """Most rows that a prompt chunk from position ``start`` may add to a step of ``load``: the arguments of :meth:`predict`.

        Convex in the chunk, so each straight piece between hinges is a quadratic equation. 0 when the step is full already.
        """
        left, tokens = (seconds - self.predict(*load)) / self._pace, load[0]
        if left <= 0.0:
            return 0
        _, slope, beyond_low, beyond_middle, beyond_high, pair, _, _ = self._coefficients
        count = 0.0
        for hinge, beyond in ((_HINGES[0], beyond_low), (_HINGES[1], beyond_middle), (_HINGES[2], beyond_high), (math.inf, 0.0)):
            width = hinge - (tokens + count)
            if width > 0.0:
                line = slope + pair * (start + count + 0.5)
                step = _root(pair, line, left)
                if step <= width:
                    return int(min(count + step, 1e9))
                left -= line * width + 0.5 * pair * width * width
                count += width
            slope += beyond
        return int(min(count, 1e9))

    def observe(self, tokens: int, pairs: int, rows: int, seconds: float, adapters: int = 0) -> None:
        """Learn from one measured step. Raises ``ValueError`` unless ``seconds`` is positive and finite."""
        if not (seconds > 0.0 and math.isfinite(seconds)):
            raise ValueError(f"a step takes a positive time, not {seconds}")
        predicted = max(self.predict(tokens, pairs, rows, adapters), 1e-9)
        self._recent.append(seconds / predicted - 1.0)
        self._observed += 1
        early = self._observed <= 2 * _SIZE
        error = math.log(seconds / predicted)
        size, clip = abs(error), _CLIP * self._spread
        influence = 1.0 if early or size <= clip else clip / size
        if not early:
            self._pace *= math.exp(_PACE_RATE * influence * error)
            self._spread = max(self._spread + 0.05 * (min(size, 2.0 * clip) - self._spread), 0.01)
        # early predictions mean nothing, so the measured time sets the scale of the error
        paced = seconds / self._pace
        scale = paced if early else max(predicted / self._pace, 1e-7)
        self._absorb(_features(tokens, pairs, rows, adapters), paced, influence / scale**2)
        if self._observed <= _EAGER or self._observed % _SOLVE_EVERY == 0:
            self._coefficients = _solve_non_negative(self._information, self._target, self._coefficients)

    def refitted(self, steps: Sequence[StepTime]) -> Cost:
        """What these steps together say: none is weighted less for being slow, and their sum comes out as it was.

        :meth:`observe` learns what an undisturbed step takes, which is what bounds want. What is served in a minute depends on
        the sum instead, disturbed steps included. Proportions about which the steps say nothing stay as they are.
        """
        foreseen = math.fsum(self.predict(*step[:3]) for step in steps)
        if not steps or foreseen <= 0.0:
            return Cost.from_dict(self.to_dict())
        cost = self._scaled(math.fsum(step.seconds for step in steps) / foreseen)
        information, target = [[0.0] * _SIZE for _ in range(_SIZE)], [0.0] * _SIZE
        for step in steps:
            weight = cost.predict(*step[:3]) ** -2
            features = _features(*step[:3], 0)
            for i in range(_SIZE):
                weighted = weight * features[i]
                target[i] += weighted * step.seconds
                for j in range(_SIZE):
                    information[i][j] += weighted * features[j]
        pull = _ANCHOR * len(steps) / max(cost._coefficients[0] + cost._coefficients[1], 1e-7) ** 2
        for i in range(_SIZE):
            information[i][i] += pull
            target[i] += pull * cost._coefficients[i] * _SCALES[i]
        cost._coefficients = _solve_non_negative(information, target, cost._coefficients)
        return cost._scaled(math.fsum(step.seconds for step in steps) / math.fsum(cost.predict(*step[:3]) for step in steps))

    def _scaled(self, factor: float) -> Cost:
        data = self.to_dict()
        return Cost.from_dict(data | {"coefficients": {name: factor * value for name, value in data["coefficients"].items()}})

    def errors(self) -> CostErrors:
        """Statistics of the last 1,000 predictions made by this object."""
        sizes = sorted(abs(error) for error in self._recent)
        if not sizes:
            return CostErrors(0, 0.0, 0.0, 0.0)
        within = sum(1 for size in sizes if size <= 0.1) / len(sizes)
        return CostErrors(len(sizes), within, sizes[len(sizes) // 2], sizes[min(len(sizes) - 1, int(0.95 * len(sizes)))])

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a file; :meth:`from_dict` continues from it."""
        return {
            "format": _FORMAT, "coefficients": self.coefficients(), "observed": self._observed, "spread": self._spread,
        }  # fmt: skip

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Cost:
        """The inverse of :meth:`to_dict`. Raises :class:`HeadraceError` ``invalid_value`` for anything else."""
        cost = cls()
        coefficients = data.get("coefficients")
        known = isinstance(coefficients, Mapping) and set(coefficients) | {_NAMES[-1]} == set(_NAMES)
        if data.get("format") != _FORMAT or not isinstance(coefficients, Mapping) or not known:
            raise HeadraceError("invalid_value", "the stored step times have an unknown form", param="coefficients")
        # files from before there were adapters lack the last one
        values = [coefficients.get(name, guess) for name, guess in zip(_NAMES, _FIRST_GUESS, strict=True)]
        numbers = [*values, data.get("spread"), data.get("observed")]
        if not all(isinstance(value, int | float) and math.isfinite(value) and value >= 0 for value in numbers) or sum(values) <= 0:
            raise HeadraceError("invalid_value", "the stored step times are not finite and positive", param="coefficients")
        cost._coefficients = [float(value) for value in values]
        cost._observed = int(data["observed"])
        cost._spread = float(data["spread"])
        cost._information = [[0.0] * _SIZE for _ in range(_SIZE)]
        cost._target = [0.0] * _SIZE
        cost._pull_to_present(1.0)
        return cost

    def _absorb(self, features: tuple[float, ...], seconds: float, weight: float) -> None:
        """One step of the recursion: forget a little, pull to the present, add what was seen."""
        for i in range(_SIZE):
            row, weighted = self._information[i], weight * features[i]
            for j in range(_SIZE):
                row[j] = _FORGETTING * row[j] + weighted * features[j]
            self._target[i] = _FORGETTING * self._target[i] + weighted * seconds
        self._pull_to_present(1.0 - _FORGETTING)

    def _pull_to_present(self, share: float) -> None:
        """Information worth ``share`` of the anchor for the coefficients as they are, relative to the time of a small step."""
        weight = share * _ANCHOR / max(self._coefficients[0] + self._coefficients[1], 1e-7) ** 2
        for i in range(_SIZE):
            self._information[i][i] += weight
            self._target[i] += weight * self._coefficients[i] * _SCALES[i]


def _features(tokens: int, pairs: int, rows: int, adapters: int) -> tuple[float, ...]:
    beyond = (max(0.0, tokens - hinge) for hinge in _HINGES)
    raw = (1.0, float(tokens), *beyond, float(pairs), float(rows), float(adapters))
    return tuple(value / scale for value, scale in zip(raw, _SCALES, strict=True))


def _root(pair: float, line: float, left: float) -> float:
    """Largest x ≥ 0 with pair/2·x² + line·x ≤ left."""
    if pair > 0.0:
        return 2.0 * left / (line + math.sqrt(line * line + 2.0 * pair * left))
    return left / line if line > 0.0 else math.inf


def _solve_non_negative(information: list[list[float]], target: list[float], present: list[float]) -> list[float]:
    """Minimise ½xᵀAx - bᵀx over x ≥ 0 by the active-set method of Lawson and Hanson; returns unscaled coefficients.

    Keeps ``present`` when the equations are singular.
    """
    free: list[int] = []
    x = [0.0] * _SIZE
    for _ in range(3 * _SIZE):
        gradient = [target[i] - sum(information[i][j] * x[j] for j in free) for i in range(_SIZE)]
        outside = [i for i in range(_SIZE) if i not in free]
        best = max(outside, key=lambda i: gradient[i] / math.sqrt(information[i][i]), default=None)
        if best is None or gradient[best] <= 1e-9 * abs(target[best]):
            break
        free.append(best)
        while True:
            solution = _solve(information, target, free)
            if solution is None:
                return present
            if all(value > 0.0 for value in solution):
                x = [0.0] * _SIZE
                for i, value in zip(free, solution, strict=True):
                    x[i] = value
                break
            steps = [x[i] / (x[i] - value) for i, value in zip(free, solution, strict=True) if value <= 0.0]
            alpha = min(steps)
            for i, value in zip(free, solution, strict=True):
                x[i] += alpha * (value - x[i])
            free = [i for i in free if x[i] > 1e-15]
    found = [value / scale for value, scale in zip(x, _SCALES, strict=True)]
    return found if found[0] + found[1] > 0.0 else present


def _solve(information: list[list[float]], target: list[float], free: list[int]) -> list[float] | None:
    """Gaussian elimination with pivoting on the free rows and columns; ``None`` when they are singular."""
    rows = [[information[i][j] for j in free] + [target[i]] for i in free]
    size = len(free)
    for column in range(size):
        pivot = max(range(column, size), key=lambda r: abs(rows[r][column]))
        if abs(rows[pivot][column]) < 1e-300:
            return None
        rows[column], rows[pivot] = rows[pivot], rows[column]
        top = rows[column]
        for r in range(column + 1, size):
            factor = rows[r][column] / top[column]
            if factor:
                for c in range(column, size + 1):
                    rows[r][c] -= factor * top[c]
    solution = [0.0] * size
    for r in range(size - 1, -1, -1):
        known = sum(rows[r][c] * solution[c] for c in range(r + 1, size))
        solution[r] = (rows[r][size] - known) / rows[r][r]
    return solution
