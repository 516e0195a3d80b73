"""Log lines on stderr, for people or as JSON objects; never with a prompt or an answer in them."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any

FORMATS = ("text", "json")
NOTICES = "headrace.notices"
"""The logger of what a server says to whoever started it."""


class TextLines(logging.Formatter):
    """``time LEVEL logger: message``; notices only say who speaks."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """One line; a traceback follows on further ones."""
        if record.name == NOTICES:
            return f"headrace: {record.getMessage()}"
        return super().format(record)


class JsonLines(logging.Formatter):
    """One object a line: ``time`` (UTC), ``level``, ``logger``, ``message``, and the ``fields`` that a record was given."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, whatever the message holds."""
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "time": f"{seconds}.{int(record.msecs):03d}Z", "level": record.levelname.lower(), "logger": record.name,
            "message": record.getMessage(),
        }  # fmt: skip
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def configure_logs(form: str) -> None:
    """Let everything that headrace logs go to stderr in this form, from level INFO on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if form == "json" else TextLines())
    logger = logging.getLogger("headrace")
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False
