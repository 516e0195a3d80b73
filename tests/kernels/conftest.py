from __future__ import annotations

from collections.abc import Iterator

import pytest

from headrace.kernels import _native
from headrace.kernels.formats import runnable_instruction_sets


@pytest.fixture(params=runnable_instruction_sets())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every instruction set this machine can run, one test each; the best one again afterwards."""
    _native.set_isa(request.param)
    yield request.param
    _native.set_isa("auto")


@pytest.fixture(scope="session")
def pools() -> tuple[_native.ThreadPool, _native.ThreadPool]:
    return _native.ThreadPool(1), _native.ThreadPool(2)
