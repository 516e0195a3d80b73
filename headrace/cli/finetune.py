"""``headrace finetune``: train an adapter on a file of conversations and watch it learn."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from headrace.cli.api import Api
from headrace.cli.arguments import arguments
from headrace.cli.curve import curve
from headrace.cli.output import number, progress_bar, stderr, stdout
from headrace.errors import HeadraceError
from headrace.settings.declaration import option, validate

_FILE = click.Path(path_type=Path, dir_okay=False, exists=True)
_ENDED = ("succeeded", "failed", "cancelled", "paused")
_LOOK_SECONDS = 0.5
_START_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class FinetuneArguments:
    """What and how to learn. ``None``: chosen by the server from the size of the file."""

    method: str = option("supervised", choices=("supervised", "dpo"), help="supervised: learn the answers. dpo: prefer one of two.")
    suffix: str | None = option(None, help="A word for the name of the finished model: ft:BASE:SUFFIX:ID.")
    epochs: int | None = option(None, minimum=1, maximum=100, help="How often to go through the file.")
    batch: int | None = option(None, minimum=1, maximum=256, help="Samples that each step of the optimiser learns from.")
    learning_rate: float | None = option(None, minimum=0.0, maximum=100.0, help="Factor on the usual learning rate.")
    rank: int | None = option(None, minimum=1, maximum=256, help="Rank of the adapter: how much it can learn, and its size.")
    beta: float | None = option(None, minimum=0.0, maximum=2.0, help="With dpo: how closely to stay with the base model.")
    seed: int | None = option(None, minimum=0, maximum=2**31 - 1, help="Of order and start: same seed, same adapter, bit for bit.")

    def __post_init__(self) -> None:
        validate(self)

    def body(self) -> dict[str, Any]:
        """The fields of a job."""
        given = {
            "n_epochs": self.epochs, "batch_size": self.batch, "learning_rate_multiplier": self.learning_rate,
            "lora_rank": self.rank, "beta": self.beta,
        }  # fmt: skip
        parameters = {name: value for name, value in given.items() if value is not None}
        fields = {"suffix": self.suffix, "seed": self.seed}
        method = {"type": self.method, self.method: {"hyperparameters": parameters}}
        return {"method": method, **{name: value for name, value in fields.items() if value is not None}}


@click.command()
@click.argument("file", type=_FILE)
@click.option("--base", default="smollm2", show_default=True, metavar="MODEL", help="The model to train an adapter for.")
@click.option("--validation", type=_FILE, metavar="FILE", help="Held-out lines: their loss is measured at every checkpoint.")
@click.option("--url", metavar="URL", help="A running server. Without it one is started for the job, and stopped afterwards.")
@click.option("--api-key", envvar="OPENAI_API_KEY", metavar="TEXT", help="A key of that server, if it wants one.")
@click.option("--state-dir", metavar="FOLDER", help="Folder of the server that is started (see `headrace serve`).")
@click.option("--detach", is_flag=True, help="With --url: print the job's id and don't wait.")
@arguments(FinetuneArguments)
def finetune(wanted: FinetuneArguments, file: Path, validation: Path | None, **where: Any) -> None:
    """Train a LoRA adapter on FILE and serve it as a model.

    Every line of FILE is one conversation, as OpenAI's fine-tuning has them; the assistant's messages are learnt:

    \b
    {"messages": [{"role": "user", "content": "Is the sea wet?"}, {"role": "assistant", "content": "Yes."}]}

    With --method dpo every line has two answers to one conversation, the better one first:

    \b
    {"input": {"messages": [{"role": "user", "content": "Hello"}]},
     "preferred_output": [{"role": "assistant", "content": "Hello! How can I help?"}],
     "non_preferred_output": [{"role": "assistant", "content": "What?"}]}

    A few dozen good lines teach a manner; some hundreds teach a task. Keep a tenth of them apart for --validation: when its loss
    rises while the training loss still falls, the model learns your lines by heart, and fewer --epochs are better.

    \b
    headrace finetune lines.jsonl --suffix mine
    headrace finetune lines.jsonl --validation held-out.jsonl --epochs 3 --rank 8
    headrace finetune lines.jsonl --url http://127.0.0.1:8080 --detach

    Ctrl-C stops watching. A server that was started for the job stops with it, and the job goes on at its last checkpoint when a
    server is started again in the same folder.
    """
    if where["detach"] and where["url"] is None:
        raise HeadraceError("invalid_value", "--detach needs the --url of a server that goes on", param="detach")
    with _server(where["url"], where["base"], where["state_dir"]) as url:
        api = Api(url, where["api_key"])
        model = where["base"] if where["url"] is not None else api.get("/models")["data"][0]["id"]
        body = {"model": model, "training_file": api.upload(file, "fine-tune"), **wanted.body()}
        if validation is not None:
            body["validation_file"] = api.upload(validation, "fine-tune")
        job = api.post("/fine_tuning/jobs", body)
        if where["detach"]:
            click.echo(job["id"])
            return
        job = _watch(api, job["id"])
        _summary(api, job, own=where["url"] is None)
    if job["status"] != "succeeded":
        raise click.exceptions.Exit(1)


@contextmanager
def _server(url: str | None, base: str, state_dir: str | None) -> Iterator[str]:
    """The given server, or one that lives as long as the block."""
    if url is not None:
        yield url
        return
    folder = ["--state-dir", state_dir] if state_dir is not None else []
    command = [sys.executable, "-m", "headrace", "serve", "--port", "0", "--model", base, *folder]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            with stderr().status(f"loading {base}"):
                found = _listening(process)
            yield found
        finally:
            process.terminate()
            process.communicate()


def _listening(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    told: list[str] = []
    address = ""
    until = time.monotonic() + _START_SECONDS
    for line in process.stderr:
        told.append(line.strip())
        match = re.search(r"listening on (http://\S+)", line)
        address = match[1] if match else address
        if " is ready" in line and address:
            return address
        if "no files, batches or fine-tuning here" in line:
            problem = "another server has the folder for jobs; give its address with --url, or another --state-dir"
            raise HeadraceError("invalid_setting", problem, param="state_dir")
        if time.monotonic() > until:
            break
    raise HeadraceError("invalid_setting", f"the server did not start: {' '.join(told[-3:])}", param="base")


def _watch(api: Api, job_id: str) -> dict[str, Any]:
    """Show a bar until the job has ended or is paused; the job."""
    with progress_bar() as bar:
        task = bar.add_task("checking the file", total=None)
        while True:
            job: dict[str, Any] = api.get(f"/fine_tuning/jobs/{job_id}")
            loss = _last_loss(api, job_id) if job["step"] else None
            words = {"validating_files": "checking the file", "queued": "waiting for other jobs", "running": "training"}
            told = words.get(job["status"], job["status"]) + (f", loss {loss:.3f}" if loss is not None else "")
            bar.update(task, description=told, total=job["total_steps"], completed=job["step"])
            if job["status"] in _ENDED:
                return job
            time.sleep(_LOOK_SECONDS)


def _last_loss(api: Api, job_id: str) -> float | None:
    for event in api.get(f"/fine_tuning/jobs/{job_id}/events?limit=5")["data"]:
        if event["type"] == "metrics":
            return float(event["data"]["train_loss"])
    return None


def _metrics(api: Api, job_id: str) -> list[dict[str, Any]]:
    """The numbers of all events, oldest first."""
    found: list[dict[str, Any]] = []
    after = ""
    while True:
        page = api.get(f"/fine_tuning/jobs/{job_id}/events?limit=100{after}")
        found += [event["data"] for event in page["data"] if event["type"] == "metrics"]
        if not page["has_more"]:
            return found[::-1]
        after = f"&after={page['data'][-1]['id']}"


def _summary(api: Api, job: dict[str, Any], *, own: bool) -> None:
    console = stdout()
    if job["status"] == "failed":
        click.echo(f"headrace: the job failed: {job['error']['message']}", err=True)
        return
    metrics = _metrics(api, job["id"])
    train = [(float(data["step"]), float(data["train_loss"])) for data in metrics if "tokens" in data]
    valid = [(float(data["step"]), float(data["valid_loss"])) for data in metrics if data.get("valid_loss") is not None]
    lines = curve(train, valid)
    if lines:
        console.print("training loss by step" + (" (× held-out loss)" if valid else ""), *lines, sep="\n", markup=False)
    console.print(f"{job['status']} after {job['step']:,} of {job['total_steps'] or 0:,} steps", markup=False)
    if train:
        rates = sorted(float(data["tokens_per_second"]) for data in metrics if "tokens_per_second" in data)
        console.print(
            f"training loss {number(train[0][1])} → {number(train[-1][1])}, {job['trained_tokens'] or 0:,} tokens", markup=False
        )
        console.print(f"about {number(rates[len(rates) // 2])} tokens/s", markup=False)
    if valid:
        console.print(f"held-out loss {number(valid[0][1])} → {number(valid[-1][1])}", markup=False)
    if job["status"] == "succeeded":
        console.print(f"\nmodel: {job['fine_tuned_model']}", markup=False)
        how = "`headrace serve` serves it by this name from now on" if own else f"{api.url} serves it by this name"
        console.print(how, markup=False)
