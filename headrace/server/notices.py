"""What the server says to whoever started it."""

from __future__ import annotations

import logging

from headrace.settings.log_lines import NOTICES

_logger = logging.getLogger(NOTICES)


def say(message: str) -> None:
    """One line for the operator."""
    _logger.info(message)
