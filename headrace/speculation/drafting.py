"""What is known of one choice that may be drafted for."""

from __future__ import annotations

from dataclasses import dataclass

from headrace.scheduling.acceptance import OwnRecord
from headrace.speculation.proposer import Proposal, Stream


@dataclass(slots=True, eq=False)
class Drafting:
    """``most``: tokens that may be drafted for one step. ``room``: those that may still be wanted. ``records``: one for each
    proposer; ``authors``: those that may have something to say. ``proposal``: the one of this step, and its ``author``;
    ``chances``: what was foreseen of its tokens. ``asked``: somebody was, for this step. ``misses``: times in a row that nobody had
    a right guess; ``rest``: steps for which nobody is asked therefore: looking up costs little, but text that does not repeat would
    pay it for every token."""

    stream: Stream
    most: int
    records: list[OwnRecord]
    authors: list[int]
    room: int = 0
    proposal: Proposal | None = None
    author: int = 0
    chances: list[float] | None = None
    asked: bool = False
    misses: int = 0
    rest: int = 0
