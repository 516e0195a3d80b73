"""headrace: one server for models, exact and batched, on the hardware you have.

::

    from headrace import LLM, SamplingParams

    with LLM("smollm2") as llm:
        print(llm.generate("The capital of France is")[0].text)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from headrace.engine.llm import LLM
    from headrace.engine.sampling_params import SamplingParams

__version__ = "0.1.0"
__all__ = ["LLM", "SamplingParams", "__version__"]


def __getattr__(name: str) -> object:
    """Import what is asked for and nothing before: the command line must not pay for the engine."""
    if name in __all__:
        from headrace.kernels.cpu import require_cpu

        require_cpu()
    if name == "LLM":
        from headrace.engine.llm import LLM

        return LLM
    if name == "SamplingParams":
        from headrace.engine.sampling_params import SamplingParams

        return SamplingParams
    raise AttributeError(f"module 'headrace' has no attribute {name!r}")
