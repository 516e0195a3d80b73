"""Two models in one server: what each says, how fast both are, and what comes and goes beside streams that run."""

from __future__ import annotations

import asyncio
import json
import random
import re
import statistics
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

from headrace.evaluation.experiment import Claim, Conditions, Experiment, Findings, interleave
from headrace.evaluation.experiments._several_models_lending import lending
from headrace.evaluation.own_server import get_text, own_server, post_json
from headrace.evaluation.statistics import median_ratio
from headrace.evaluation.streaming_client import Stream, parse_url, stream

_OTHER = "gemma-3-270m"
_PLAIN = ("--speculation", "off", "--prefix-reuse", "off")
_BLOCKED = re.compile(r"^headrace_event_loop_blocked_seconds (\S+)", re.MULTILINE)
_TEXTS = ("The water runs down", "A list of rivers:", "def area(width, height):", "Once upon a time", "In the year 1900")


@dataclass(frozen=True, slots=True)
class _Scale:
    """``asked`` requests of each model for their bits; ``streams`` of ``output`` tokens of each at once, ``rounds`` times."""

    asked: int
    streams: int
    output: int
    rounds: int


_QUICK, _FULL = _Scale(6, 2, 24, 2), _Scale(32, 4, 96, 5)


@dataclass(frozen=True, slots=True)
class _Servers:
    """Where each model is asked: beside the other in one server, or in a server of its own."""

    models: tuple[str, str]
    together: str
    alone: dict[str, str]


def run(conditions: Conditions) -> Findings:
    """One server of both models and two of one each stand side by side; whoever is not asked sleeps."""
    models = (conditions.model, _OTHER)
    scale = _QUICK if conditions.quick else _FULL
    with ExitStack() as stack:
        urls: list[str] = []
        for wanted in (models, models[:1], models[1:]):
            conditions.report("starting servers", len(urls), 3)
            urls.append(stack.enter_context(own_server(wanted, conditions.threads, *_PLAIN)))
        servers = _Servers(models, urls[0], dict(zip(models, urls[1:], strict=True)))
        return Findings(
            (
                *_coming(conditions, servers),  # first: nothing is loaded yet
                _same(conditions, servers, scale),
                _speed(conditions, servers, scale),
                _leaving(conditions, servers),
                *lending(conditions),
            )
        )


def _coming(conditions: Conditions, servers: _Servers) -> list[Claim]:
    """The second model is loaded while streams of the first one run."""
    first, second = servers.models
    post_json(servers.together, "/v1/models/load", {"model": first})
    asyncio.run(_ask(servers.together, first, "Once upon", 8))
    conditions.report("loading beside a stream", 0, 1)
    began = time.monotonic()
    quiet = asyncio.run(_ask(servers.together, first, "Once upon", 256))
    time.sleep(max(0.0, 10.5 - (time.monotonic() - began)))  # what held the loop before is forgotten
    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(_timed, partial(post_json, servers.together, "/v1/models/load", {"model": second}))
        gaps: list[float] = []
        while not loading.done():
            gaps += _gaps(asyncio.run(_ask(servers.together, first, "Once upon", 64)))
        blocked = float(_BLOCKED.findall(get_text(servers.together, "/metrics"))[0])
        seconds = loading.result()
    note = f"loaded in {seconds:.1f} s; longest gap of the stream {1e3 * max(gaps):.0f} ms, {1e3 * max(_gaps(quiet)):.0f} before"
    return [Claim("lag", f"longest that the event loop was held while {second} was loaded", "<=", 50.0, 1e3 * blocked, "ms", note)]


def _same(conditions: Conditions, servers: _Servers, scale: _Scale) -> Claim:
    """Sampled tokens and logprobs of both models, asked at once, as each alone says them."""
    rng = random.Random(conditions.seed)
    bodies = [
        {
            "model": model, "prompt": rng.choice(_TEXTS) * rng.randint(1, 12), "seed": number, "temperature": 0.8,
            "max_tokens": rng.randint(4, 32), "logprobs": 2, "ignore_eos": True,
        }
        for number in range(scale.asked) for model in servers.models
    ]  # fmt: skip
    conditions.report("each model alone", 0, 2)
    alone = [post_json(servers.alone[str(body["model"])], "/v1/completions", body)["choices"] for body in bodies]
    conditions.report("both at once", 1, 2)
    with ThreadPoolExecutor(8) as pool:
        both = list(pool.map(lambda body: post_json(servers.together, "/v1/completions", body)["choices"], bodies))
    same = 100 * sum(one == other for one, other in zip(alone, both, strict=True)) / len(bodies)
    return Claim(
        "same", "tokens and logprobs of both models at once, as alone", "==", 100, same, "% same bits", f"{len(bodies)} requests"
    )


def _speed(conditions: Conditions, servers: _Servers, scale: _Scale) -> Claim:
    """Streams of both models in one server, and in two servers that share the machine."""

    def both(urls: Sequence[str]) -> float:
        async def all_streams() -> list[Stream]:
            asks = [_ask(url, model, "A list of rivers:", scale.output) for url, model in zip(urls, servers.models, strict=True)
                    for _ in range(scale.streams)]  # fmt: skip
            return await asyncio.gather(*asks)

        began = time.perf_counter()
        found = asyncio.run(all_streams())
        return len(found) * scale.output / (max(one.times[-1] for one in found) - began)

    split = [servers.alone[model] for model in servers.models]
    variants = [partial(both, [servers.together] * 2), partial(both, split)]
    one, two = interleave(variants, scale.rounds, partial(conditions.report, "both busy"))
    note = f"{statistics.median(one):.0f} and {statistics.median(two):.0f} tokens/s"
    what = f"tokens/s of {scale.streams} streams of each model, one server / two servers"
    return Claim("throughput", what, ">=", 0.95, median_ratio(one, two), "x", note)


def _leaving(conditions: Conditions, servers: _Servers) -> Claim:
    """A model is unloaded while it streams: what runs ends as it should, and the next request brings it back."""
    conditions.report("leaving beside a stream", 0, 1)
    model, tokens = servers.models[1], 200
    unloading = threading.Thread(target=post_json, args=(servers.together, "/v1/models/unload", {"model": model}))
    body = {"model": model, "prompt": "Once upon a time", "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
    with ThreadPoolExecutor(1) as pool:
        whole = pool.submit(post_json, servers.together, "/v1/completions", body)
        time.sleep(0.2)
        unloading.start()
        got = whole.result()
        unloading.join()
    gone = (
        next(one for one in json.loads(get_text(servers.together, "/v1/models"))["data"] if one["id"] == model)["state"] == "cold"
    )
    back = post_json(servers.together, "/v1/completions", body)
    well = gone and got["usage"]["completion_tokens"] == tokens and got["choices"] == back["choices"]
    note = "and the same request afterwards brought it back and got the same"
    return Claim(
        "leaving", "a request that ran when its model was told to leave got all its tokens", "==", 1, float(well), "", note
    )


async def _ask(url: str, model: str, prompt: str, tokens: int) -> Stream:
    body = {"model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True, "stream": True}
    return await stream(parse_url(url), "/v1/completions", body)


def _gaps(one: Stream) -> list[float]:
    return [after - before for before, after in zip(one.times, one.times[1:], strict=False)]


def _timed(work: partial[Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


EXPERIMENT = Experiment(
    name="several_models",
    title="Two models in one server say what they say alone, and come and go without stopping each other's streams.",
    source="the same models, each in a server of its own",
    minutes=3,
    run=run,
)
