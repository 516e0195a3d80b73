"""What was said elsewhere: found for the same tenant and template, and for nobody else."""

from __future__ import annotations

import random

import pytest

from headrace.speculation.proposer import Ask, Proposal, Stream
from headrace.speculation.said import LOG_TOKENS, MOST_LOGS, ExpectedAnswer, ForcedTokens, RecentAnswers

PROMPT = list(range(100, 130))


def answered(proposer: RecentAnswers, stream: Stream, answer: list[int]) -> None:
    stream.tokens += answer
    proposer.ended(stream)


def ask(proposer: RecentAnswers | ExpectedAnswer | ForcedTokens, stream: Stream, most: int = 8) -> Proposal | None:
    [proposal] = proposer.propose([Ask(stream, most)])
    return proposal


@pytest.mark.parametrize(
    ("other", "found"),
    [
        (Stream(2, [*PROMPT, 7, 8, 9], 30, "a", "a"), True),
        (Stream(2, [*PROMPT[:16], 55, 7, 8, 9], 17, "a", "a"), True),
        (Stream(2, [*PROMPT, 7, 8, 9], 30, "b", "b"), False),
        (Stream(2, [*PROMPT, 7, 8, 9], 30, "a", ("a", ((1, 1.0),))), False),
        (Stream(2, [1, *PROMPT, 7, 8, 9], 31, "a", "a"), False),
    ],
    ids=["same", "same beginning", "another tenant", "other adapters", "another template"],
)
def test_answers_are_found_by_their_tenant_and_template_only(other: Stream, found: bool) -> None:
    proposer = RecentAnswers()
    answered(proposer, Stream(1, list(PROMPT), 30, "a", "a"), [7, 8, 9, 10, 11, 12])
    proposal = ask(proposer, other)
    assert (proposal is not None) == found
    assert proposal is None or list(proposal.tokens) == [10, 11, 12]


def test_an_answer_is_found_from_its_beginning_and_never_runs_into_the_next() -> None:
    proposer = RecentAnswers()
    answered(proposer, Stream(1, list(PROMPT), 30), [7, 8, 9, 10])
    answered(proposer, Stream(2, list(PROMPT), 30), [20, 21, 22, 23])
    proposal = ask(proposer, Stream(3, list(PROMPT), 30))
    assert proposal is not None
    assert list(proposal.tokens) == [20, 21, 22, 23]


def test_what_is_remembered_is_bounded() -> None:
    proposer, rng = RecentAnswers(), random.Random(0)
    for number in range(3 * MOST_LOGS):
        for _ in range(3):
            answered(proposer, Stream(number, [number, *PROMPT], 31), [rng.randrange(1000) for _ in range(LOG_TOKENS // 2)])
    logs = proposer._logs
    assert len(logs) == MOST_LOGS
    assert max(len(log.tokens) for log in logs.values()) <= LOG_TOKENS + 16


def test_an_expected_answer_is_followed_and_met_again_behind_a_change() -> None:
    expected = list(range(200, 240))
    stream, proposer = Stream(1, [*PROMPT, 200], 30, prediction=expected), ExpectedAnswer()
    first = ask(proposer, stream)
    assert first is not None
    assert list(first.tokens) == expected[1:9]
    stream.tokens += [201, 202, 5]  # something else
    ask(proposer, stream)
    stream.tokens += [204, 205, 206]
    again = ask(proposer, stream)
    assert again is not None
    assert list(again.tokens) == expected[7:15]
    assert ask(proposer, Stream(2, [*PROMPT, 200], 30)) is None


def test_forced_tokens_come_from_the_grammar() -> None:
    stream = Stream(1, [*PROMPT], 30, forced=lambda: [4, 5, 6])
    proposal = ask(ForcedTokens(), stream, 2)
    assert proposal is not None
    assert list(proposal.tokens) == [4, 5]
    assert ask(ForcedTokens(), Stream(2, [*PROMPT], 30)) is None
