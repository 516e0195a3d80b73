"""The proposers that there are, by name."""

from __future__ import annotations

from collections.abc import Callable

from headrace.errors import HeadraceError
from headrace.scheduling.registry import Registry
from headrace.settings.nearest import suggestion
from headrace.speculation.lookup import OwnRepeats
from headrace.speculation.proposer import Proposer
from headrace.speculation.said import ExpectedAnswer, ForcedTokens, RecentAnswers

PROPOSERS: Registry[Callable[[], Proposer]] = Registry(
    "speculation", {"lookup": OwnRepeats, "answers": RecentAnswers, "grammar": ForcedTokens, "prediction": ExpectedAnswer}
)
OFF, AUTO = "off", "auto"


def open_proposers(choice: str) -> list[Proposer]:
    """``auto``: all of them, ``off``: none, else those named, with commas between. Raises ``invalid_setting``."""
    if choice == OFF:
        return []
    names = PROPOSERS.names if choice == AUTO else tuple(name.strip() for name in choice.split(","))
    if len(set(names)) < len(names):
        raise HeadraceError("invalid_setting", f"speculation names a proposer twice: {choice}", param="speculation")
    return [_known(name)() for name in names]


def _known(name: str) -> Callable[[], Proposer]:
    if name in (OFF, AUTO):
        raise HeadraceError("invalid_setting", f"speculation is {name} alone, not beside others", param="speculation")
    if name not in PROPOSERS.names:
        known = (AUTO, OFF, *PROPOSERS.names)
        message = f"speculation must be auto, off, or of {', '.join(PROPOSERS.names)} with commas between, not '{name}'"
        raise HeadraceError("invalid_setting", message + suggestion(name, known), param="speculation")
    return PROPOSERS.get(name)
