"""Tasks for speculation: of the same kinds for each seed, and no seed's answer is another's."""

from __future__ import annotations

from headrace.evaluation.guessable_texts import REPEATING, guessable_tasks


def test_each_seed_asks_for_the_same_kinds_and_for_other_answers() -> None:
    made = [guessable_tasks(seed) for seed in range(6)]
    assert all(tuple(tasks) == (*REPEATING, "chat") for tasks in made)
    for task in made[0]:
        assert len({tasks[task] for tasks in made}) == 6
    assert made[3] == guessable_tasks(3)
