"""How long the fuzz tests try: once in the suite, FUZZ_TIMES as long by `make fuzz`."""

from __future__ import annotations

import os

TIMES = int(os.environ.get("FUZZ_TIMES", "1"))
