"""The Python API: a model in this process, batching whatever it is given through the same engine as the server."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from headrace.engine.adapting import Adapting
from headrace.engine.build import BuildOptions, build_engine
from headrace.engine.generation import Answer, Generation, Job
from headrace.engine.sampling_params import SamplingParams
from headrace.engine.settings import EngineSettings
from headrace.engine.training_wire import StartTraining, StopTraining, TrainingEnded, TrainingEvent
from headrace.engine.wire import AdapterCard, AdapterUse, Submit
from headrace.errors import HeadraceError
from headrace.scheduling.settings import SchedulingSettings
from headrace.text.chat_template import ChatTemplate, Conversation
from headrace.text.open_tokenizer import open_tokenizer

__all__ = ["LLM", "Answer", "Generation"]

MOST_CHOICES = 16  # of one request
COMPILING_SECONDS = 0.05
_FILE_SECONDS = 0.01

Prompt = str | Sequence[int]
Message = Mapping[str, Any]
AdapterChoice = str | Mapping[str, float]
"""An adapter's name, or names with what each adapter's change is multiplied by; several are added up."""


class LLM:
    """A model loaded into this process. Use as a context manager, or call :meth:`close`. Not for several threads at once.

    ``model``: a name from ``headrace list``, a GGUF file or a folder. Other options are those of
    :class:`~headrace.engine.settings.EngineSettings` and :class:`~headrace.scheduling.settings.SchedulingSettings`.
    Raises HeadraceError ``model_not_found``, ``model_file`` or ``invalid_setting``.
    """

    def __init__(
        self,
        model: str = "smollm2",
        *,
        threads: int | None = None,
        settings: EngineSettings | None = None,
        scheduling: SchedulingSettings | None = None,
    ) -> None:
        chosen = settings or EngineSettings(model=model, threads=threads)
        if settings is not None and (model != "smollm2" or threads is not None):
            raise HeadraceError("invalid_setting", "give model and threads either by themselves or in settings", param="settings")
        self._built = build_engine(chosen, BuildOptions(scheduling or SchedulingSettings()))
        self._engine = self._built.engine
        self.tokenizer = open_tokenizer(self._built.model.tokenizer_source)
        self._template: ChatTemplate | None = None
        self._last_id = 0
        self._jobs: dict[int, Job] = {}

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Give memory, threads and the template's helper process back."""
        if self._template is not None:
            self._template.close()
        self._built.close()

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        adapters: AdapterChoice | Sequence[AdapterChoice | None] | None = None,
        progress: bool = False,
    ) -> list[Generation]:
        """Continue prompts (texts or token ids), all of them batched together; results in the order of the prompts.

        ``params``: one for all, or one a prompt; so are ``adapters``, whose names :meth:`register_adapter` gave. ``progress`` shows
        a bar. Raises HeadraceError for the first prompt that is refused, after stopping the others.
        """
        wanted = _prompt_list(prompts)
        each = _params_list(params, len(wanted))
        uses = [self._uses(choice) for choice in _adapter_list(adapters, len(wanted))]
        jobs = [self._job(self._encode(prompt), one, own) for prompt, one, own in zip(wanted, each, uses, strict=True)]
        with _bar(len(jobs), progress) as finished:
            self._run(jobs, finished)
        return [job.generation for job in jobs]

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        params: SamplingParams | None = None,
        *,
        progress: bool = False,
    ) -> list[Generation]:
        """Answer conversations: one list of messages with ``role`` and ``content``, or several. Raises ``invalid_template`` too."""
        several = bool(messages) and not isinstance(messages[0], Mapping)
        conversations: Any = messages if several else [messages]
        return self.generate([self.render(conversation) for conversation in conversations], params, progress=progress)

    def register_adapter(self, name: str, folder: str | Path) -> AdapterCard:
        """Give a low-rank adapter (a folder as PEFT saves it) a name for ``adapters``; a name that is taken gets the new content.

        Raises ``model_file`` for what is wrong with the folder, ``invalid_value`` when the page pool could not hold the adapter.
        """
        return self._adapting.register(name, Path(folder))

    def remove_adapter(self, name: str) -> AdapterCard:
        """Take a name away. Raises ``adapter_not_found``."""
        return self._adapting.remove(name)

    def train(self, start: StartTraining) -> Iterator[TrainingEvent]:
        """Train an adapter (see :class:`StartTraining`); its events as they come, of which TrainingEnded is the last.

        Leaving the loop early cancels the job; one that has checkpoints goes on at the last one when it is started again.
        """
        training = self._engine.training
        assert training is not None, "built engines train"
        training.start(start)
        ended = False
        try:
            while not ended:
                if not self._engine.train(lambda: False):
                    self._engine.step()  # nobody asks for anything, but adapters may have been read
                    time.sleep(_FILE_SECONDS)
                for event in training.take_events():
                    ended = isinstance(event, TrainingEnded)
                    yield event
        finally:
            if not ended:
                training.stop(StopTraining(start.job, "cancel"))

    def render(self, messages: Sequence[Message]) -> list[int]:
        """Prompt tokens of a conversation by the model's chat template."""
        if self._template is None:
            self._template = ChatTemplate(self._built.model.chat_template, self.tokenizer)
        return self.tokenizer.encode_template(self._template.render(Conversation(messages)))

    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> Iterator[str]:
        """Pieces of the first answer's text as they come. Leaving the loop early cancels the request."""
        job = self._job(self._encode(prompt), params or SamplingParams())
        told = 0
        try:
            self._submit(job)
            while told < len(job.generation.text) or job.open:
                if told < len(job.generation.text):
                    piece = job.generation.text[told:]
                    told += len(piece)
                    yield piece
                else:
                    self._step()
        finally:
            self._abandon([job])

    def embed(self, prompts: Prompt | Sequence[Prompt]) -> list[list[float]]:
        """Vectors of length 1: the mean of the last hidden states over a text's tokens, or the last one where the model says so."""
        whole = self.tokenizer.encode_whole
        texts = _prompt_list(prompts)
        jobs = [self._job(whole(text) if isinstance(text, str) else list(text), SamplingParams()) for text in texts]
        self._run(jobs, _ignore, embed=True)
        return [job.embedding for job in jobs]

    def _encode(self, prompt: Prompt) -> list[int]:
        return self.tokenizer.encode(prompt, bos=True) if isinstance(prompt, str) else list(prompt)

    @property
    def _adapting(self) -> Adapting:
        adapting = self._engine.adapting
        assert adapting is not None, "built engines have adapters"
        return adapting

    def _uses(self, choice: AdapterChoice | None) -> list[AdapterUse]:
        named = {choice: 1.0} if isinstance(choice, str) else choice or {}
        return [AdapterUse(self._adapting.find(name).generation, scale) for name, scale in named.items()]

    def _job(self, prompt: list[int], params: SamplingParams, adapters: Sequence[AdapterUse] = ()) -> Job:
        self._last_id += 1
        return Job(self._last_id, prompt, params, self.tokenizer, adapters)

    def _submit(self, job: Job, *, embed: bool = False) -> None:
        prompt = job.generation.prompt_tokens
        self._engine.submit(Submit(job.request_id, prompt, job.params, embed=embed, adapters=job.adapters))
        self._jobs[job.request_id] = job

    def _run(self, jobs: list[Job], finished: Callable[[int], None], *, embed: bool = False) -> None:
        """Run jobs to their ends, keeping the engine's queue filled and no longer than it may be."""
        coming = deque(jobs)
        ended = 0
        try:
            while coming or any(job.request_id in self._jobs for job in jobs):
                while coming and self._engine.scheduler.waiting + MOST_CHOICES < self._engine.scheduler.settings.max_waiting:
                    self._submit(coming.popleft(), embed=embed)
                self._step()
                now = sum(not job.open for job in jobs)
                finished(now - ended)
                ended = now
        finally:
            self._abandon(jobs)

    def _step(self) -> None:
        """One step of the engine, its outputs to their jobs."""
        outputs = self._engine.step()
        for refused in self._engine.take_refused():
            self._jobs.pop(refused.request_id, None)
            raise HeadraceError(refused.code, refused.message, param=refused.param)
        if outputs is None:
            self._engine.wait_compiled(COMPILING_SECONDS)
            return
        for output in outputs.outputs:
            job = self._jobs.get(output.request_id)
            if job is None:
                continue
            if job.take(output):
                self._engine.cancel(output.request_id, output.choice)
            if not job.open:
                del self._jobs[output.request_id]

    def _abandon(self, jobs: list[Job]) -> None:
        for job in jobs:
            if self._jobs.pop(job.request_id, None) is not None:
                self._engine.cancel(job.request_id)


def _prompt_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    if isinstance(prompts, str):
        return [prompts]
    listed: list[Any] = list(prompts)
    return [listed] if listed and isinstance(listed[0], int) else listed


def _params_list(params: SamplingParams | Sequence[SamplingParams] | None, count: int) -> list[SamplingParams]:
    if params is None or isinstance(params, SamplingParams):
        return [params or SamplingParams()] * count
    if len(params) != count:
        raise HeadraceError("invalid_value", f"{count} prompts need as many params, not {len(params)}", param="params")
    return list(params)


def _adapter_list(adapters: AdapterChoice | Sequence[AdapterChoice | None] | None, count: int) -> Sequence[AdapterChoice | None]:
    if adapters is None or isinstance(adapters, str | Mapping):
        return [adapters] * count
    if len(adapters) != count:
        raise HeadraceError("invalid_value", f"{count} prompts need as many adapters, not {len(adapters)}", param="adapters")
    return adapters


def _ignore(count: int) -> None:
    """Progress that nobody watches."""


@contextmanager
def _bar(total: int, shown: bool) -> Iterator[Callable[[int], None]]:
    if not shown:
        yield _ignore
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    with Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()) as bar:
        task = bar.add_task("prompts", total=total)
        yield lambda count: bar.update(task, advance=count)
