"""The parts of the experiment that need no model."""

from __future__ import annotations

from headrace.evaluation.experiment import Conditions
from headrace.evaluation.experiments._vattention_memory import fault_claims, soak_claims


def test_a_write_through_an_alias_faults_and_a_long_life_stays_right() -> None:
    conditions = Conditions(quick=True, seed=1, model="", threads=None, report=lambda *_: None)
    for claim in (*fault_claims(), *soak_claims(conditions)):
        assert claim.holds, claim
