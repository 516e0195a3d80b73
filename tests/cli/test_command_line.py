"""The command line: verbs, help, refusals in one line, results on stdout."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import headrace.cli.config
from headrace.cli.chat import converse
from headrace.cli.main import VERBS, run
from headrace.errors import HeadraceError
from headrace.evaluation.experiments import names

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _no_settings_around(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HEADRACE_CONFIG", raising=False)


def test_help_lists_every_verb_and_examples(capsys: Capture) -> None:
    assert run(["--help"]) == 0
    page = capsys.readouterr().out
    for verb, (_, _, text) in VERBS.items():
        assert f"\n  {verb} " in page
        assert text.split(",")[0] in page
    assert "headrace serve --port 9000" in page


@pytest.mark.parametrize("verb", [["serve"], ["chat"], ["generate"], ["show"], ["pull"], ["reproduce"], ["config"], ["bench"],
                                  ["bench", "serve"], ["bench", "engine"], ["bench", "kernels"],
                                  ["finetune"]], ids=" ".join)  # fmt: skip
def test_each_verb_teaches_by_example(verb: list[str], capsys: Capture) -> None:
    assert run([*verb, "--help"]) == 0
    assert f"\n  headrace {verb[0]}" in capsys.readouterr().out


def test_no_arguments_is_a_request_for_help(capsys: Capture) -> None:
    assert run([]) == 0
    assert "Commands:" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["srve"], "unknown command 'srve'; did you mean 'serve'?"),
        (["serve", "--prot", "1"], "--port"),
        (["config", "--port", "70000"], "--port: port must be at most 65,535, not 70,000"),
        (["config", "--port", "x"], "--port: port must be a whole number, not 'x'"),
        (["config", "--policy", "fcsf"], "did you mean 'fcfs'?"),
        (["config", "--config", "/no/such.yaml"], "can't read the config file"),
        (["show", "smolm2"], "did you mean 'smollm2'?"),
        (["generate"], "Missing argument 'PROMPT'"),
        (["generate", ""], "the prompt is empty"),
        (["reproduce", "no-such-thing"], "no experiment 'no-such-thing'"),
        (["bench", "serve", "--rate", "1", "--concurrency", "2"], "not both"),
        (["bench", "kernels", "--isa", "sse9"], "isa 'sse9' is unknown"),
        (["bench", "kernels", "--mode", "support", "--plot", "x.png"], "--mode perf"),
        (["bench", "serve", "--url", "http://127.0.0.1:1", "--model", "m"], "http://127.0.0.1:1 does not serve this load"),
        (["bench", "serve", "--prompt", "nromal:3:1"], "did you mean 'normal'?"),
    ],
)
def test_refusals_are_one_line_with_exit_code_2(arguments: list[str], words: str, capsys: Capture) -> None:
    assert run(arguments) == 2
    captured = capsys.readouterr()
    assert words in captured.err
    assert captured.err.startswith("headrace: ")
    assert len(captured.err.strip().splitlines()) == 1
    assert captured.out == ""


def test_a_bug_shows_no_trace_unless_asked(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    def broken(value: object) -> str:
        raise KeyError("surprise")

    monkeypatch.setattr(headrace.cli.config, "shown", broken)
    assert run(["config"]) == 1
    captured = capsys.readouterr()
    assert "this is a bug (KeyError: 'surprise')" in captured.err
    assert "Traceback" not in captured.err
    with pytest.raises(KeyError):
        run(["--traceback", "config"])


def test_config_names_the_origin_of_each_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    (tmp_path / "mine.yaml").write_text("threads: 2\nport: 1\n")
    monkeypatch.setenv("HEADRACE_POOL_MIB", "77")
    assert run(["config", "--config", str(tmp_path / "mine.yaml"), "--port", "9"]) == 0
    lines = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()}
    assert lines["threads"] == ["2", "mine.yaml"]
    assert lines["port"] == ["9", "--port"]
    assert lines["pool_mib"] == ["77", "HEADRACE_POOL_MIB"]
    assert lines["host"][-1] == "default"


def test_config_yaml_reads_back_as_itself(tmp_path: Path, capsys: Capture) -> None:
    assert run(["config", "--yaml", "--port", "1234"]) == 0
    first = capsys.readouterr().out
    (tmp_path / "round.yaml").write_text(first)
    assert run(["config", "--yaml", "--config", str(tmp_path / "round.yaml")]) == 0
    assert capsys.readouterr().out == first
    assert "port: 1234" in first


def test_version(capsys: Capture) -> None:
    assert run(["--version"]) == 0
    assert "0.1.0" in capsys.readouterr().out


def test_doctor_finds_this_machine_ready(capsys: Capture) -> None:
    assert run(["doctor", "--quick"]) == 0
    page = capsys.readouterr().out
    for what in ("cores", "memory", "huge pages", "open files", "kernels", "models", "packages"):
        assert what in page


def test_list_and_show(capsys: Capture) -> None:
    assert run(["list"]) == 0
    assert "smollm2-135m-instruct" in capsys.readouterr().out


@pytest.mark.model
def test_show_describes_the_bundled_model(capsys: Capture) -> None:
    assert run(["show", "smollm2"]) == 0
    page = capsys.readouterr().out
    assert "49,152" in page
    assert "9 (KV 3) of 64" in page


def test_reproduce_lists_all_experiments(capsys: Capture) -> None:
    assert run(["reproduce", "--list"]) == 0
    page = capsys.readouterr().out
    assert all(name in page for name in names())


@pytest.mark.model
def test_generate_prints_the_continuation(capsys: Capture) -> None:
    assert run(["generate", "The capital of France is", "--max-tokens", "4"]) == 0
    assert "Paris" in capsys.readouterr().out


@pytest.mark.model
def test_bench_engine_writes_what_it_prints(tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "speed.json"
    sizes = ["--batches", "1", "--batches", "3", "--prompts", "20", "--context", "8", "--tokens", "6", "--rounds", "1"]
    assert run(["bench", "engine", *sizes, "--json", str(file)]) == 0
    page, document = capsys.readouterr().out, json.loads(file.read_text())
    assert [speed["what"] for speed in document["speeds"]] == ["one stream", "3 streams", "prompt of 20"]
    assert all(speed["median"] > 1 for speed in document["speeds"])
    assert "of bandwidth" in page


@pytest.mark.model
def test_bench_kernels_measures_every_matrix_against_the_limit(tmp_path: Path, capsys: Capture) -> None:
    file, picture = tmp_path / "kernels.json", tmp_path / "kernels.png"
    rows = ["--rows", "1", "--rows", "8", "--seconds", "0.002"]
    assert run(["bench", "kernels", *rows, "--json", str(file), "--plot", str(picture)]) == 0
    page, document = capsys.readouterr().out, json.loads(file.read_text())
    cells = document["rows"]
    assert {(cell["role"], cell["rows"]) for cell in cells} == {
        (role, rows) for role in ("head", "qkv", "o", "gate_up", "down") for rows in (1, 8)
    }
    for cell in cells:
        assert cell["gmacs"] == pytest.approx(cell["rows"] * cell["columns"] * cell["inputs"] / cell["seconds"] / 1e9)
        assert cell["limit"] > 0
        assert cell["bound"] in {"compute", "memory"}
    assert "of the limit" in page
    assert picture.stat().st_size > 10_000


@pytest.mark.model
def test_bench_kernels_compares_all_instruction_sets(capsys: Capture) -> None:
    assert run(["bench", "kernels", "--mode", "compare", "--panels", "1"]) == 0
    page = capsys.readouterr().out
    assert "\n0 mismatches" in page
    assert "amx-emulated" in page or "avx512" not in page


def test_bench_kernels_says_what_runs_and_why_not(tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "support.json"
    assert run(["bench", "kernels", "--mode", "support", "--json", str(file)]) == 0
    page, document = capsys.readouterr().out, json.loads(file.read_text())
    assert [row["chosen"] for row in document["rows"]].count(True) == 1
    for row in document["rows"]:
        assert row["name"] in page
        assert row["runnable"] == (row["lacking"] == "")


class _Terminal:
    """Questions to ask, in place of a keyboard."""

    def __init__(self, *lines: str) -> None:
        self._lines = iter(lines)

    def isatty(self) -> bool:
        return False

    def readline(self, *_: Any) -> str:
        return next(self._lines, "")


def test_conversation_remembers_forgets_and_survives_refusals(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    heard: list[list[str]] = []

    def speaker(messages: list[dict[str, str]]) -> Iterator[str]:
        heard.append([message["content"] for message in messages])
        if messages[-1]["content"] == "too long":
            raise HeadraceError("context_length_exceeded", "does not fit")
        if messages[-1]["content"] == "stop":
            yield "begun"
            raise KeyboardInterrupt
        yield from ("a", "b")

    monkeypatch.setattr(sys, "stdin", _Terminal("one\n", "too long\n", "two\n", "\n", "stop\n", "/new\n", "three\n"))
    converse(speaker, "be brief")
    assert heard == [
        ["be brief", "one"],
        ["be brief", "one", "ab", "too long"],
        ["be brief", "one", "ab", "two"],
        ["be brief", "one", "ab", "two", "ab", "stop"],
        ["be brief", "three"],
    ]
    captured = capsys.readouterr()
    assert captured.err == "headrace: does not fit\n"
    assert captured.out == "ab\nab\nbegun …\nab\n"
