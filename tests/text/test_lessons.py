"""The mask of what is learnt covers exactly the answers and their end tokens, in every template and for any text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.errors import HeadraceError
from headrace.models.catalog import find_model, open_model
from headrace.text.chat_template import ChatTemplate, Conversation
from headrace.text.lessons import lesson
from headrace.text.open_tokenizer import open_tokenizer
from headrace.text.tokenizer import Tokenizer

pytestmark = pytest.mark.model
CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
TRIMMING = CHATML.replace("m.content", "m.content | trim")
SPECIAL = ["<|im_end|>", "<|im_start|>", "assistant", "\n", " ", "ä", "🙂", "x", "\ue000"]
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.lists(st.sampled_from(SPECIAL), max_size=6).map("".join)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return open_tokenizer(open_model(find_model("smollm2")).tokenizer_source)


@pytest.fixture(scope="module", params=["own", "trimming", "none"])
def template(request: pytest.FixtureRequest, tokenizer: Tokenizer) -> Iterator[ChatTemplate]:
    source = {"own": tokenizer.chat_template, "trimming": TRIMMING, "none": None}[request.param]
    made = ChatTemplate(source, tokenizer)
    yield made
    made.close()


def turns(*contents: str) -> list[dict[str, Any]]:
    return [{"role": "user" if place % 2 == 0 else "assistant", "content": content} for place, content in enumerate(contents)]


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(TEXT, min_size=1, max_size=3), st.lists(TEXT.filter(str.strip), min_size=1, max_size=3), st.data())
def test_the_mask_is_the_answers_and_their_ends(
    template: ChatTemplate, tokenizer: Tokenizer, asked: list[str], said: list[str], data: st.DataObject
) -> None:
    said = (said * 3)[: len(asked)]
    messages = turns(*[text for pair in zip(asked, said, strict=True) for text in pair])
    places = list(range(1, len(messages), 2))
    learnt = sorted(data.draw(st.sets(st.sampled_from(places), min_size=1)))
    made = lesson(template, tokenizer, messages, learnt)
    runs: list[list[int]] = []
    for at, weight in enumerate(made.weights):
        assert weight in (0.0, 1.0)
        if weight and (not runs or runs[-1][-1] != at - 1):
            runs.append([])
        if weight:
            runs[-1].append(at)
    wanted = [messages[place]["content"] for place in learnt]
    assert len(runs) == len(wanted)
    for run, text in zip(runs, wanted, strict=True):
        ids = [made.tokens[at] for at in run]
        end = ids[-1:] if tokenizer.is_special(ids[-1]) else []
        assert ids[: len(ids) - len(end)] in (tokenizer.encode(text), tokenizer.encode(text.strip()))
        assert bool(end) or (template.is_fallback and run is not runs[-1])
    whole = template.render(Conversation(messages, add_generation_prompt=False)).plain
    known = tokenizer.decode(tokenizer.encode(whole))  # some tokenizers have no token for some characters
    if not template.is_fallback:
        assert known.startswith(tokenizer.decode(made.tokens, skip_special=False, continuation=False))
    assert made.weights[-1] == 1.0


def test_the_prompt_is_the_one_that_is_served(tokenizer: Tokenizer) -> None:
    """What stands before the answer are the very tokens of a request's prompt, and the answer's are those of its text alone."""
    template = ChatTemplate(tokenizer.chat_template, tokenizer)
    messages = turns("What is the capital of France?", "Paris, of course.")
    made = lesson(template, tokenizer, messages, [1])
    prompt = tokenizer.encode_template(template.render(Conversation(messages[:1])))
    answer = [*tokenizer.encode("Paris, of course."), tokenizer.id_of("<|im_end|>")]
    assert made.tokens == [*prompt, *answer]
    assert made.weights == [0.0] * len(prompt) + [1.0] * len(answer)
    template.close()


def test_white_space_is_learnt_where_the_template_keeps_it(tokenizer: Tokenizer) -> None:
    for source, text in ((CHATML, "  a b\n\n"), (TRIMMING, "a b")):
        template = ChatTemplate(source, tokenizer)
        made = lesson(template, tokenizer, turns("q", "  a b\n\n"), [1])
        learnt = [token for token, weight in zip(made.tokens, made.weights, strict=True) if weight]
        assert tokenizer.decode(learnt[:-1]) == text
        template.close()


def test_a_template_that_drops_or_repeats_answers_is_refused(tokenizer: Tokenizer) -> None:
    for source in ("{{ messages[0].content }}", "{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}"):
        template = ChatTemplate(source, tokenizer)
        with pytest.raises(HeadraceError) as refused:
            lesson(template, tokenizer, turns("q", "ok then"), [1])
        assert refused.value.code == "invalid_template"
        template.close()
