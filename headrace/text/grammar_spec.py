"""What a request may ask of the form of its output text."""

from __future__ import annotations

from typing import Literal

import msgspec

GrammarKind = Literal["json_object", "json_schema", "regex", "choice", "lark"]


class GrammarSpec(msgspec.Struct, frozen=True):
    """A constraint on the output text; ``source`` is a schema or grammar as text, a JSON list for ``choice``."""

    kind: GrammarKind
    source: str
