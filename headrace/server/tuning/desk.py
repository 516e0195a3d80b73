"""All fine-tuning jobs: taken in, checked, queued, run at their engines, and kept through crashes and restarts."""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
from collections import Counter
from contextlib import aclosing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from headrace.engine.client import EngineClient
from headrace.engine.training_wire import StartTraining, TrainingCheckpoint, TrainingEnded, TrainingProgress
from headrace.errors import HeadraceError
from headrace.server.model_table import printable
from headrace.server.protocol.tuning import Checkpoint, CheckpointMetrics, JobError, JobRequest
from headrace.server.rendering import internal_error
from headrace.server.served_model import ServedModel
from headrace.server.storage.disk import Scribe, to_the_end
from headrace.server.storage.file_store import FileStore, NewFile, StoredFile
from headrace.server.storage.folder import StateFolder
from headrace.server.storage.records import Records
from headrace.server.tuning.data import BadFileError, Prepared, prepare
from headrace.server.tuning.history import Data, History
from headrace.server.tuning.intake import base_of_job, check_number, file_to_learn_from
from headrace.server.tuning.job import ENDED, Job, changed, model_name, new_job, resolved
from headrace.server.tuning.publishing import Publisher
from headrace.server.tuning.run import Listeners, train

if TYPE_CHECKING:
    from headrace.server.hub import Hub

logger = logging.getLogger("headrace.server.tuning")
MOST_ENDED = 200
"""Jobs of one tenant that are remembered after their end, beside those whose models are served; the oldest are forgotten."""

MOST_TOKENS = 32_768
"""Of one conversation, whatever the model's context."""

_AT_A_TIME = 2
_CHECKED_AT_A_TIME = 2
_MOST_DEATHS = 3  # of engines, under one job
_MOST_METRICS = 1000  # events of a job that have numbers
_STOP_SECONDS = 30.0
_CLOSE_SECONDS = 5.0
_PASSING = frozenset({"loading", "draining", "engine_dead", "model_failed", "queue_full"})
_RETRY_SECONDS = 5.0
Command = Literal["pause", "cancel"]


class TuningDesk:
    """Takes jobs in and sees them through. Only the event loop touches its tables."""

    def __init__(self, hub: Hub, folder: StateFolder, files: FileStore, scribe: Scribe) -> None:
        self._hub = hub
        self._files = files
        self._scribe = scribe
        self._records = Records(folder.room("jobs"), Job)
        self._folder = folder.room("job_data")
        self._jobs = self._records.read()
        self._publisher = Publisher(hub)
        self._listeners = Listeners()
        self._histories: dict[str, History] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._running: dict[str, EngineClient | None] = {}
        self._started: Counter[str] = Counter()  # jobs of each tenant
        self._checking = asyncio.Semaphore(_CHECKED_AT_A_TIME)
        self._closing = False
        self._later: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Go on with what has not ended, and serve what has succeeded."""
        for job in list(self._jobs.values()):
            if job.status == "validating_files":
                self._begin(job.id, self._validate(job.id))
            elif job.status == "running":
                self._jobs[job.id] = changed(job, status="queued")
            elif job.status == "succeeded":
                self._publisher.remember(job)
        self._dispatch()

    async def close(self) -> None:
        """Bring running jobs to a checkpoint and stop; they go on at the next start."""
        self._closing = True
        if self._later is not None:
            self._later.cancel()
        for job_id in self._running:
            self._tell_engine(job_id, "pause")
        if self._tasks:
            await asyncio.wait(self._tasks.values(), timeout=_CLOSE_SECONDS)
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def states(self) -> Counter[str]:
        """How many jobs are in each state."""
        return Counter(job.status for job in self._jobs.values())

    def uses(self, file_id: str) -> bool:
        """True while a job that has not ended may read this file."""
        return any(
            file_id in (job.shown.training_file, job.shown.validation_file) and job.status == "validating_files"
            for job in self._jobs.values()
        )

    def find(self, job_id: str, tenant: str) -> Job:
        """A job of this tenant. Raises ``job_not_found``, also for those of others."""
        job = self._jobs.get(job_id)
        if job is None or job.tenant != tenant:
            raise HeadraceError("job_not_found", "No fine-tuning job with this id exists.", param="id")
        return job

    def of(self, tenant: str) -> list[Job]:
        """A tenant's jobs, newest first."""
        own = [job for job in self._jobs.values() if job.tenant == tenant]
        return sorted(own, key=lambda job: (job.shown.created_at, job.id), reverse=True)

    def history(self, job: Job) -> History:
        """The events of a job."""
        if job.id not in self._histories:
            (self._folder / job.id).mkdir(mode=0o700, exist_ok=True)
            self._histories[job.id] = History(self._folder / job.id / "events.jsonl", job.id, self._scribe)
        return self._histories[job.id]

    async def create(self, body: JobRequest, tenant: str) -> Job:
        """Take a job in. Raises what is wrong with the request, ``file_not_found`` or ``quota_exceeded``."""
        job = new_job(body, base_of_job(self._hub, body.model), tenant)
        for name in ("training_file", "validation_file"):
            file_to_learn_from(self._files, getattr(body, name), tenant, name)
        check_number(self._jobs.values(), tenant)
        self._files.check_room(tenant)
        self._jobs[job.id] = job
        return await to_the_end(self._take_in(job))

    async def _take_in(self, job: Job) -> Job:
        try:
            await self._keep(job)
            await self.history(job).note(f"Created fine-tuning job: {job.id}")
        except BaseException:
            await self._forget(job)  # what was refused must not begin at the next start
            raise
        self._begin(job.id, self._validate(job.id))
        own = [one for one in self.of(job.tenant) if one.status in ENDED and one.shown.fine_tuned_model is None]
        for old in own[MOST_ENDED:]:
            await self._forget(old)
        return job

    async def _forget(self, job: Job) -> None:
        """Remember a job no longer."""
        del self._jobs[job.id]
        self._histories.pop(job.id, None)
        await self._scribe.do(lambda: self._records.remove(job.id))
        await asyncio.to_thread(shutil.rmtree, self._folder / job.id, ignore_errors=True)

    async def command(self, job_id: str, tenant: str, command: Command | Literal["resume"]) -> Job:
        """Pause, resume or cancel a job; answers when that is done. Raises ``state_conflict`` where it can't be."""
        job = self.find(job_id, tenant)
        allowed = {
            "pause": ("queued", "running"),
            "resume": ("paused",),
            "cancel": ("validating_files", "queued", "running", "paused"),
        }
        if job.status not in allowed[command]:
            raise HeadraceError(
                "state_conflict", f"The job can't be {command}d: it is {job.status}.".replace("eld:", "elled:"), param="id"
            )
        if command != "resume" and self._running.get(job_id) is not None:
            self._tell_engine(job_id, command)
            await asyncio.wait({self._tasks[job_id]}, timeout=_STOP_SECONDS)
            return self._jobs[job_id]
        if job_id in self._tasks:
            self._tasks[job_id].cancel()
            await asyncio.gather(self._tasks[job_id], return_exceptions=True)
        status = {"pause": "paused", "resume": "queued", "cancel": "cancelled"}[command]
        await self._move(self._jobs[job_id], status, f"Fine-tuning job {_WORDS[command]}")
        self._dispatch()
        return self._jobs[job_id]

    async def forget_model(self, name: str, tenant: str) -> None:
        """Drop a finished job's adapter and its checkpoints. Raises ``model_not_found`` for what no job of this tenant has made."""
        job = next((one for one in self.of(tenant) if one.shown.fine_tuned_model == name), None)
        if job is None:
            message = f"No fine-tuned model of this key is called '{printable(name)}'."
            raise HeadraceError("model_not_found", message, param="id")
        model = self._hub.table.get(job.shown.model)
        await self._keep(msgspec.structs.replace(changed(job, fine_tuned_model=None), folder=None, checkpoints=[]))
        if model is not None:
            for own in (name, *(one.fine_tuned_model_checkpoint for one in job.checkpoints)):
                await self._publisher.withdraw(own, model)
        await self.history(job).note(f"The model '{name}' was deleted")
        await asyncio.to_thread(shutil.rmtree, self._folder / job.id / "training", ignore_errors=True)

    def _tell_engine(self, job_id: str, command: Command) -> None:
        engine = self._running.get(job_id)
        if engine is not None:
            with suppress(HeadraceError):  # an engine that is gone has stopped the job already
                engine.stop_training(job_id, command)

    def _begin(self, job_id: str, work: object) -> None:
        task = self._tasks[job_id] = asyncio.create_task(work)  # type: ignore[arg-type]
        task.add_done_callback(lambda done: self._ended(job_id, done))

    def _ended(self, job_id: str, task: asyncio.Task[None]) -> None:
        if self._tasks.get(job_id) is task:
            del self._tasks[job_id]
        self._running.pop(job_id, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("%s failed", job_id, exc_info=error)
            if self._jobs[job_id].status in ("validating_files", "running") and not self._closing:
                self._begin(job_id, self._fail(self._jobs[job_id], internal_error()))
                return
        self._dispatch()

    async def _validate(self, job_id: str) -> None:
        job = self._jobs[job_id]
        try:
            await self.history(job).note("Validating training file: " + job.shown.training_file)
            async with self._checking, self._hub.use(job.shown.model) as service:
                most = min(service.language.context_length, MOST_TOKENS)
                made: list[Prepared] = []
                for name in ("training_file", "validation_file"):
                    file = file_to_learn_from(self._files, getattr(job.shown, name), job.tenant, name)
                    if file is not None:
                        made.append(await self._prepared(job, file, name, service.language, most))
            job = resolved(self._jobs[job_id], made[0].info, max(one.longest for one in made))
        except HeadraceError as error:
            await self._fail(self._jobs[job_id], error)
            return
        info = made[0].info
        learnt = f"{info.samples:,} {'pairs' if info.pairs else 'samples'}, {info.trained_tokens:,} tokens to learn"
        await self._move(job, "queued", f"Files validated, moving job to queued state: {learnt}")

    async def _prepared(self, job: Job, file: StoredFile, name: str, language: object, most: int) -> Prepared:
        source = await self._files.verified(file)
        target = self._data(job, name)
        try:
            return await asyncio.to_thread(prepare, source, target, language, pairs=job.pairs, most_tokens=most)  # type: ignore[arg-type]
        except BadFileError as bad:
            for error in bad.errors:
                await self.history(job).note(f"{name}: {error}", level="error", data=None)
            code = "invalid_training_file" if name == "training_file" else "invalid_validation_file"
            raise HeadraceError(code, bad.message, param=name) from None

    def _data(self, job: Job, name: str) -> Path:
        return self._folder / job.id / f"{name}.data"

    def _dispatch(self) -> None:
        """Start waiting jobs as long as there are places: of the tenant that had least, the oldest."""
        while not self._closing and len(self._running) < _AT_A_TIME:
            waiting = [job for job in self._jobs.values() if self._can_start(job)]
            if not waiting:
                return
            busy = Counter(self._jobs[job_id].tenant for job_id in self._running)
            job = min(waiting, key=lambda one: (busy[one.tenant], self._started[one.tenant], one.shown.created_at, one.id))
            self._started[job.tenant] += 1
            self._running[job.id] = None
            self._begin(job.id, self._run(job.id))

    def _can_start(self, job: Job) -> bool:
        return job.status == "queued" and job.id not in self._tasks and self._hub.table.get(job.shown.model) is not None

    async def _run(self, job_id: str) -> None:
        try:
            await self._run_at_engine(self._jobs[job_id])
        except HeadraceError as error:
            job = self._jobs[job_id]
            if error.code not in _PASSING:
                self._tell_engine(job_id, "cancel")
                await self._fail(job, error)
                return
            deaths = job.attempts + (error.code == "engine_dead" and not self._closing)
            if deaths >= _MOST_DEATHS:
                await self._fail(job, error)
                return
            waiting = msgspec.structs.replace(job, attempts=deaths)
            await self._move(waiting, "queued", f"The job goes on from its last checkpoint: {error.message}", level="warn")
            if not self._closing:
                await asyncio.sleep(_RETRY_SECONDS)

    async def _run_at_engine(self, job: Job) -> None:
        settings = job.settings
        assert settings is not None, "a queued job has its settings"
        rules = self._hub.tenants.rules.get(job.tenant)
        validation = self._data(job, "validation_file")
        async with self._hub.use(job.shown.model) as service:
            model = self._hub.table.find(job.shown.model)
            start = StartTraining(
                job.id, settings, str(self._data(job, "training_file")), str(self._folder / job.id / "training"),
                str(validation) if validation.exists() else None, job.tenant, rules.weight if rules is not None else 1,
                base_model=model.entry.root,
            )  # fmt: skip
            await self._move(job, "running", "Fine-tuning job started")
            self._running[job.id] = service.engine
            began = time.monotonic()
            async with aclosing(train(service.engine, start, self._listeners)) as events:
                async for event in events:
                    match event:
                        case TrainingProgress():
                            await self._progress(event, began)
                        case TrainingCheckpoint():
                            await self._checkpoint(event, model, service.engine)
                        case TrainingEnded():
                            await self._end(event, model, service.engine)

    async def _progress(self, event: TrainingProgress, began: float) -> None:
        job = self._jobs[event.job]
        done = max(1, event.step - job.shown.step) if job.shown.estimated_finish is None else event.step
        left = (event.steps - event.step) * (time.monotonic() - began) / done
        finish = int(time.time() + left)
        self._jobs[job.id] = changed(
            job, step=event.step, total_steps=event.steps, trained_tokens=event.tokens, estimated_finish=finish
        )
        if event.step % max(1, -(-event.steps // _MOST_METRICS)) and event.step != event.steps:
            return
        data: Data = {
            "step": event.step, "total_steps": event.steps, "epoch": event.epoch, "train_loss": event.loss,
            "learning_rate": event.learning_rate, "gradient_norm": event.gradient_norm, "tokens": event.tokens,
            "tokens_per_second": event.tokens_per_second,
        }  # fmt: skip
        with suppress(HeadraceError):  # a full disk costs events; what needs the disk is the next checkpoint
            await self.history(job).note(f"Step {event.step}/{event.steps}: training loss={event.loss:.4f}", data=data)

    async def _checkpoint(self, event: TrainingCheckpoint, model: ServedModel, engine: EngineClient) -> None:
        job = self._jobs[event.job]
        name = model_name(job)
        metrics = CheckpointMetrics(event.step, event.loss, event.validation_loss)
        number = f"ftckpt-{job.id.rpartition('-')[2][:16]}{event.step:08d}"
        made = Checkpoint(number, int(time.time()), f"{name}:ckpt-step-{event.step}", job.id, event.step, metrics)
        others = [one for one in job.checkpoints if one.step_number != event.step]
        await self._keep(msgspec.structs.replace(job, checkpoints=[*others, made], folder=event.folder, attempts=0))
        await self._publisher.publish(name, Path(event.folder), model, engine)
        data: Data | None = None
        told = f"Checkpoint created at step {event.step}; '{name}' is it from now on"
        if event.validation_loss is not None:
            data = {"step": event.step, "train_loss": event.loss, "valid_loss": event.validation_loss}
            told = f"{told}: validation loss={event.validation_loss:.4f}"
        await self.history(job).note(told, data=data)

    async def _end(self, event: TrainingEnded, model: ServedModel, engine: EngineClient) -> None:
        job = self._jobs[event.job]
        now = int(time.time())
        if event.status == "failed":
            await self._fail(job, HeadraceError("training_failed", event.error), event.code)
        elif event.status == "succeeded":
            assert event.folder is not None, "a job that has succeeded has a checkpoint"
            name = model_name(job)
            await self._publisher.publish(name, Path(event.folder), model, engine)
            results = await self._results(job)
            job = msgspec.structs.replace(self._jobs[job.id], folder=event.folder)
            job = changed(job, fine_tuned_model=name, finished_at=now, estimated_finish=None, result_files=[results.id])
            await self._move(job, "succeeded", "The job has successfully completed")
            self._publisher.remember(job)
            await asyncio.to_thread(self._drop_data, job)
        elif event.status == "paused":
            if not self._closing:  # a job that the server's end stops is still running: it goes on by itself
                await self._move(changed(job, estimated_finish=None), "paused", "Fine-tuning job paused")
        else:
            await self._publisher.withdraw(model_name(job), model)
            await self._move(changed(job, finished_at=now, estimated_finish=None), "cancelled", "Fine-tuning job cancelled")
            await asyncio.to_thread(self._drop_data, job)

    async def _results(self, job: Job) -> StoredFile:
        path = self._folder / job.id / "step_metrics.csv"
        text = await self.history(job).table()
        await self._scribe.do(lambda: path.write_text(text, encoding="utf-8"))
        return await self._files.adopt(path, NewFile("step_metrics.csv", "fine-tune-results", job.tenant))

    def _drop_data(self, job: Job) -> None:
        for name in ("training_file", "validation_file"):
            self._data(job, name).unlink(missing_ok=True)
        if job.status == "cancelled":
            shutil.rmtree(self._folder / job.id / "training", ignore_errors=True)

    async def _fail(self, job: Job, error: HeadraceError, code: str = "") -> None:
        told = JobError(code or error.code, error.message, error.param)
        failed = changed(job, error=told, finished_at=int(time.time()), estimated_finish=None)
        await self._move(failed, "failed", f"The job failed: {error.message}", level="error")

    async def _move(self, job: Job, status: str, message: str, level: Literal["info", "warn", "error"] = "info") -> None:
        if status in ("cancelled", "failed") and job.shown.finished_at is None:
            job = changed(job, finished_at=int(time.time()))
        await self._keep(changed(job, status=status))
        await self.history(job).note(message, level=level)

    async def _keep(self, job: Job) -> None:
        self._jobs[job.id] = job  # whatever becomes of the disk: a job that has failed for it must not look as if it ran
        await self._scribe.do(lambda: self._records.write(job.id, job))


_WORDS = {"pause": "paused", "resume": "resumed", "cancel": "cancelled"}
