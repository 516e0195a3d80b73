"""How a group of instances behaves."""

from __future__ import annotations

from dataclasses import dataclass, field

from headrace.errors import HeadraceError
from headrace.placement.dispatch import DispatchRule
from headrace.placement.joining import Joining
from headrace.placement.pairing import PairingRule
from headrace.placement.roles import Role
from headrace.placement.scaling import ScalingRule


@dataclass(frozen=True, slots=True)
class GroupOptions:
    """How a group behaves. ``ping_seconds``: between signs of life; one who owes one for ``hang_seconds`` is ended.

    ``round_seconds``: between looks at who should give requests to whom; 0: never. ``restart_seconds``: wait after a first crash.
    ``roles``: by instance; empty: ``all`` for each.
    ``ask_first``: a page that the destination of a move has is not sent; off: all are, to compare with.
    ``scaling``: between its least and ``instances`` of them run, as the load wants, looked at every ``look_seconds``.
    ``joining``: where instances of other machines come in; none: all are processes of this one.
    """

    instances: int
    ping_seconds: float = 1.0
    hang_seconds: float = 20.0
    round_seconds: float = 0.1
    restart_seconds: float = 0.5
    roles: tuple[Role, ...] = ()
    joining: Joining | None = None
    scaling: ScalingRule | None = None
    look_seconds: float = 1.0
    ask_first: bool = True
    dispatch: DispatchRule = field(default_factory=DispatchRule)
    pairing: PairingRule = field(default_factory=PairingRule)

    def __post_init__(self) -> None:
        if self.instances < 1 or len(self.roles) not in (0, self.instances):
            message = f"{self.instances} instances can't have {len(self.roles)} roles; give at least 1, and a role for each"
            raise HeadraceError("invalid_setting", message, param="instances")

    @property
    def each(self) -> tuple[Role, ...]:
        """The role of each instance."""
        every: Role = "all"
        return self.roles or (every,) * self.instances
