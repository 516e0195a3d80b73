"""Models that lend each other pages: a busy one beside an idle one, with pages lent and with a part that is fixed."""

from __future__ import annotations

import re
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from typing import Any

from headrace.evaluation.experiment import Claim, Conditions, interleave
from headrace.evaluation.own_server import get_text, own_server, post_json
from headrace.evaluation.statistics import median_ratio

_POOL_MIB = 24  # 34 pages of the model for each of two
_BUSY, _IDLE = "busy", "idle"
_PAGES = re.compile(r'^headrace_model_pages_total\{model="(\w+)"\} (\S+)', re.MULTILINE)


def lending(conditions: Conditions) -> tuple[Claim, ...]:
    """One model twice, so that both parts are equal. The off side is a server of its own with that part."""
    streams, output = (12, 64) if conditions.quick else (16, 160)
    with ExitStack() as stack:
        both = stack.enter_context(_server(conditions, _POOL_MIB, (_BUSY, _IDLE)))
        alone = stack.enter_context(_server(conditions, _POOL_MIB // 2, (_BUSY,)))
        plenty = stack.enter_context(_server(conditions, 8 * _POOL_MIB, (_BUSY,)))
        for name in (_BUSY, _IDLE):
            _ask(both, name, "Once upon", 4)
        own = _pages(both)[_BUSY]
        answers: list[list[Any]] = []

        def burst(url: str, name: str = _BUSY) -> float:
            began = time.perf_counter()
            with ThreadPoolExecutor(streams) as pool:
                asked = [pool.submit(_ask, url, name, f"{number} rivers run", output, number) for number in range(streams)]
                answers.append([one.result() for one in asked])
            return streams * output / (time.perf_counter() - began)

        sides = [partial(burst, url) for url in (both, alone)]
        lent, fixed = interleave(sides, 1 if conditions.quick else 3, partial(conditions.report, "pages lent"))
        borrowed = _pages(both)[_BUSY]
        burst(both, _IDLE)
        back = _pages(both)
        burst(plenty)
    same = sum(one == answers[-1] for one in answers)
    return (
        Claim("lent", "pages of a busy model beside an idle one / its own part", ">=", 1.5, borrowed / own, "x",
              f"{borrowed:.0f} and {own:.0f} pages"),
        Claim("lent_speed", f"tokens/s of {streams} streams, with what the idle model lends / on its own part", ">=", 1.1,
              median_ratio(lent, fixed), "x", f"{lent[0]:.0f} and {fixed[0]:.0f} tokens/s"),
        Claim("lent_back", "pages that the other has when it is busy / its own part", ">=", 1.0, back[_IDLE] / own, "x",
              f"{back[_IDLE]:.0f} and {back[_BUSY]:.0f} pages"),
        Claim("lent_budget", "pages of both / the budget's", "<=", 1.0, sum(back.values()) / (2 * own), "x"),
        Claim("lent_same", "tokens and logprobs, lent and fixed, as with plenty of pages", "==", 100, 100 * same / len(answers),
              "% same bits", f"{len(answers)} times {streams} requests"),
    )  # fmt: skip


def _server(conditions: Conditions, pool_mib: int, names: tuple[str, ...]) -> AbstractContextManager[str]:
    options = ("--speculation", "off", "--prefix-reuse", "off", "--pool-mib", str(pool_mib), "--context-length", "512")
    return own_server([f"{name}={conditions.model}" for name in names], conditions.threads, *options)


def _ask(url: str, model: str, prompt: str, tokens: int, seed: int = 0) -> Any:
    body = {
        "model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0.8, "seed": seed, "logprobs": 1, "ignore_eos": True,
    }  # fmt: skip
    return post_json(url, "/v1/completions", body)["choices"]


def _pages(url: str) -> dict[str, float]:
    """What each model has, once nothing changes any more."""
    time.sleep(0.5)
    return {name: float(count) for name, count in _PAGES.findall(get_text(url, "/metrics"))}
