"""Names that answers carry."""

from __future__ import annotations

import secrets

import headrace


def new_id(kind: str) -> str:
    """A fresh id such as ``chatcmpl-…``."""
    return f"{kind}-{secrets.token_hex(16)}"


def fingerprint() -> str:
    """What an answer depends on besides request and model: the release, since nothing else changes a token."""
    return f"headrace-{headrace.__version__}"
