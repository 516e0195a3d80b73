"""Memory for pages that models have in common: never more than there is, a floor for each, and its own part for who wants it."""

from __future__ import annotations

import random
from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.server.lending import Tenant, divide, floor_of


@dataclass
class Model:
    """An engine that uses ``usable`` and wants to hold ``want``; what it holds comes free by chance."""

    name: str
    own: int
    told: int
    usable: int
    held: int = 0
    want: int = 0

    def turn(self, rng: random.Random) -> None:
        if self.held > self.want or rng.random() < 0.3:
            self.held = max(0, min(self.held, self.want, self.held - rng.randint(0, 8)))
        self.usable = max(self.told, self.held)
        self.held = max(self.held, min(self.want, self.usable))

    def tenant(self, budget: int, floors: int) -> Tenant:
        most = budget - floors + floor_of(self.own)
        lacks = max(0, min(self.want, most) - self.usable)
        return Tenant(self.name, self.own, most, self.told, self.usable, self.usable - self.held, lacks, busy=self.want > 0)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(8, 200), min_size=2, max_size=4), st.integers(0, 10**6))
def test_the_budget_holds_floors_hold_and_whoever_wants_its_part_gets_it(parts: list[int], seed: int) -> None:
    rng = random.Random(seed)
    budget, floors = sum(parts), sum(map(floor_of, parts))
    models = [Model(str(n), own, own, own) for n, own in enumerate(parts)]

    def look() -> None:
        for name, size in divide([one.tenant(budget, floors) for one in models], budget).items():
            models[int(name)].told = size
        for one in models:
            one.turn(rng)
            assert one.told >= floor_of(one.own)
        assert sum(max(one.told, one.usable) for one in models) <= budget

    for _ in range(60):
        if rng.random() < 0.2:
            one = rng.choice(models)
            one.want = rng.choice([0, rng.randint(0, one.own), rng.randint(0, budget)])
        look()
    hungry, others = models[0], models[1:]
    hungry.want, others[0].want = hungry.own, budget
    for other in others[1:]:
        other.want = 0
    for _ in range(300):
        others[0].held = min(others[0].held, others[0].told)  # its requests end, or give way
        look()
    assert hungry.usable >= hungry.own, "another wants everything, and does not get that"
    hungry.want = 0
    for _ in range(300):
        look()
    assert others[0].usable >= budget - sum(floor_of(one.own) for one in models if one is not others[0]), "idle ones lend"


def test_nothing_moves_while_nobody_lacks_and_idle_ones_give_before_busy_ones() -> None:
    idle = Tenant("idle", 100, 400, 100, 100, 100, 0, busy=False)
    busy = Tenant("busy", 100, 400, 100, 100, 60, 0, busy=True)
    poor = Tenant("poor", 100, 400, 100, 100, 0, 0, busy=True)
    assert divide([idle, busy, poor], 300) == {}
    lacking = Tenant("poor", 100, 400, 100, 100, 0, 50, busy=True)
    assert divide([idle, busy, lacking], 300) == {"idle": 50}, "given when it is confirmed, not before"
    waiting = Tenant("idle", 100, 400, 50, 100, 100, 0, busy=False)
    assert divide([waiting, busy, lacking], 300) == {}, "it is on its way"
    given_up = Tenant("idle", 100, 400, 50, 50, 50, 0, busy=False)
    assert divide([given_up, busy, lacking], 300) == {"poor": 150}
    starved = Tenant("poor", 100, 400, 100, 100, 0, 100, busy=True)
    assert divide([idle, busy, starved], 300) == {"idle": 25, "busy": 75}
    assert divide([idle, busy, lacking], 310) == {"poor": 110, "idle": 60}, "what nobody has goes first"
