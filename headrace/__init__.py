"""headrace: one server for models. ``from headrace import LLM`` runs one in this process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headrace.engine.llm import LLM

__all__ = ["LLM", "__version__"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import ``LLM`` on first use only: ``import headrace`` alone stays free of cost."""
    if name == "LLM":
        from headrace.engine.llm import LLM

        return LLM
    raise AttributeError(f"module 'headrace' has no attribute '{name}'")
