"""The commands of the README and the docs, executed as they stand."""

from __future__ import annotations

import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import headrace
from headrace.models.adapter import Adapter, LowRank, module_sides
from headrace.models.adapter_file import write_adapter
from headrace.models.catalog import find_model, open_model

ROOT = Path(headrace.__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
ADDRESS = "http://127.0.0.1:8080"
_BLOCK = re.compile(r"(?:<!-- ([^\n]*?) -->\n)?```(bash|python)\n(.*?)```", re.DOTALL)


@dataclass(frozen=True)
class Block:
    """One fenced block with the mark that stands above it."""

    where: str
    mark: str
    language: str
    source: str


def blocks() -> list[Block]:
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in _BLOCK.finditer(text):
            line = text.count("\n", 0, match.start(3)) + 1
            found.append(Block(f"{page.name}:{line}", match[1] or "", match[2], match[3]))
    return found


def marked(mark: str) -> list[Block]:
    return [block for block in blocks() if block.mark == mark]


def named(block: Block) -> str:
    return block.where


def run_block(block: Block, folder: Path, address: str = ADDRESS) -> str:
    """Run a block in an empty folder with ``headrace`` on the path; its output."""
    tools = folder / "bin"
    tools.mkdir()
    (tools / "headrace").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m headrace "$@"\n')
    (tools / "headrace").chmod(0o755)
    environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    source = block.source.replace(ADDRESS, address)
    command = ["bash", "-euo", "pipefail", "-c", source] if block.language == "bash" else [sys.executable, "-c", source]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, f"{block.where}:\n{done.stdout}{done.stderr}"
    return done.stdout


def small_adapter() -> Adapter:
    """One that changes a matrix of the default model's first layer."""
    sides = module_sides(open_model(find_model("smollm2")).config)
    inputs, outputs = sides[0]["q"]
    part = LowRank(np.full((1, inputs), 0x3C00, np.uint16), np.full((outputs, 1), 0x3C00, np.uint16), 1.0)
    return Adapter(({"q": part}, *({} for _ in sides[1:])), "smollm2")


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real server on a free port, ready, with the two adapters that the pages speak of."""
    root = tmp_path_factory.mktemp("adapters")
    for name in ("poet", "pirate"):
        write_adapter(root / name, small_adapter())
    command = [sys.executable, "-m", "headrace", "serve", "--port", "0", "--adapter-dir", str(root)]
    command += ["--state-dir", str(tmp_path_factory.mktemp("state"))]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            found, until = "", time.monotonic() + 90
            while " is ready" not in found:
                assert process.poll() is None, found
                if select.select([process.stderr], [], [], max(0.0, until - time.monotonic()))[0]:
                    found += os.read(process.stderr.fileno(), 65536).decode()  # readline would keep what select can't see
                assert time.monotonic() < until, found
            match = re.search(r"listening on (http://[\d.]+:\d+)", found)
            assert match is not None, found
            yield match[1]
        finally:
            process.terminate()
            assert process.wait(timeout=60) == 0


def test_every_block_says_whether_it_is_run() -> None:
    unknown = [
        block.where for block in blocks() if not re.fullmatch(r"run|run: server|run: model|run: finetune|not run: .+", block.mark)
    ]
    assert not unknown, f"mark these blocks: {unknown}"
    assert len([block for block in blocks() if block.mark.startswith("run")]) >= 10


@pytest.mark.parametrize("block", marked("run"), ids=named)
def test_commands(block: Block, tmp_path: Path) -> None:
    assert run_block(block, tmp_path).strip()


@pytest.mark.model
@pytest.mark.parametrize("block", marked("run: model"), ids=named)
def test_commands_with_a_model(block: Block, tmp_path: Path) -> None:
    assert "Paris" in run_block(block, tmp_path)


@pytest.mark.server
@pytest.mark.model
@pytest.mark.parametrize("block", marked("run: finetune"), ids=named)
def test_commands_that_train(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert "succeeded" in run_block(block, tmp_path)


@pytest.mark.server
@pytest.mark.model
@pytest.mark.parametrize("block", marked("run: server"), ids=named)
def test_commands_with_a_server(block: Block, tmp_path: Path, address: str) -> None:
    output = run_block(block, tmp_path, address)
    assert len(output.strip()) > 20
    assert '"error":{' not in output
