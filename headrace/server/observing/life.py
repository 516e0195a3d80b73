"""The life of one generating request in times and counts: no text, no tokens."""

from __future__ import annotations

from dataclasses import dataclass, field

MOST_EVENTS = 128


@dataclass(slots=True)
class Life:
    """One prompt of a call from arrival to end. ``began``: seconds since 1970; all other times are seconds after it.

    ``model``: whose engine runs it; ``name``: what the answer says, which may be an adapter's.

    ``queued``: when a step first computed something of it; ``first`` and ``last``: its first and newest token; ``ended``: when
    nothing more came. ``finish``: how each choice ended, in that order. ``chunks``: (begin, seconds, prompt rows) of steps, and
    ``setbacks``: when it had to give its pages back; both only while somebody watched.
    """

    request_id: str
    model: str
    name: str
    tenant: str
    label: str
    began: float
    started: float
    prompt_tokens: int
    choices: int
    engine_id: int
    max_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    queued: float | None = None
    first: float | None = None
    last: float | None = None
    ended: float | None = None
    longest_gap: float = 0.0
    finish: list[str] = field(default_factory=list)
    chunks: list[tuple[float, float, int]] = field(default_factory=list)
    setbacks: list[float] = field(default_factory=list)

    def chunk(self, began: float, seconds: float, rows: int) -> None:
        """A step computed rows of its prompt; ``began`` on the monotonic clock."""
        if len(self.chunks) < MOST_EVENTS:
            self.chunks.append((began - self.started, seconds, rows))

    def setback(self, at: float) -> None:
        """It gave its pages back; ``at`` on the monotonic clock."""
        if len(self.setbacks) < MOST_EVENTS:
            self.setbacks.append(at - self.started)
