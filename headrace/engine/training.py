"""Fine-tuning inside the engine: units of jobs run in what steps leave of their time, on the same cores."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from headrace.engine.adapters import Prepared
from headrace.engine.adapting import Adapting
from headrace.engine.training_memory import JobPages, take_pages
from headrace.engine.training_wire import (
    StartTraining,
    StopTraining,
    TrainingCheckpoint,
    TrainingEnded,
    TrainingEvent,
    TrainingGauges,
    TrainingProgress,
    TrainingStatus,
)
from headrace.errors import HeadraceError
from headrace.kernels.interface import Bytes
from headrace.memory.page_pool import PagePool
from headrace.models.config import ModelConfig
from headrace.scheduling.training_share import ServingLoad, TrainingShare
from headrace.training.backbone import Backbone
from headrace.training.checkpoint import Progress
from headrace.training.crew import Crew, quiet_numbers, single_threaded_products
from headrace.training.dataset_file import open_dataset
from headrace.training.job import Job, Saved, Stepped, Work
from headrace.training.needs import job_bytes
from headrace.training.units import Unit

logger = logging.getLogger("headrace.engine.training")

MOST_JOBS = 64
IDLE_SECONDS = 0.1  # of units in a row before an idle engine looks at everything else


def _any_base() -> None:
    """Adapters fit this base."""


@dataclass(frozen=True, slots=True)
class TrainingParts:
    """What training stands on. ``backbone`` reads the model's weights. ``rows``: the bytes of ``pool``. ``leave``: pages that jobs
    never take. ``target``, ``bound``: see :class:`~headrace.scheduling.training_share.TrainingShare`. ``check_base`` raises when
    the base can't have adapters."""

    config: ModelConfig
    backbone: Callable[[], Backbone]
    pool: PagePool
    rows: Bytes
    threads: int
    leave: int
    target: float | None
    bound: float
    check_base: Callable[[], object] = _any_base
    clock: Callable[[], float] = time.perf_counter


class _Hosted:
    """One job and where it is: waiting for pages, being prepared, running, writing."""

    def __init__(self, start: StartTraining) -> None:
        self.start = start
        self.pages: list[int] = []
        self.preparing: Future[Job] | None = None
        self.job: Job | None = None
        self.units: Iterator[Unit] | None = None
        self.unit: Unit | None = None
        self.stop: str | None = None
        self.spent = 0.0
        self.spent_before = 0.0
        self.tokens_before = 0
        self.publishing: list[Future[Prepared]] = []


class Training:
    """Jobs of one engine. Everything happens in :meth:`run` and the calls; only files and weights are read beside it."""

    def __init__(self, parts: TrainingParts) -> None:
        self._parts = parts
        self.adapting: Adapting | None = None  # whoever serves what is published
        self.share = TrainingShare(parts.target, parts.bound)
        self._jobs: dict[str, _Hosted] = {}
        self._events: list[TrainingEvent] = []
        self._files = ThreadPoolExecutor(1, "training-files")
        self._backbone: Backbone | None = None
        self._loading = threading.Lock()
        self._crew: Crew | None = None
        self._products = ExitStack()
        self._units = self._beside = self._steps = self._tokens = 0
        self._seconds = 0.0

    @property
    def active(self) -> bool:
        """True while there are jobs, so that :meth:`run` may have something to do now or soon."""
        return bool(self._jobs)

    @property
    def preparing(self) -> bool:
        """True while a job's files are being read."""
        return any(hosted.preparing is not None for hosted in self._jobs.values())

    def holders(self) -> list[list[int]]:
        """The page lists of all jobs, for the pool's check."""
        return [hosted.pages for hosted in self._jobs.values() if hosted.pages]

    def start(self, start: StartTraining) -> None:
        """Take a job. What is wrong with it is told by its TrainingEnded."""
        if start.job in self._jobs:
            self._events.append(TrainingEnded(start.job, "failed", 0, None, "invalid_value", "a job of this name runs already"))
            return
        try:
            if len(self._jobs) >= MOST_JOBS:
                raise HeadraceError("queue_full", f"{MOST_JOBS} jobs are under way, which is the limit")
            if not 1 <= start.weight <= 1000:
                raise HeadraceError("invalid_value", f"weight must lie in 1 … 1000, not {start.weight}", param="weight")
            self._parts.check_base()
            self._pages_for(start, keep_both=False, at_all=True)
        except HeadraceError as error:
            self._events.append(TrainingEnded(start.job, "failed", 0, None, error.code, error.message))
            return
        logger.info("job %s of tenant %r begins", start.job[:64], start.tenant[:64])
        if not self._jobs:
            self._products.enter_context(single_threaded_products())
            self._crew = Crew(self._parts.threads)
        self._jobs[start.job] = _Hosted(start)
        self.share.enter(start.job)
        self._prepare_waiting()

    def stop(self, stop: StopTraining) -> None:
        """End a job between two units; it may still have to write a checkpoint."""
        hosted = self._jobs.get(stop.job)
        if hosted is not None and hosted.stop != "cancel":
            hosted.stop = stop.how
            self._look(hosted)

    def run(self, load: ServingLoad, interrupted: Callable[[], bool]) -> bool:
        """Run units within what ``load`` leaves, until ``interrupted``; False when nothing ran and nothing changed."""
        clock = self._parts.clock
        left, began, ran = self.share.allowance(load), clock(), False
        while True:
            self.look()
            name = self.share.next_job([name for name, hosted in self._jobs.items() if hosted.unit is not None])
            if name is None or self._events:
                return ran or bool(self._events)
            hosted = self._jobs[name]
            assert hosted.unit is not None, "ready jobs have a unit"
            if not self.share.fits(hosted.unit.kind, hosted.unit.work, left, first=not ran):
                return ran
            seconds = self._run_unit(hosted, hosted.unit)
            self._beside += load.live > 0
            left -= seconds
            ran = True
            if interrupted() or (load.live == 0 and clock() - began > IDLE_SECONDS):
                return True

    def look(self) -> None:
        """Bring all jobs on, as far as they can go without running a unit."""
        for hosted in list(self._jobs.values()):
            self._look(hosted)

    def take_events(self) -> list[TrainingEvent]:
        """What happened; each is told once."""
        events, self._events = self._events, []
        return events

    def gauges(self) -> TrainingGauges | None:
        """The state now; ``None`` when nothing was ever trained."""
        if not (self._jobs or self._units):
            return None
        return TrainingGauges(
            jobs=len(self._jobs), pages=sum(len(hosted.pages) for hosted in self._jobs.values()),
            backbone_bytes=self._backbone.bytes if self._backbone is not None else 0, units=self._units, beside=self._beside,
            seconds=self._seconds, tokens=self._tokens, steps=self._steps,
        )  # fmt: skip

    def close(self) -> None:
        """End everything without another checkpoint; jobs can go on from the last one."""
        for hosted in list(self._jobs.values()):
            self._leave(hosted)
        self._files.shutdown(wait=True, cancel_futures=True)

    def _run_unit(self, hosted: _Hosted, unit: Unit) -> float:
        clock = self._parts.clock
        began = clock()
        hosted.unit = None
        try:
            with quiet_numbers():
                unit.run()
        except HeadraceError as error:
            self._end(hosted, "failed", error)
        except Exception as error:  # whatever goes wrong in a job ends that job and nothing else
            logger.exception("job %s has failed", hosted.start.job[:64])
            self._end(hosted, "failed", HeadraceError("internal_error", f"the job has failed: {type(error).__name__}"))
        seconds = max(clock() - began, 1e-9)
        self.share.observe(unit.kind, unit.work, seconds)
        self.share.charge(hosted.start.job, seconds, hosted.start.weight)
        hosted.spent += seconds
        self._seconds += seconds
        self._units += 1
        self._tokens += unit.tokens
        return seconds

    def _look(self, hosted: _Hosted) -> None:
        """Bring a job to its next unit, as far as it can go without running one."""
        try:
            self._publish(hosted)
            if hosted.job is None:
                self._look_before(hosted)
                return
            if hosted.job.writing is not None:
                if not hosted.job.writing.done():
                    return
                hosted.job.saved()
                self._tell(hosted, hosted.job)
            self._advance(hosted, hosted.job)
        except HeadraceError as error:
            self._end(hosted, "failed", error)
        except OSError as error:
            message = f"a checkpoint could not be written: {error.strerror or error}"
            self._end(hosted, "failed", HeadraceError("training_failed", message))
        except Exception as error:  # as in _run_unit
            logger.exception("job %s has failed", hosted.start.job[:64])
            self._end(hosted, "failed", HeadraceError("internal_error", f"the job has failed: {type(error).__name__}"))

    def _look_before(self, hosted: _Hosted) -> None:
        """A job that is not ready yet."""
        if hosted.stop is not None and hosted.preparing is None:
            self._end(hosted, "paused" if hosted.stop == "pause" else "cancelled")
        elif hosted.preparing is not None and hosted.preparing.done():
            hosted.job = hosted.preparing.result()
            hosted.preparing = None
            hosted.tokens_before = hosted.job.progress.tokens
            hosted.units = hosted.job.units()
            self._advance(hosted, hosted.job)

    def _advance(self, hosted: _Hosted, job: Job) -> None:
        if hosted.stop == "cancel":
            self._end(hosted, "cancelled")
            return
        if hosted.unit is None and hosted.units is not None:
            hosted.unit = next(hosted.units, None)
            self._tell(hosted, job)
            if hosted.unit is None:
                hosted.units = None
        if hosted.stop == "pause" and not (hosted.unit is not None and hosted.unit.kind == "update"):
            hosted.units = hosted.unit = None
            last = job.last_checkpoint
            if job.progress.step > 0 and (last is None or last.name != f"step-{job.progress.step:08d}"):
                job.save()
                return
        if hosted.units is None:
            self._end(hosted, "paused" if hosted.stop == "pause" else "succeeded")

    def _tell(self, hosted: _Hosted, job: Job) -> None:
        name = hosted.start.job
        for event in job.events:
            if isinstance(event, Stepped):
                self._steps += 1
                tokens, seconds = event.tokens - hosted.tokens_before, max(hosted.spent - hosted.spent_before, 1e-9)
                hosted.tokens_before, hosted.spent_before = event.tokens, hosted.spent
                told = (event.step, event.steps, event.epoch, event.loss, job.progress.validation_loss, event.tokens)
                self._events.append(TrainingProgress(name, *told, tokens / seconds, event.learning_rate, event.norm))
            elif isinstance(event, Saved):
                self._events.append(TrainingCheckpoint(name, event.step, str(event.folder), event.loss, event.validation_loss))
                if hosted.start.publish is not None and self.adapting is not None:
                    job.spared = {*list(job.spared)[-1:], event.folder}
                    hosted.publishing.append(self._files.submit(self.adapting.adapters.prepare, event.folder))
        job.events.clear()

    def _publish(self, hosted: _Hosted) -> None:
        """Give a checkpoint that was checked the job's public name: a new generation, between two steps."""
        name, adapting = hosted.start.publish, self.adapting
        while hosted.publishing and hosted.publishing[0].done():
            future = hosted.publishing.pop(0)
            try:
                assert name is not None
                assert adapting is not None
                adapting.enter(name, future.result())
            except HeadraceError as error:
                logger.warning("job %s: its adapter can't be served: %s", hosted.start.job[:64], error.message)

    def _pages_for(self, start: StartTraining, *, keep_both: bool, at_all: bool = False) -> int:
        """Pages that a job takes. Raises ``invalid_value`` when it could never have them (``at_all``)."""
        page = int(self._parts.rows[:1].size)
        pages = -(-job_bytes(self._parts.config, start.settings, self._parts.threads, keep_both=keep_both) // page) + 1
        if at_all and pages > self._parts.pool.lasting - self._parts.leave:
            room = (self._parts.pool.lasting - self._parts.leave) * page / 2**20
            message = (
                f"a job of max_tokens {start.settings.max_tokens} needs {pages * page / 2**20:,.0f} MiB of the page pool, "
                f"which leaves {max(room, 0):,.0f} MiB to training: lower max_tokens or raise pool_mib"
            )
            raise HeadraceError("invalid_value", message, param="max_tokens")
        return pages

    def _prepare_waiting(self) -> None:
        """Give pages to the jobs that wait for some, in order."""
        for hosted in self._jobs.values():
            if hosted.pages or hosted.job is not None or hosted.preparing is not None:
                continue
            taken = sum(len(other.pages) for other in self._jobs.values())
            leave = self._parts.leave + taken
            for keep_both in (True, False):
                pages = take_pages(self._parts.pool, self._pages_for(hosted.start, keep_both=keep_both), leave)
                if pages is not None:
                    hosted.pages = pages
                    memory = JobPages(pages, self._parts.rows)
                    hosted.preparing = self._files.submit(self._prepare, hosted.start, memory, keep_both)
                    break
            else:
                return

    def _prepare(self, start: StartTraining, memory: JobPages, keep_both: bool) -> Job:
        """On the thread of files: read data, weights and checkpoint."""
        vocab = self._parts.config.vocab
        data = open_dataset(Path(start.data), vocab)
        validation = open_dataset(Path(start.validation), vocab) if start.validation is not None else None
        with self._loading:
            if self._backbone is None:
                self._backbone = self._parts.backbone()
            backbone = self._backbone
        assert self._crew is not None, "jobs have a crew"
        work = Work(start.settings, data, validation, Path(start.folder), start.base_model, keep_both, memory.make)
        return Job(work, backbone, self._crew, self._files)

    def _end(self, hosted: _Hosted, status: TrainingStatus, error: HeadraceError | None = None) -> None:
        job = hosted.job
        progress = job.progress if job is not None else Progress(0, 0, 0.0, None, "", 0)
        folder = job.last_checkpoint if job is not None else None
        while hosted.publishing:  # the last version is served before the job's end is told
            hosted.publishing[0].exception()
            self._publish(hosted)
        self._leave(hosted)
        code, message = (error.code, error.message) if error is not None else ("", "")
        self._events.append(
            TrainingEnded(hosted.start.job, status, progress.step, str(folder) if folder is not None else None, code, message)
        )
        self._prepare_waiting()

    def _leave(self, hosted: _Hosted) -> None:
        del self._jobs[hosted.start.job]
        self.share.leave(hosted.start.job)
        if hosted.preparing is not None:
            hosted.preparing.exception()
        hosted.job = hosted.units = hosted.unit = None
        self._parts.pool.release(hosted.pages)
        hosted.pages = []
        if not self._jobs:
            self._backbone = None
            self._products.close()
            if self._crew is not None:
                self._crew.close()
                self._crew = None
