"""The extraction task: real lines, right answers, nothing held out that was learnt, the same for the same seed."""

from __future__ import annotations

import ast

from headrace.evaluation.signature_task import exercises


def test_answers_are_those_of_the_parser() -> None:
    learn, held = exercises(80, 30, seed=3)
    assert (len(learn), len(held)) == (80, 30)
    for one in (*learn, *held):
        tree = ast.parse(f"{one.line} pass").body[0]
        assert isinstance(tree, ast.FunctionDef)
        names = [arg.arg for arg in (*tree.args.posonlyargs, *tree.args.args, *tree.args.kwonlyargs)]
        assert one.answer == f"{tree.name}: {', '.join(names)}"
        assert [message["role"] for message in one.conversation] == ["system", "user", "assistant"]


def test_what_is_held_out_is_not_learnt() -> None:
    learn, held = exercises(150, 60, seed=0)
    assert len({one.line for one in learn} & {one.line for one in held}) <= 3  # methods of one name in two modules
    assert len({one.line for one in learn}) == 150
    assert exercises(20, 5, seed=1) == exercises(20, 5, seed=1)
    assert exercises(20, 5, seed=1) != exercises(20, 5, seed=2)
