"""Bounds on what one call may ask for, each chosen so that a call at the bound costs milliseconds and not minutes."""

from __future__ import annotations

MAX_CHOICES = 16
"""n and best_of; pages are shared by forks, so the cost is decode rows."""

MAX_STOP_STRINGS = 16
MAX_STOP_LENGTH = 256
MAX_STOP_TOKEN_IDS = 256
MAX_LOGIT_BIAS = 1024
MAX_PROMPTS = 64
MAX_SEQUENCES = 128
"""Prompts × choices of one call."""

MAX_EMBEDDING_INPUTS = 256
MAX_SCORED = 256
"""Documents of one call, or pairs."""

MAX_MESSAGES = 2048
MAX_CONTENT_PARTS = 256
MAX_TOOLS = 64
MAX_TOOL_CALLS = 64
MAX_CHOICE_STRINGS = 256
MAX_GRAMMAR_CHARS = 65_536
MAX_NAME_LENGTH = 256
MAX_METADATA = 16
MAX_PROMPT_TOKENS = 1_000_000
MAX_TOKENIZE_CHARS = 65_536
MAX_TOKENS = 1_000_000
MAX_DEADLINE_MS = 86_400_000
MAX_JSON_WORK = 200_000
"""Commas, plus ten for each bracket, in one body: decoding holds the interpreter, so its work is bounded before it starts."""

MAX_SEED = 2**63 - 1
