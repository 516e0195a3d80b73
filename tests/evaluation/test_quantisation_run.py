"""``headrace quantize`` from a model folder to a served folder: the report, the kill in the middle, and every refusal."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from headrace.cli.main import run as command
from headrace.errors import HeadraceError
from headrace.evaluation.quality import disjoint_texts
from headrace.evaluation.quantisation import rungs
from headrace.evaluation.quantisation_run import REPORT_NAME, QuantiseSettings, run
from headrace.models.catalog import find_model, open_model
from headrace.models.config import AttentionSpec, MlpSpec, ModelConfig
from headrace.models.families import expected_tensors
from headrace.models.quantised_matrix import QuantisationInfo, QuantisedMatrix
from headrace.quantization.checkpoint import FOLDER_NAME
from headrace.quantization.format import copy_tokenizer, write_model
from headrace.quantization.recipe import STEPS, Recipe

SMALL = QuantiseSettings(group="32", activation_bits="16", calibration_tokens=512, evaluation_tokens=512, threads=1)


@pytest.fixture(scope="module")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of 8-bit weights with the real tokenizer of SmolLM2."""
    folder = tmp_path_factory.mktemp("models") / "small"
    real = find_model("smollm2").path
    assert real is not None
    attention = AttentionSpec(2, 1, 32, 32**-0.5, 1e4)
    config = ModelConfig("llama", 64, 49_152, 256, 1e-5, (attention, MlpSpec(64, "silu")) * 4)
    rng = np.random.default_rng(0)
    matrices, vectors = [], {}
    for name, shape in expected_tensors(config).items():
        if len(shape) == 1:
            vectors[name] = rng.uniform(0.5, 1.5, shape).astype(np.float32)
        else:
            codes = rng.integers(-127, 128, shape).astype(np.int8)
            scale = np.full(shape[0], 0.02 / np.sqrt(shape[1]), np.float32)
            matrices.append(QuantisedMatrix(name, codes, None, None, scale, 0, 16))
    write_model(folder, config, QuantisationInfo("random", 0, 16, "00"), matrices, vectors)
    copy_tokenizer(real, folder)
    return folder


@pytest.mark.model
@pytest.mark.torch
def test_a_folder_is_written_that_the_engine_opens(small_model: Path, tmp_path: Path) -> None:
    from headrace.evaluation.quality import compare_chains
    from headrace.kernels.torch_chain import TorchChain

    outcome = run(str(small_model), tmp_path / "out", replace(SMALL, steps="all", kv="kv4"))
    assert [row.choice for row in outcome.rows] == ["plain rounding", "full recipe", "full recipe"]
    assert [row.kv for row in outcome.rows][-2:] == ["bf16", "kv4"]
    report = json.loads((tmp_path / "out" / REPORT_NAME).read_text())
    assert [row["mean_kl"] for row in report["rows"]] == [row.quality.mean_kl for row in outcome.rows]
    source, made = open_model(find_model(str(small_model))), open_model(find_model(str(tmp_path / "out")))
    assert source.config.tied_head
    assert not made.config.tied_head
    tokens = np.random.default_rng(2).integers(0, 49_152, (1, 64)).astype(np.int32)
    chains = [TorchChain(one.config, one.weights, kv="fp32") for one in (source, made)]
    assert 0 < compare_chains(chains[0], chains[1], tokens).mean_kl < 2 * outcome.rows[-2].quality.mean_kl
    assert not (tmp_path / "out" / FOLDER_NAME).exists()
    with pytest.raises(HeadraceError, match="not empty"):
        run(str(small_model), tmp_path / "out", SMALL)


@pytest.mark.model
@pytest.mark.torch
def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(small_model: Path, tmp_path: Path) -> None:
    settings = replace(SMALL, report="none")
    out = tmp_path / "killed"
    arguments = ["quantize", str(small_model), "--out", str(out), "--group", "32", "--activation-bits", "16"]
    process = subprocess.Popen(
        [sys.executable, "-m", "headrace", *arguments, "--calibration-tokens", "512", "--report", "none", "--threads", "1"],
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not (out / FOLDER_NAME / "layer_0000.npz").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    process.kill()
    assert process.wait(timeout=30) == -signal.SIGKILL
    assert not (out / "model.safetensors").exists()
    first = out / FOLDER_NAME / "layer_0000.npz"
    stamp = first.stat().st_mtime_ns
    with pytest.raises(HeadraceError, match="another recipe"):
        run(str(small_model), out, replace(settings, activation_bits="8"))
    assert first.stat().st_mtime_ns == stamp
    run(str(small_model), out, settings)
    run(str(small_model), tmp_path / "whole", settings)
    assert (out / "model.safetensors").read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()


@pytest.mark.model
def test_a_calibration_text_that_is_too_short_is_refused(small_model: Path, tmp_path: Path) -> None:
    text = tmp_path / "short.txt"
    text.write_text("A short text.")
    with pytest.raises(HeadraceError, match=r"calibration text has \d tokens, 2 windows of 256 need 512"):
        run(str(small_model), tmp_path / "out", replace(SMALL, calibration_text=str(text)))
    text.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(HeadraceError, match="is not UTF-8"):
        run(str(small_model), tmp_path / "out", replace(SMALL, calibration_text=str(text)))
    with pytest.raises(HeadraceError, match="can't be read"):
        run(str(small_model), tmp_path / "out", replace(SMALL, calibration_text=str(tmp_path / "absent")))
    assert not (tmp_path / "out").exists()


@pytest.mark.model
def test_refusals_come_before_any_work(small_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert command(["quantize", str(small_model), "--out", str(out), "--group", "128"]) == 2
    assert "group 128 does not divide the hidden size 64" in capsys.readouterr().err
    assert command(["quantize", str(small_model), "--out", str(out), "--steps", "rotat"]) == 2
    assert "rotate" in capsys.readouterr().err
    assert command(["quantize", "no-such-model", "--out", str(out)]) == 2
    assert not out.exists()


def test_held_out_text_shares_no_paragraph_with_calibration() -> None:
    paragraphs = [f"paragraph {index}" for index in range(100)]
    text = "\n\n".join([*paragraphs, *paragraphs[:30]])
    first, second = disjoint_texts(text, 0.6, avoid="paragraph 3\n\nparagraph 90")
    one, two = set(first.split("\n\n")), set(second.split("\n\n"))
    assert not one & two
    assert one | two == set(paragraphs) - {"paragraph 3", "paragraph 90"}
    assert 0.5 < len(one) / 98 < 0.7


def test_rungs_lead_up_to_the_recipe() -> None:
    whole = Recipe(64, "8", tuple(STEPS))
    assert [label for label, _ in rungs(whole, every=False)] == ["plain rounding"]
    ladder = rungs(whole, every=True)
    assert [len(recipe.steps) for _, recipe in ladder] == [0, 2, 5]
    assert all(recipe.activations == "8" for _, recipe in ladder)
    assert [label for label, _ in rungs(Recipe(steps=("gptq",)), every=True)] == ["plain rounding"]


def test_the_default_is_the_one_that_keeps_the_quality() -> None:
    assert (QuantiseSettings().group, QuantiseSettings().activation_bits, QuantiseSettings().steps) == ("channel", "8", "auto")
