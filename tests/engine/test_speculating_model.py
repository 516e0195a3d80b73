"""Every proposer with the real model: each helps where it should, and no token is another."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import pytest
from knowing import FreeRows

from headrace.engine.build import BuiltEngine, build_engine
from headrace.engine.sampling_params import GrammarSpec, SamplingParams
from headrace.engine.settings import EngineSettings
from headrace.engine.wire import SpeculationGauges, Submit
from headrace.text.open_tokenizer import open_tokenizer
from headrace.text.tokenizer import Tokenizer

pytestmark = pytest.mark.model

SCHEMA = (
    '{"type":"object","properties":{"first_name":{"enum":["Ada","Grace"]},"year_of_birth":{"type":"integer","maximum":9999,"minimum":0},'
    '"favourite_colour":{"enum":["red","green"]}},"required":["first_name","year_of_birth","favourite_colour"],'
    '"additionalProperties":false}'
)
TEXT = "The mill stands by the river. The wheel turns with the water. The mill stands by the river. The wheel turns with"


@pytest.fixture(scope="module")
def built() -> Iterator[BuiltEngine]:
    made = build_engine(EngineSettings(pool_mib=64, threads=2))
    made.engine.scheduler.cost = FreeRows()
    yield made
    made.close()


@pytest.fixture(scope="module")
def tokenizer(built: BuiltEngine) -> Tokenizer:
    return open_tokenizer(built.model.tokenizer_source)


def answer(built: BuiltEngine, submit: Submit) -> tuple[list[int], int]:
    """(tokens, how many of them were drafted)."""
    engine, tokens, accepted = built.engine, [], 0
    engine.submit(submit)
    while engine.live:
        outputs = engine.step()
        engine.check_integrity()
        if outputs is None:
            engine.wait_compiled(1.0)
            continue
        for output in outputs.outputs:
            tokens += output.tokens
            accepted += output.accepted
    return tokens, accepted


def gauges(built: BuiltEngine) -> SpeculationGauges:
    found = built.engine.gauges().speculation
    assert found is not None
    return found


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("kind", ["lookup", "grammar", "prediction", "answers"])
def test_each_proposer_is_right_sometimes_and_changes_nothing(
    kind: str, temperature: float, built: BuiltEngine, tokenizer: Tokenizer
) -> None:
    grammar = GrammarSpec("json_schema", SCHEMA) if kind == "grammar" else None
    params = SamplingParams(max_tokens=30, temperature=temperature, seed=5, grammar=grammar, top_logprobs=1)
    text = TEXT if kind == "lookup" else f"{kind}: once upon a time there was a"
    submit = Submit(1, tokenizer.encode(text), params)
    plain, _ = answer(built, msgspec.structs.replace(submit, speculation=0))
    if kind == "answers":  # said once, and asked for again
        answer(built, submit)
    if kind == "prediction":
        submit = msgspec.structs.replace(submit, prediction=[*plain[:12], 5, 6, *plain[14:]])
    before = gauges(built)
    tokens, accepted = answer(built, submit)
    assert tokens == plain
    assert accepted > 0
    after = gauges(built)
    assert after.accepted - before.accepted >= accepted
    assert after.proposed - before.proposed >= after.drafted - before.drafted >= accepted
