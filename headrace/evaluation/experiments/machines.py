"""Instances on two machines: moves over TCP, what need not be sent, what does not belong, a link that is cut and healed."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from headrace.evaluation.experiment import Claim, Conditions, Experiment, Findings
from headrace.evaluation.machines_child import Order, Report
from headrace.evaluation.two_machines import namespace_command

_PARTS = 5
_LONGEST_SECONDS = 900


def run(conditions: Conditions) -> Findings:
    """All parts in a process with a network of its own. Raises ``unsupported_machine`` where there can be none."""
    command = namespace_command()
    with tempfile.TemporaryDirectory(prefix="headrace-machines-") as folder:
        sizes = (4, 40, 3, 600, 2, 8.0) if conditions.quick else (12, 100, 6, 1200, 6, 20.0)
        order = Order(conditions.model, conditions.seed, folder, *sizes)
        path = Path(folder) / "order.json"
        path.write_text(json.dumps(dataclasses.asdict(order)), encoding="utf-8")
        return Findings(
            _claims(order, _child([*command, sys.executable, "-m", "headrace.evaluation.machines_child", str(path)], conditions))
        )


def _child(command: list[str], conditions: Conditions) -> Report:
    """Run it, pass on where it is; it ends with everything that it has started."""
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, start_new_session=True)
        assert process.stdout is not None, "it is a pipe"
        report, part = None, 0
        try:
            for line in process.stdout:
                if line.startswith(b"@ "):
                    conditions.report(line[2:].decode().strip(), part, _PARTS)
                    part += 1
                elif line.startswith(b"{"):
                    report = Report(**json.loads(line))
            process.wait(_LONGEST_SECONDS)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if report is None:
            errors.seek(0)
            raise RuntimeError(f"the runs on two machines have failed: {errors.read().decode(errors='replace')[-12000:]}")
        return report


def _claims(order: Order, got: Report) -> tuple[Claim, ...]:
    without, asked = got.talk_bytes
    spared = without / max(asked, 1) if got.talk_same else 0.0
    doors = ", ".join(f"{name} {count}" for name, count in sorted(got.refusals.items()))
    return (
        Claim("model", "a worker with another model: refused, told why, and the next one awaited", "==", 1, int(got.refused_model),
              "refused", got.told_worker),
        Claim("moved", "requests moved between the machines while they ran", "==", 100.0, got.moved_same, "% same bits",
              f"{got.moves} moves, {got.pages} pages"),
        Claim("spared", "bytes that later turns of a wandering talk send, all over what is new", ">=", 4.0, spared,
              "x", f"{without / 2**20:.1f} and {asked / 2**20:.1f} MiB"),
        Claim("doors", "requests that ran while strangers, a wrong key and broken records came", "==", 100.0, got.doors_same,
              "% same bits", doors),
        Claim("broken", "connections with a record replayed, changed or left out that were ended", "==", order.faults, got.broken,
              "connections"),
        Claim("cut", "requests that ran on both sides when the link was cut", "==", 100.0, got.cut_same, "% same bits",
              f"{got.cut_lost} were over there"),
        Claim("gap", f"longest gap in a stream, silence of {order.hang:.0f} s being an end", "<=", order.hang + 10, got.gap_seconds,
              "s"),
        Claim("back", "from the healing of the link until the far worker serves again", "<=", 60, got.back_seconds, "s"),
        Claim("healed", "requests moved between the machines after that", "==", 100.0, got.healed_same, "% same bits",
              f"{got.healed_moves} moves"),
        Claim("strays", "outputs of an engine that did not have the request", "==", 0, got.strays, "outputs",
              f"{got.replays} requests went on elsewhere"),
    )  # fmt: skip


EXPERIMENT = Experiment(
    name="machines",
    title="Instances on two machines (network namespaces): moves over TCP, strangers, a link cut and healed; the same bits.",
    source="Llumnix: Dynamic Scheduling for Large Language Model Serving (OSDI 2024)",
    minutes=4,
    run=run,
)
