"""The experiments of ``headrace reproduce``: one module each, found by name, imported only when it runs.

A module here defines ``EXPERIMENT``, an :class:`headrace.evaluation.experiment.Experiment` of the module's own name.
"""

from __future__ import annotations

import importlib
import pkgutil

from headrace.errors import HeadraceError
from headrace.evaluation.experiment import Experiment
from headrace.settings.nearest import suggestion


def names() -> tuple[str, ...]:
    """Names of all experiments, in alphabetical order."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")))


def find(name: str) -> Experiment:
    """The experiment of that name. Raises ``invalid_value`` with the nearest name for an unknown one."""
    if name not in names():
        known = ", ".join(names()) or "none yet"
        raise HeadraceError("invalid_value", f"no experiment '{name}'{suggestion(name, names())} (known: {known})", param="name")
    experiment = importlib.import_module(f"{__name__}.{name}").EXPERIMENT
    assert isinstance(experiment, Experiment)
    return experiment
