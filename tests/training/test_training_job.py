"""Jobs: they learn, go on bit for bit where they were stopped, and fail by name."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from training_tools import VOCAB, RandomWeights, random_sample, tiny_config

from headrace.errors import HeadraceError
from headrace.models.adapter_file import read_adapter
from headrace.training.backbone import Backbone
from headrace.training.crew import Crew
from headrace.training.dataset_file import Dataset, Pair, open_dataset, write_dataset
from headrace.training.job import Job, Saved, Stepped, Work
from headrace.training.settings import TrainingSettings

CONFIG = tiny_config()
BACKBONE = Backbone(CONFIG, RandomWeights(CONFIG))
SETTINGS = TrainingSettings(rank=4, batch=3, epochs=3, max_tokens=40, learning_rate=2e-2, checkpoint_every=2)


@pytest.fixture
def data(tmp_path: Path) -> Dataset:
    write_dataset(tmp_path / "data.bin", [random_sample(12 + 5 * i, i) for i in range(7)], vocab=VOCAB)
    return open_dataset(tmp_path / "data.bin", VOCAB)


@pytest.fixture
def pairs(tmp_path: Path) -> Dataset:
    rows = [Pair(random_sample(12 + i, i), random_sample(15 - i, 50 + i)) for i in range(4)]
    write_dataset(tmp_path / "pairs.bin", rows, vocab=VOCAB)
    return open_dataset(tmp_path / "pairs.bin", VOCAB)


def run(work: Work, *, most: int | None = None, backbone: Backbone = BACKBONE) -> tuple[Job, list[Any]]:
    """Run units, at most so many of them, as the engine does."""
    events: list[Any] = []
    with ThreadPoolExecutor(1) as files:
        job = Job(work, backbone, Crew(1), files)
        for count, unit in enumerate(job.units()):
            if most is not None and count >= most:
                break
            unit.run()
            if job.writing is not None:
                job.saved()
            events += job.events
            job.events.clear()
        return job, events + job.events


def test_a_job_learns_and_saves(data: Dataset, tmp_path: Path) -> None:
    job, events = run(Work(SETTINGS, data, data, tmp_path / "job", "tiny"))
    steps = [event for event in events if isinstance(event, Stepped)]
    assert [step.step for step in steps] == list(range(1, 10))
    assert steps[-1].loss < steps[0].loss - 0.3
    saved = [event for event in events if isinstance(event, Saved)]
    assert [one.step for one in saved] == [2, 4, 6, 8, 9]
    losses = [one.validation_loss for one in saved if one.validation_loss is not None]
    assert losses == sorted(losses, reverse=True)
    assert len(list((tmp_path / "job").iterdir())) == SETTINGS.checkpoints_kept
    adapter = read_adapter(saved[-1].folder, CONFIG)
    assert adapter.base_model == "tiny"
    assert np.array_equal(adapter.layers[1]["down"].a, job.parameters.adapter().layers[1]["down"].a)


@pytest.mark.parametrize("most", [40, 250, 400])
def test_it_goes_on_bit_for_bit(data: Dataset, tmp_path: Path, most: int) -> None:
    whole, _ = run(Work(SETTINGS, data, None, tmp_path / "whole"))
    run(Work(SETTINGS, data, None, tmp_path / "cut"), most=most)
    rest, _ = run(Work(SETTINGS, data, None, tmp_path / "cut"))
    assert np.array_equal(whole.parameters.values, rest.parameters.values)
    assert whole.progress == rest.progress


def test_preferences_are_learnt(pairs: Dataset, tmp_path: Path) -> None:
    settings = TrainingSettings("dpo", rank=4, batch=2, epochs=6, max_tokens=20, learning_rate=1e-2, beta=0.5)
    _, events = run(Work(settings, pairs, pairs, tmp_path / "job"))
    steps = [event.loss for event in events if isinstance(event, Stepped)]
    assert steps[0] == pytest.approx(np.log(2.0))  # the adapter begins as none
    assert steps[-1] < 0.5
    saved = [event.validation_loss for event in events if isinstance(event, Saved)]
    assert saved[-1] is not None
    assert saved[-1] < 0.5


@pytest.mark.torch
def test_preference_gradients_are_those_of_autograd(pairs: Dataset) -> None:
    import torch
    import torch.nn.functional as F

    from headrace.training.loss import document_sums, preference
    from headrace.training.order import SampleOrder

    order = SampleOrder(pairs, TrainingSettings("dpo", max_tokens=20))
    pack = order.pack([0, 2, 3])
    draws = np.random.default_rng(1)
    scores, reference = draws.standard_normal(len(pack.loss_rows)), draws.standard_normal(6)
    loss, factors = preference(pack, scores, reference, 0.3, 3)
    leaf = torch.from_numpy(scores.copy()).requires_grad_()
    sums = torch.zeros(6, dtype=torch.float64).index_add(
        0, torch.from_numpy(pack.documents).long(), leaf * torch.from_numpy(pack.weights).double()
    )
    np.testing.assert_allclose(document_sums(pack, scores), sums.detach().numpy())
    gained = sums - torch.from_numpy(reference)
    other = -F.logsigmoid(0.3 * (gained[0::2] - gained[1::2])).mean()
    other.backward()
    assert loss == pytest.approx(other.item())
    assert leaf.grad is not None
    np.testing.assert_allclose(-factors, leaf.grad.numpy(), rtol=1e-10)


def test_a_loss_that_is_not_finite_names_step_and_row(data: Dataset, tmp_path: Path) -> None:
    broken = Backbone(CONFIG, RandomWeights(CONFIG), np.float32)
    broken.embedding.values()[int(data.sequence(4).tokens[0])] = np.nan
    with pytest.raises(HeadraceError, match=r"step \d+: the loss of row \d+ is not finite") as caught:
        run(Work(SETTINGS, data, None, tmp_path / "job"), backbone=broken)
    assert caught.value.code == "training_failed"


def test_other_settings_and_data_are_refused(data: Dataset, pairs: Dataset, tmp_path: Path) -> None:
    run(Work(SETTINGS, data, None, tmp_path / "job"))
    other = TrainingSettings(rank=4, batch=3, epochs=4, max_tokens=40, learning_rate=2e-2, checkpoint_every=2)
    for work in (Work(other, data, None, tmp_path / "job"), Work(SETTINGS, data, None, tmp_path / "job", "another")):
        with pytest.raises(HeadraceError, match="step-00000009 was"):
            run(work)
    with pytest.raises(HeadraceError, match="holds pairs"):
        run(Work(SETTINGS, pairs, None, tmp_path / "other"))
    write_dataset(tmp_path / "late.bin", [_late()], vocab=VOCAB)
    late = Work(TrainingSettings(max_tokens=8), open_dataset(tmp_path / "late.bin", VOCAB), None, tmp_path / "other")
    with pytest.raises(HeadraceError, match="row 1"):
        run(late)


def _late() -> Any:
    sample = random_sample(20, 1)
    sample.weights[:15] = 0.0
    return sample


def test_a_checkpoint_that_can_not_be_written_leaves_nothing(data: Dataset, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="file"):
        run(Work(SETTINGS, data, None, tmp_path / "file" / "job"))
