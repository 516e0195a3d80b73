"""Recipes: steps in their order, and what a model doesn't allow is refused by name."""

from __future__ import annotations

import pytest
from tiny_sources import CONFIGS

from headrace.errors import HeadraceError
from headrace.quantization.recipe import STEPS, WIDE_STEPS, Recipe, check_group, parse_steps, possible_steps


def test_steps_are_done_in_their_order() -> None:
    assert parse_steps("gptq, rotate", CONFIGS["llama"], "8") == ("rotate", "gptq")
    assert parse_steps("none", CONFIGS["llama"], "8") == ()
    assert parse_steps("all", CONFIGS["llama"], "8") == tuple(STEPS)


def test_automatic_steps_rotate_only_for_narrow_rows() -> None:
    assert parse_steps("auto", CONFIGS["llama"], "16") == WIDE_STEPS
    for activations in ("8", "mixed"):
        assert parse_steps("auto", CONFIGS["llama"], activations) == tuple(STEPS)
        assert "rotate" not in parse_steps("auto", CONFIGS["gemma3"], activations)


def test_an_unknown_step_names_the_nearest() -> None:
    with pytest.raises(HeadraceError, match=r"unknown step 'rotat'.*rotate"):
        parse_steps("rotat", CONFIGS["llama"], "8")


def test_norms_behind_blocks_rule_out_rotation_alone() -> None:
    assert possible_steps(CONFIGS["gemma3"]) == tuple(step for step in STEPS if step != "rotate")
    with pytest.raises(HeadraceError, match="gemma3 models can't rotate"):
        parse_steps("rotate,gptq", CONFIGS["gemma3"], "8")


def test_a_group_must_divide_every_matrix() -> None:
    check_group(32, CONFIGS["llama"])
    check_group(0, CONFIGS["llama"])
    with pytest.raises(HeadraceError, match=r"group 64 does not divide the MLP's inner size 96 .*usable are 32, channel"):
        check_group(64, CONFIGS["llama"])


def test_only_steps_that_look_at_activations_need_calibration() -> None:
    assert not Recipe(steps=("rotate", "rotate-heads")).calibrated
    assert Recipe(steps=("clip",)).calibrated


def test_mixed_rows_are_wide_only_before_down() -> None:
    kinds = ("qkv", "o", "gate_up", "down")
    assert [Recipe(activations="mixed").row_bits(kind) for kind in kinds] == [8, 8, 8, 16]
    assert [Recipe(activations="8").row_bits(kind) for kind in kinds] == [8] * 4
    assert [Recipe(activations="16").row_bits(kind) for kind in kinds] == [16] * 4
