"""``headrace top`` and ``headrace doctor --json`` against a real server."""

from __future__ import annotations

import json

import pytest
from conftest import Running

from headrace.cli.main import run


@pytest.mark.server
def test_one_look(real: Running, capsys: pytest.CaptureFixture[str]) -> None:
    real.post("/v1/completions", {"prompt": "A river", "max_tokens": 3})
    assert run(["top", "--url", real.url, "--once", "--every", "0.2"]) == 0
    shown = capsys.readouterr().out
    for word in ("headrace", "generated", "smollm2", "pages held", "length"):
        assert word in shown


@pytest.mark.server
def test_keys_and_wrong_addresses(guest: Running, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["top", "--url", guest.url, "--once", "--every", "0.2", "--api-key", "sk-guest"]) == 0
    assert run(["top", "--url", guest.url, "--once", "--api-key", "wrong"]) == 2
    assert "--api-key" in capsys.readouterr().err
    assert run(["top", "--url", "127.0.0.1:8080", "--once"]) == 2
    assert run(["top", "--url", "http://127.0.0.1:9", "--once"]) == 2


def test_the_doctor_speaks_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--quick", "--json"]) == 0
    findings = json.loads(capsys.readouterr().out)
    assert {"state", "what", "found", "advice"} == set(findings[0])
    assert any(finding["what"] == "kernels" for finding in findings)
