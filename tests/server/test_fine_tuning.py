"""Fine-tuning jobs over the wire with the openai client: their life, crashes, queue and quotas, and bad lines by number."""

from __future__ import annotations

import csv
import io
import json
import resource
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
from conftest import Running, launch_raw, wait_ready
from tiny_model import write_tiny_model

pytestmark = pytest.mark.server
Launch = Callable[..., Running]
WORDS = ["red", "blue", "green", "black", "white", "pink", "grey", "gold"]
QUICK = {"n_epochs": 12, "batch_size": 4, "learning_rate_multiplier": 30}
SLOW = {"n_epochs": 100, "batch_size": 1, "learning_rate_multiplier": 1}
ENDED = ("succeeded", "failed", "cancelled")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def tuner(tiny: Path) -> Iterator[Running]:
    """A server with the tiny model that nobody may break."""
    running = wait_ready(launch_raw("real", {"pool_mib": 64}, model=f"tiny={tiny}"))
    yield running
    assert running.stop() == 0, "\n".join(running.lines)


@pytest.fixture
def launch(tiny: Path) -> Iterator[Launch]:
    """Makes servers that the test may break."""
    made: list[Running] = []

    def make(key: str | None = None, **options: Any) -> Running:
        made.append(wait_ready(launch_raw("real", {"pool_mib": 64, **options}, model=f"tiny={tiny}", key=key)))
        return made[-1]

    yield make
    for running in made:
        running.stop()


def chat(word: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": f"{word}?"}, {"role": "assistant", "content": f"the {word} wheel"}]}


def preference(word: str) -> dict[str, Any]:
    good, bad = ([{"role": "assistant", "content": text}] for text in (f"the {word} wheel", "stone stone"))
    return {"input": {"messages": [{"role": "user", "content": f"{word}?"}]}, "preferred_output": good, "non_preferred_output": bad}


GOOD = [chat(word) for word in WORDS]


def upload(running: Running, lines: list[Any], purpose: Any = "fine-tune") -> str:
    data = b"".join((entry if isinstance(entry, bytes) else json.dumps(entry).encode()) + b"\n" for entry in lines)
    return running.client().files.create(file=("lines.jsonl", data or b"\n"), purpose=purpose).id


def create(running: Running, lines: list[Any] | None = None, hyper: dict[str, Any] | None = None, **fields: Any) -> Any:
    file = upload(running, lines if lines is not None else GOOD)
    given: dict[str, Any] = {**with_parameters(**(hyper or QUICK)), **fields}
    return running.client().fine_tuning.jobs.create(model="tiny", training_file=file, **given)


def with_parameters(**parameters: Any) -> dict[str, Any]:
    return {"method": {"type": "supervised", "supervised": {"hyperparameters": parameters}}}


def wait(running: Running, job_id: str, *statuses: str) -> Any:
    jobs = running.client().fine_tuning.jobs
    running.eventually(lambda: jobs.retrieve(job_id).status in (statuses or ENDED), 60)
    return jobs.retrieve(job_id)


def say(running: Running, model: str) -> str | None:
    ask: Any = [{"role": "user", "content": "red?"}]
    answer = running.client().chat.completions.create(model=model, messages=ask, max_tokens=12, temperature=0)
    return answer.choices[0].message.content


def adapter(state: Path, job_id: str) -> bytes:
    """The finished adapter's file."""
    newest = max((state / "job_data" / job_id / "training").glob("step-*"))
    return (newest / "adapter_model.safetensors").read_bytes()


def test_a_job_from_file_to_answer(tuner: Running) -> None:
    jobs: Any = tuner.client().fine_tuning.jobs
    before = say(tuner, "tiny")
    made = create(tuner, validation_file=upload(tuner, GOOD[:2]), suffix="wheels", seed=3, metadata={"who": "me"})
    assert (made.object, made.status, made.model, made.fine_tuned_model) == ("fine_tuning.job", "validating_files", "tiny", None)
    job = wait(tuner, made.id)
    assert job.status == "succeeded", job.error
    assert job.fine_tuned_model.startswith("ft:tiny:wheels:")
    assert say(tuner, job.fine_tuned_model) == "the red wheel"
    assert say(tuner, "tiny") == before != "the red wheel"
    assert job.fine_tuned_model in [model.id for model in tuner.client().models.list()]
    assert (job.seed, job.metadata, job.hyperparameters.n_epochs, job.method.type) == (3, {"who": "me"}, 12, "supervised")
    assert job.trained_tokens > 0
    assert job.finished_at >= job.created_at
    events = list(jobs.list_events(job.id, limit=7))[::-1]  # the client turns the pages
    assert events[0].message == f"Created fine-tuning job: {job.id}"
    assert events[-1].message == "The job has successfully completed"
    losses = [event.data["train_loss"] for event in events if event.type == "metrics" and "train_loss" in event.data]
    assert len(losses) >= 24
    assert losses[-1] < losses[0] / 2
    checkpoints = list(jobs.checkpoints.list(job.id, limit=5))
    assert [one.step_number for one in checkpoints] == list(range(24, 0, -2))
    assert checkpoints[0].metrics.full_valid_loss < checkpoints[-1].metrics.full_valid_loss
    assert say(tuner, checkpoints[0].fine_tuned_model_checkpoint) == "the red wheel"
    [result] = job.result_files
    rows = list(csv.DictReader(io.StringIO(tuner.client().files.content(result).text)))
    assert [int(row["step"]) for row in rows] == list(range(1, 25))
    assert rows[23]["valid_loss"]
    assert tuner.client().files.retrieve(result).purpose == "fine-tune-results"
    assert jobs.list(limit=1).data[0].id == job.id
    gone = tuner.client().models.delete(job.fine_tuned_model)
    assert (gone.id, gone.deleted) == (job.fine_tuned_model, True)
    assert [model.id for model in tuner.client().models.list() if model.id.startswith(job.fine_tuned_model)] == []
    for name in (job.fine_tuned_model, "tiny"):
        with pytest.raises(openai.NotFoundError) as unknown:
            tuner.client().models.delete(name)
        assert unknown.value.code == "model_not_found"
    assert jobs.retrieve(job.id).fine_tuned_model is None


def test_preferences_are_learnt(tuner: Running) -> None:
    dpo = {"type": "dpo", "dpo": {"hyperparameters": {"n_epochs": 4, "beta": 0.2, "lora_rank": 4}}}
    job = wait(tuner, create(tuner, [preference(word) for word in WORDS], method=dpo).id)
    assert job.status == "succeeded", job.error
    assert job.method.dpo.hyperparameters.beta == 0.2
    jobs: Any = tuner.client().fine_tuning.jobs
    losses = [event.data["train_loss"] for event in jobs.list_events(job.id, limit=100).data if event.type == "metrics"]
    assert losses[0] < losses[-1]  # newest first


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ([], "no lines"),
        ([GOOD[0], b"{"], "line 2: The body is not valid JSON"),
        ([GOOD[0], b"\xff\xfe"], "line 2: "),
        ([{"messages": [{"role": "robot", "content": "x"}]}], "line 1: Invalid value for 'messages[0].role'"),
        ([{"messages": GOOD[0]["messages"][:1]}], "line 1: 'messages' has no message of the role 'assistant'"),
        ([{"messages": GOOD[0]["messages"] + GOOD[0]["messages"][:1]}], "line 1: 'messages' must end with"),
        ([{"messages": [{"role": "assistant", "content": " "}]}], "line 1: 'messages[0].content' is empty"),
        ([{"messages": [{"role": "assistant", "content": "x", "weight": 0}]}], "line 1: All answers"),
        ([{"messages": [{"role": "user", "content": "x", "weight": 0}, GOOD[0]["messages"][1]]}], "line 1: 'weight' is for"),
        ([{"messages": []}], "line 1: "),
        ([{"prompt": "x", "completion": "y"}], "line 1: Unknown parameter: 'prompt'"),
        ([{**GOOD[0], "tools": [{}]}], "line 1: 'tools' can't be honoured here: calls of tools"),
        ([GOOD[0], {"messages": [{"role": "assistant", "content": "x" * (1 << 20)}]}], "line 2: The line has more than 1,048,576"),
        ([{"messages": [{"role": "assistant", "content": "water " * 300}]}], "line 1: The conversation has"),
        ([preference("red")], "line 1: Unknown parameter: 'input'"),
        ([b"{"] * 25, "and 15 more"),
    ],
)  # fmt: skip
def test_bad_lines_are_named(tuner: Running, lines: list[Any], told: str) -> None:
    job = wait(tuner, create(tuner, lines).id)
    assert (job.status, job.error.code, job.error.param) == ("failed", "invalid_training_file", "training_file")
    assert told in job.error.message
    assert job.fine_tuned_model is None


def test_bad_preferences_and_validation_files(tuner: Running) -> None:
    dpo = {"type": "dpo"}
    job = wait(tuner, create(tuner, [{**preference("red"), "preferred_output": GOOD[0]["messages"][:1]}], method=dpo).id)
    assert "preferred_output[0].role" in job.error.message
    job = wait(tuner, create(tuner, validation_file=upload(tuner, [b"{"])).id)
    assert (job.error.code, job.error.param) == ("invalid_validation_file", "validation_file")


@pytest.mark.parametrize(
    ("change", "param", "code"),
    [
        ({"model": "nobody"}, "model", "model_not_found"),
        ({"training_file": "file-none"}, "training_file", "file_not_found"),
        ({"validation_file": "file-none"}, "validation_file", "file_not_found"),
        ({"method": {"type": "reinforcement"}}, "method.type", "unsupported_parameter"),
        ({"method": {"type": "dpo", "supervised": {}}}, "method.supervised", "invalid_value"),
        (with_parameters(n_epochs=0), "method.supervised.hyperparameters.n_epochs", "invalid_value"),
        (with_parameters(beta=1), "method.supervised.hyperparameters.beta", "unknown_parameter"),
        ({"method": {"type": "supervised"}, "hyperparameters": {}}, "hyperparameters", "invalid_value"),
        ({"hyperparameters": {"batch_size": "all"}}, "hyperparameters.batch_size", "invalid_value"),
        ({"integrations": [{"type": "wandb", "wandb": {"project": "x"}}]}, "integrations", "unsupported_parameter"),
        ({"suffix": "a b"}, "suffix", "invalid_value"),
        ({"seed": -1}, "seed", "invalid_value"),
        ({"colour": 1}, "colour", "unknown_parameter"),
    ],
)  # fmt: skip
def test_bad_requests(tuner: Running, change: dict[str, Any], param: str, code: str) -> None:
    body = {"model": "tiny", "training_file": upload(tuner, GOOD), **change}
    error = tuner.post("/v1/fine_tuning/jobs", body).json()["error"]
    assert (error["param"], error["code"]) == (param, code)


def test_other_refusals(tuner: Running) -> None:
    client = tuner.client()
    with pytest.raises(openai.BadRequestError) as wrong:
        client.fine_tuning.jobs.create(model="tiny", training_file=upload(tuner, GOOD, "batch"))
    assert wrong.value.param == "training_file"
    for call in (client.fine_tuning.jobs.retrieve, client.fine_tuning.jobs.cancel, client.fine_tuning.jobs.list_events):
        with pytest.raises(openai.NotFoundError) as gone:
            call("ftjob-none")
        assert gone.value.code == "job_not_found"


def test_pause_resume_and_cancel_in_every_state(launch: Launch) -> None:
    running = launch()
    jobs: Any = running.client().fine_tuning.jobs
    slow = [create(running, hyper=SLOW) for _ in range(3)]
    for one in slow[:2]:
        wait(running, one.id, "running")
    running.eventually(lambda: running.metric('headrace_fine_tuning_jobs{state="running"}') == 2)
    queued = wait(running, slow[2].id, "queued")
    assert jobs.pause(queued.id).status == "paused"
    assert jobs.resume(queued.id).status == "queued"
    others = [create(running, hyper=SLOW) for _ in range(2)]
    wait(running, others[0].id, "queued")
    assert jobs.cancel(others[0].id).status == "cancelled"
    assert jobs.pause(wait(running, others[1].id, "queued").id).status == "paused"
    assert jobs.cancel(others[1].id).status == "cancelled"
    running.eventually(lambda: jobs.retrieve(slow[0].id).step >= 2, 60)
    paused = jobs.pause(slow[0].id)
    assert paused.status == "paused"
    wait(running, queued.id, "running")
    at = jobs.retrieve(paused.id).step
    assert jobs.cancel(queued.id).status == "cancelled"
    assert jobs.cancel(slow[1].id).status == "cancelled"
    assert jobs.resume(paused.id).status in ("queued", "running")
    running.eventually(lambda: jobs.retrieve(paused.id).step > at, 60)
    steps = [event.data["step"] for event in jobs.list_events(paused.id, limit=100).data if event.type == "metrics"]
    assert len(steps) == len(set(steps)), "a paused job goes on where it was"
    assert jobs.cancel(paused.id).status == "cancelled"
    for command in (jobs.pause, jobs.resume, jobs.cancel):
        with pytest.raises(openai.ConflictError) as refused:
            command(paused.id)
        assert refused.value.code == "state_conflict"
    fresh = create(running, [*GOOD * 50])
    assert jobs.cancel(fresh.id).status == "cancelled"


def test_metrics_know_that_a_job_has_ended(launch: Launch) -> None:
    """Gauges came with steps only: those of the last one showed a job and its pages until somebody asked for tokens again."""
    running = launch()
    job = create(running, hyper=SLOW)
    wait(running, job.id, "running")

    def seen() -> bool:
        running.post("/v1/completions", {"model": "tiny", "prompt": "red", "max_tokens": 1})
        return running.metric("headrace_training_jobs") == 1

    running.eventually(seen, 30)
    assert running.client().fine_tuning.jobs.cancel(job.id).status == "cancelled"
    running.eventually(lambda: running.metric("headrace_training_jobs") == 0, 30)
    running.eventually(lambda: running.metric("headrace_pages_free") == running.metric("headrace_pages_total"), 30)


def test_a_killed_server_ends_with_the_same_adapter(launch: Launch, tmp_path: Path) -> None:
    states = tmp_path / "whole", tmp_path / "killed"
    hyper = {**QUICK, "n_epochs": 20, "lora_rank": 4}
    running = launch(state_dir=str(states[0]))
    whole = wait(running, create(running, hyper=hyper, seed=5).id)
    running.stop()
    running = launch(state_dir=str(states[1]))
    job = create(running, hyper=hyper, seed=5)
    jobs: Any
    for target in (signal.SIGKILL, signal.SIGTERM):
        jobs = running.client().fine_tuning.jobs
        before = jobs.retrieve(job.id).step
        running.eventually(lambda: jobs.retrieve(job.id).step > before + 4, 60)  # noqa: B023
        running.process.send_signal(target)
        running.process.wait(30)
        assert running.process.returncode == (0 if target == signal.SIGTERM else -9)
        running = launch(state_dir=str(states[1]))
    job = wait(running, job.id)
    assert (job.status, job.trained_tokens) == ("succeeded", whole.trained_tokens)
    assert adapter(states[0], whole.id) == adapter(states[1], job.id)
    said = say(running, job.fine_tuned_model)
    running.process.send_signal(signal.SIGKILL)
    running.process.wait()
    running = launch(state_dir=str(states[1]))
    assert say(running, job.fine_tuned_model) == said, "a finished model is there after every start"


def test_keys_quotas_and_a_hundred_jobs(launch: Launch, tmp_path: Path) -> None:
    names = [f"key{number}" for number in range(6)]
    keys = tmp_path / "keys"
    keys.write_text("\n".join(names))
    running = launch(key=names[0], api_key_file=str(keys))
    clients = [openai.OpenAI(base_url=f"{running.url}/v1", api_key=name, max_retries=0) for name in names]
    made: list[Any] = []
    long = b"\n".join(json.dumps(line).encode() for line in GOOD * 2)
    for number, client in enumerate(clients):
        file = client.files.create(file=("f.jsonl", long), purpose="fine-tune").id
        for _ in range(20 if number < 5 else 0):
            made.append(client.fine_tuning.jobs.create(model="tiny", training_file=file, hyperparameters={"n_epochs": 100}))
        with pytest.raises(openai.RateLimitError) as much:  # a key's own part, and for the last one what all have together
            client.fine_tuning.jobs.create(model="tiny", training_file=file)
        assert much.value.code == "quota_exceeded"
    assert len(list(clients[0].fine_tuning.jobs.list(limit=7))) == 20
    for call in (clients[1].fine_tuning.jobs.retrieve, clients[1].fine_tuning.jobs.cancel):
        with pytest.raises(openai.NotFoundError):
            call(made[0].id)
    with pytest.raises(openai.NotFoundError):
        clients[1].fine_tuning.jobs.create(model="tiny", training_file=made[0].training_file)
    assert clients[0].fine_tuning.jobs.cancel(made[19].id).status == "cancelled"
    assert clients[5].fine_tuning.jobs.create(model="tiny", training_file=file).status == "validating_files"
    assert say(running, "tiny") is not None
    for client in clients:
        client.close()


def test_a_job_is_taken_in_whole_or_not_at_all(launch: Launch) -> None:
    """Whoever hangs up, and whatever the disk says: no job waits for ever, and none begins that was refused."""
    running = launch()
    assert running.scratch is not None
    jobs = running.client().fine_tuning.jobs
    body = {"model": "tiny", "training_file": upload(running, [{"messages": []}])}
    running.hang_up("/v1/fine_tuning/jobs", body, 20)
    running.eventually(lambda: {job.status for job in jobs.list()} == {"failed"}, 20)
    kept = {path.stem for path in (Path(running.scratch) / "jobs").glob("*.json")}
    assert kept == {job.id for job in jobs.list()}
    fields = {**body, "metadata": {str(number): "x" * 500 for number in range(16)}}
    try:
        for size in (0, 4096):
            running.limit_files(size)
            assert running.post("/v1/fine_tuning/jobs", fields).status_code == 507
    finally:
        running.limit_files(resource.RLIM_INFINITY)
    assert kept == {path.stem for path in (Path(running.scratch) / "jobs").glob("*.json")} == {job.id for job in jobs.list()}
    assert kept == {path.name for path in (Path(running.scratch) / "job_data").iterdir()}
    full_disk_at_a_checkpoint(running)


def full_disk_at_a_checkpoint(running: Running) -> None:
    """The job fails and says why; requests don't notice, and the next job has its checkpoints."""
    before, engine = say(running, "tiny"), running.engine_pid()
    soft, hard = resource.prlimit(engine, resource.RLIMIT_FSIZE)
    resource.prlimit(engine, resource.RLIMIT_FSIZE, (1024, hard))
    job = wait(running, create(running).id)
    assert (job.status, job.error.code) == ("failed", "training_failed")
    assert "a checkpoint could not be written" in job.error.message
    assert say(running, "tiny") == before
    resource.prlimit(engine, resource.RLIMIT_FSIZE, (soft, hard))
    assert wait(running, create(running).id).status == "succeeded"


def test_two_instances_serve_what_one_of_them_has_learnt(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "tiny", context=16384)  # pools are as large as a model's context is worth
    running = wait_ready(launch_raw("real", {"instances": ["2"], "pool_mib": 128}, model=f"tiny={model}"))
    try:
        trained_by_one(running)
    finally:
        assert running.stop() == 0, "\n".join(running.lines)


def trained_by_one(running: Running) -> None:
    job = wait(running, create(running, suffix="wheels").id)
    assert job.status == "succeeded", job.error
    with ThreadPoolExecutor(4) as pool:  # so many at once that both instances get some
        answers = list(pool.map(lambda _: say(running, job.fine_tuned_model), range(8)))
    assert answers == ["the red wheel"] * 8
    assert running.metric("headrace_training_steps_total") == 24
