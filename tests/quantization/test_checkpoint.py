"""Checkpoints: a folder in use, another job's work and damaged files are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from headrace.errors import HeadraceError
from headrace.quantization.checkpoint import FOLDER_NAME, Checkpoint, check_output

JOB = {"source": "one", "recipe": "all"}


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(HeadraceError, match=r"not empty .*model.safetensors"):
        Checkpoint(tmp_path, JOB)
    with pytest.raises(HeadraceError, match="is a file"):
        check_output(tmp_path / "model.safetensors")


def test_work_of_another_job_is_refused_and_kept(tmp_path: Path) -> None:
    Checkpoint(tmp_path, JOB)
    with pytest.raises(HeadraceError, match="another recipe"):
        Checkpoint(tmp_path, JOB | {"recipe": "none"})
    (tmp_path / FOLDER_NAME / "job.json").write_text("{")
    with pytest.raises(HeadraceError, match="another source"):
        Checkpoint(tmp_path, JOB)


def test_a_damaged_layer_is_refused(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path, JOB)
    assert checkpoint.layer(0) is None
    for rubbish in (b"", b"PK\x03\x04 no archive", b"\x80\x04N."):
        (tmp_path / FOLDER_NAME / "layer_0000.npz").write_bytes(rubbish)
        with pytest.raises(HeadraceError, match=r"layer_0000.npz is damaged"):
            checkpoint.layer(0)


def test_done_work_leaves_nothing_behind(tmp_path: Path) -> None:
    Checkpoint(tmp_path / "new", JOB).discard()
    assert not list((tmp_path / "new").iterdir())
