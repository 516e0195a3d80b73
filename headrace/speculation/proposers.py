"""The proposers that there are, by name, and what an option says of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from headrace.errors import HeadraceError
from headrace.scheduling.registry import Registry
from headrace.settings.nearest import suggestion
from headrace.speculation.lookup import OwnRepeats
from headrace.speculation.proposer import Proposer
from headrace.speculation.said import ExpectedAnswer, ForcedTokens, RecentAnswers

PROPOSERS: Registry[Callable[[], Proposer]] = Registry(
    "speculation", {"lookup": OwnRepeats, "answers": RecentAnswers, "grammar": ForcedTokens, "prediction": ExpectedAnswer}
)
OFF, AUTO, DRAFT = "off", "auto", "draft:"


@dataclass(frozen=True, slots=True)
class ProposerChoice:
    """Who guesses: ``names`` of those that look things up, and the name or path of a model that drafts (empty: none)."""

    names: tuple[str, ...]
    draft: str = ""


def choose_proposers(option: str) -> ProposerChoice:
    """Read the option: ``off``; or, with commas between, ``auto`` (all that look up) or names of such, and ``draft:MODEL``.

    Raises ``invalid_setting``.
    """
    if option == OFF:
        return ProposerChoice(())
    words = [word.strip() for word in option.split(",")]
    drafts = [word.removeprefix(DRAFT) for word in words if word.startswith(DRAFT)]
    names = [word for word in words if not word.startswith(DRAFT)]
    if len(drafts) > 1 or len(set(names)) < len(names):
        raise HeadraceError("invalid_setting", f"speculation names a proposer twice: {option}", param="speculation")
    if drafts == [""]:
        raise HeadraceError("invalid_setting", "speculation has draft: without a model behind it", param="speculation")
    draft = drafts[0] if drafts else ""
    if names == [AUTO]:
        return ProposerChoice(PROPOSERS.names, draft)
    for name in names:
        _check_known(name)
    return ProposerChoice(tuple(names), draft)


def open_proposers(option: str) -> list[Proposer]:
    """Those of the option that look things up, fresh ones."""
    return [PROPOSERS.get(name)() for name in choose_proposers(option).names]


def _check_known(name: str) -> None:
    if name in (OFF, AUTO):
        message = f"speculation is {name} alone" + (", or with draft:MODEL" if name == AUTO else "") + ", not beside others"
        raise HeadraceError("invalid_setting", message, param="speculation")
    if name not in PROPOSERS.names:
        known = (AUTO, OFF, *PROPOSERS.names)
        valid = ", ".join(PROPOSERS.names)
        message = f"speculation must be auto, off, or of {valid}, draft:MODEL with commas between, not '{name}'"
        message += suggestion(name, known)
        raise HeadraceError("invalid_setting", message, param="speculation")
