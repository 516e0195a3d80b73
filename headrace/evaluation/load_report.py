"""What a load showed: percentiles, failures by kind, effective throughput; as rows, JSON and a plot."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import Counter
from pathlib import Path
from typing import Any

from headrace.errors import HeadraceError
from headrace.evaluation.load import LoadResult, Record
from headrace.evaluation.machine import Machine
from headrace.evaluation.statistics import Summary, keeps, summarize


@dataclasses.dataclass(frozen=True, slots=True)
class LoadReport:
    """Latencies in milliseconds, rates per second over the whole run; only requests that ended well count in them.

    ``effective_throughput`` is requests/s times the share of **all** requests that kept the promise.
    """

    requests: int
    finished: int
    failures: dict[str, int]
    seconds: float
    request_rate: float
    output_rate: float
    prompt_rate: float
    first_token: Summary
    gap: Summary
    end_to_end: Summary
    stream_rate: Summary
    kept_promise: float
    effective_throughput: float
    late: Summary


def report(result: LoadResult) -> LoadReport:
    """Reduce the records of a run."""
    good = [record for record in result.records if not record.failure]
    promise = result.settings.promise
    kept = sum(keeps(promise, record.prompt_tokens, record.first, record.gaps) for record in good)
    share = kept / len(result.records)
    rate = len(good) / result.seconds
    return LoadReport(
        requests=len(result.records),
        finished=len(good),
        failures=dict(Counter(record.failure for record in result.records if record.failure)),
        seconds=result.seconds,
        request_rate=rate,
        output_rate=sum(record.output_tokens for record in good) / result.seconds,
        prompt_rate=sum(record.prompt_tokens for record in good) / result.seconds,
        first_token=summarize(record.first * 1000 for record in good),
        gap=summarize(gap * 1000 for record in good for gap in record.gaps),
        end_to_end=summarize(record.total * 1000 for record in good),
        stream_rate=summarize(_stream_rate(record) for record in good if record.gaps),
        kept_promise=share,
        effective_throughput=len(result.records) / result.seconds * share,
        late=summarize(record.late * 1000 for record in result.records),
    )


def _stream_rate(record: Record) -> float:
    """Tokens/s after the first piece of text."""
    span = sum(record.gaps)
    return (record.output_tokens - 1) / span if span else math.nan


def latency_rows(found: LoadReport) -> list[tuple[str, str, Summary]]:
    """(what, unit, summary) of each distribution, in the order of the table."""
    return [
        ("time to first token", "ms", found.first_token),
        ("gap between pieces", "ms", found.gap),
        ("end to end", "ms", found.end_to_end),
        ("one stream", "tok/s", found.stream_rate),
    ]


def as_json(result: LoadResult, found: LoadReport, machine: Machine) -> dict[str, Any]:
    """A document with settings, report, machine and one entry a request; numbers that don't exist are null."""
    document = {
        "kind": "load",
        "settings": dataclasses.asdict(result.settings),
        "machine": dataclasses.asdict(machine),
        "report": dataclasses.asdict(found),
        "records": [dataclasses.asdict(record) for record in result.records],
    }
    cleaned = without_nan(document)
    assert isinstance(cleaned, dict)
    return cleaned


def without_nan(value: Any) -> Any:
    """The same document with ``None`` in place of NaN and infinities, which JSON can't carry."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: without_nan(element) for key, element in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(element) for element in value]
    return value


def plot(result: LoadResult, file: Path) -> None:
    """Draw first-token times over the run and the distribution of gaps.

    Raises ``invalid_setting`` when the extra ``plot`` is not installed.
    """
    pyplot = import_pyplot()
    good = [record for record in result.records if not record.failure]
    bad = [record for record in result.records if record.failure]
    figure, (over_time, gaps) = pyplot.subplots(1, 2, figsize=(11, 4), layout="constrained")
    over_time.scatter([r.sent for r in good], [r.first * 1000 for r in good], s=12, label="first token")
    if bad:
        over_time.scatter([r.sent for r in bad], [0.0] * len(bad), s=18, marker="x", color="tab:red", label="failed")
    over_time.set(xlabel="sent at (s)", ylabel="time to first token (ms)", title=result.model)
    over_time.legend()
    ordered = sorted(itertools.chain.from_iterable(record.gaps for record in good))
    if ordered:
        gaps.plot([gap * 1000 for gap in ordered], [(index + 1) / len(ordered) for index in range(len(ordered))])
        gaps.set_xscale("log")
    gaps.set(xlabel="gap between pieces (ms)", ylabel="share of gaps at or below", title="gaps")
    gaps.grid(alpha=0.3)
    figure.savefig(file)
    pyplot.close(figure)


def import_pyplot() -> Any:
    """matplotlib without a display, or a clear refusal where the extra is missing."""
    try:
        import matplotlib as mpl
    except ImportError:
        raise HeadraceError("invalid_setting", "plots need the extra: pip install 'headrace[plot]'", param="plot") from None
    mpl.use("agg")
    from matplotlib import pyplot

    return pyplot
