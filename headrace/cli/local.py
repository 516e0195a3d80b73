"""A model inside the command's own process: loading it with progress, and the sampling flags of ``generate`` and ``chat``."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

from headrace.engine.settings import EngineSettings, ModelSettings
from headrace.errors import HeadraceError
from headrace.scheduling.settings import SchedulingSettings
from headrace.settings.declaration import option, validate
from headrace.settings.sources import Effective

if TYPE_CHECKING:
    from headrace.engine.llm import LLM
    from headrace.engine.sampling_params import SamplingParams


@dataclass(frozen=True, slots=True)
class SamplingArguments:
    """How a terminal session samples; programs have many more ways."""

    max_tokens: int = option(256, unit="tokens", minimum=1, maximum=1_000_000, help="Longest answer.")
    temperature: float = option(0.0, minimum=0.0, maximum=2.0, help="0 takes the most likely token each time.")
    top_p: float = option(1.0, minimum=0.01, maximum=1.0, help="Draw from the likeliest tokens that make up this share.")
    top_k: int = option(0, minimum=0, maximum=1_000_000, help="Draw from this many likeliest tokens; 0: all.")
    repetition_penalty: float = option(1.0, minimum=0.01, maximum=2.0, help="Above 1 avoids what was said before.")

    def __post_init__(self) -> None:
        validate(self)

    def params(self) -> SamplingParams:
        """The same for the engine."""
        from headrace.engine.sampling_params import SamplingParams

        return SamplingParams(
            max_tokens=self.max_tokens, temperature=self.temperature, top_p=self.top_p, top_k=self.top_k,
            repetition_penalty=self.repetition_penalty,
        )  # fmt: skip


def one_engine(effective: Effective) -> EngineSettings:
    """The settings of the one engine that a verb runs. Raises ``invalid_setting`` when several models are named."""
    models = effective.of(ModelSettings).model
    if len(models) != 1:
        raise HeadraceError("invalid_setting", f"model must name one model here, not {len(models)}", param="model")
    return dataclasses.replace(effective.of(EngineSettings), model=models[0])


def prepare(model: str) -> None:
    """Put a model that comes in parts together, with a bar, so that whoever opens it next finds it ready."""
    from headrace.models.catalog import find_model, open_model

    card = find_model(model)
    if card.state == "to assemble":
        from headrace.cli.models import Loading
        from headrace.cli.output import progress_bar

        with progress_bar() as bar:
            open_model(card, Loading(bar))


def open_llm(effective: Effective) -> LLM:
    """Load the model that the settings name. Raises what :class:`headrace.engine.llm.LLM` raises."""
    from headrace.cli.output import stderr
    from headrace.engine.llm import LLM

    settings = one_engine(effective)
    prepare(settings.model)
    with stderr().status(f"loading {settings.model}"):
        return LLM(settings=settings, scheduling=effective.of(SchedulingSettings))
