"""The loop of one instance: plan → assemble → run → choose → commit, one call a step."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any

import numpy as np

from headrace.engine.adapting import Adapting
from headrace.engine.batch import Assembly, add_rows, assemble
from headrace.engine.choosing import Chooser, Outcome
from headrace.engine.compiling import Compiling
from headrace.engine.engine_gauges import PartGauges, Totals, gather_gauges, load_of
from headrace.engine.outbox import Outbox
from headrace.engine.parts import EngineParts, GrammarSource
from headrace.engine.request import Choice, Grammar, LiveRequest, check_submit, make_choices, make_request
from headrace.engine.taking import Given, Taken, runs
from headrace.engine.watching import StepWatch
from headrace.engine.wire import FinishReason, Gauges, Refused, StepOutputs, Submit
from headrace.errors import HeadraceError
from headrace.scheduling.item import Item
from headrace.scheduling.step import Step
from headrace.scheduling.training_share import ServingLoad

logger = logging.getLogger("headrace.engine.loop")

__all__ = ["Engine", "EngineParts", "GrammarSource"]

WRITE_BEHIND_SECONDS = 5.0  # an engine that ends may take so long to write what prompts to come could use


class Engine:
    """Runs requests of one model. One thread only; nothing happens outside of :meth:`step`."""

    def __init__(self, parts: EngineParts) -> None:
        self.scheduler = parts.scheduler
        self.limits = parts.limits
        self.adapting = parts.adapting
        self.training = parts.training
        self._step_seconds = 0.0
        self.watch = StepWatch()
        self._chain = parts.chain
        self._pages = parts.pages
        self._touch_ahead = parts.touch_ahead
        self._moving = parts.moving
        self._viewing = parts.viewing
        self._keeping = parts.keeping
        self._speculating = parts.speculating
        self._clock = parts.clock
        self._chooser = Chooser(parts.chain, parts.sampler)
        self._outbox = Outbox()
        self._requests: dict[int, LiveRequest] = {}
        self._choices: dict[int, Choice] = {}
        self._compiling: dict[int, tuple[LiveRequest, Future[Grammar]]] = {}
        self.compiler = Compiling(parts.grammars)
        self._refused: list[Refused] = []
        self._totals = Totals()
        self.taken = -1  # requests received, counted where somebody spreads them over several engines
        self._next_item = 1

    @property
    def live(self) -> int:
        """Requests that have not ended."""
        return len(self._requests)

    @property
    def has_work(self) -> bool:
        """True when a step would do something now."""
        return bool(self._choices or self._outbox or self._refused)

    @property
    def compiling(self) -> int:
        """Requests that wait for their grammar."""
        return len(self._compiling)

    @property
    def moving(self) -> bool:
        """True when pages are on their way, so that the next step may do something though this one did not."""
        return (self._moving is not None and self._moving.busy) or (self._keeping is not None and self._keeping.carrying)

    @property
    def reading_adapters(self) -> bool:
        """True when files of adapters are being read, so that the next step may do something though this one did not."""
        return self.adapting is not None and self.adapting.busy

    @property
    def writes_behind(self) -> bool:
        """True when steps without any work would still bring something to the disk."""
        return self._keeping is not None and self._keeping.behind

    def submit(self, submit: Submit) -> None:
        """Take a request. Raises HeadraceError when it can't run here; a bad grammar is refused later (:meth:`take_refused`)."""
        if submit.request_id in self._requests:
            raise HeadraceError("invalid_value", f"request id {submit.request_id} is in use", param="request_id")
        check_submit(submit, self.limits)
        self._check_adapters(submit)
        self._check_queue()
        request = make_request(submit, self._clock(), self.limits)
        grammar = None if submit.embed else submit.params.grammar
        if grammar is None:
            self._admit(request, None)
        else:
            self._compiling[submit.request_id] = (request, self.compiler.start(grammar))
        self._requests[submit.request_id] = request
        if self.adapting is not None:
            self.adapting.count_use(use.generation for use in submit.adapters)

    def cancel(self, request_id: int, choice: int | None = None) -> None:
        """Stop a request or one of its choices; its pages are free when this returns. Unknown ids are ignored.

        While best_of is undecided the choices have no numbers yet, so that only whole requests can be cancelled.
        """
        request = self._requests.get(request_id)
        if request is None or (request.ranked and choice is not None):
            return
        for stopped in [open_ for open_ in request.open.values() if choice is None or open_.index == choice]:
            self._drop(stopped, "cancelled")
        if choice is None and request_id in self._compiling:
            self._stop_compiling(request_id, "cancelled")

    def take_refused(self) -> list[Refused]:
        """Requests that turned out impossible after :meth:`submit`; each is told once."""
        refused, self._refused = self._refused, []
        return refused

    def step(self) -> StepOutputs | None:
        """Run one step. ``None``: nothing to run and nothing to tell."""
        began = time.perf_counter()
        if self.adapting is not None and self.adapting.busy:
            self._collect_adapters(self.adapting)
        self._admit_compiled()
        self._expire()
        if self._speculating is not None:
            self._speculating.propose(self._choices)
        step = self._plan()
        if self.adapting is not None:
            self.adapting.begin()
        if step is None:
            return StepOutputs(self._outbox.take(), self.gauges()) if self._outbox else None
        seen = self.watch.see(step, self._choices, self.scheduler.waiting)
        self._touch_ahead(self.scheduler.pool.reach)
        assembly = assemble(step, self._choices)
        self._note_started(step)
        if self.adapting is not None and self.scheduler.adapters.in_use:
            assembly.batch.adapters = self.adapting.adapters.step([piece.item.adapters for piece in step.slices])
        if self._viewing is not None:
            assembly.batch.first_rows = self._viewing.show(step, self._choices)
        assembled = time.perf_counter()
        for copy in step.copies:
            self._pages[copy.target] = self._pages[copy.source]
        self._chain.forward(assembly.batch, self._pages)
        run_seconds = time.perf_counter() - assembled
        outcome = self._chooser.choose(assembly)
        self._pool_rows(assembly)
        self._commit(step, outcome)
        model_seconds = run_seconds + outcome.head_seconds
        report = seen.ended(model_seconds) if seen is not None else None
        outputs = StepOutputs(self._outbox.take(), self.gauges(), report)
        self._account(assembly, step.adapter_pages, time.perf_counter() - began, model_seconds)
        return outputs

    def train(self, interrupted: Callable[[], bool]) -> bool:
        """Between two steps: run units of fine-tuning in what steps leave of their time. False: there was nothing to do."""
        if self.training is None or not self.training.active:
            return False
        prompts = self.scheduler.unread + len(self._compiling)
        return self.training.run(ServingLoad(len(self._choices), prompts, self._step_seconds), interrupted)

    def _plan(self) -> Step | None:
        plan = self.scheduler.plan if self._moving is None else self._moving.plan
        return plan() if self._keeping is None else self._keeping.plan(plan, swaps=self._moving is not None and self._moving.busy)

    def gauges(self) -> Gauges:
        """The engine's state now."""
        parts = PartGauges(
            moves=self._moving.gauges() if self._moving is not None else None,
            kept=self._keeping.gauges() if self._keeping is not None else None,
            views=self._viewing.gauges() if self._viewing is not None else None,
            adapters=self.adapting.gauges() if self.adapting is not None else None,
            training=self.training.gauges() if self.training is not None else None,
            speculation=self._speculating.gauges() if self._speculating is not None else None,
            load=load_of(self.scheduler, self.taken, self.live) if self.taken >= 0 else None,
        )
        return gather_gauges(self.scheduler, self._totals, len(self._compiling), parts)

    def check_integrity(self) -> None:
        """Prove that requests, items and pages agree. Raises ``AssertionError`` naming the first fault."""
        self.scheduler.check_integrity()
        open_items = {choice.item.item_id for request in self._requests.values() for choice in request.open.values()}
        assert open_items == set(self._choices), "open choices and live items differ"
        if self._viewing is not None:
            self._viewing.check_integrity()
        assert len(self._choices) == self.scheduler.live, "the scheduler and the engine disagree on who lives"

    def wait_compiled(self, seconds: float) -> None:
        """Sleep until a grammar is compiled or an adapter read, at most ``seconds``; not at all when none is under way."""
        futures: list[Future[Any]] = [future for _, future in self._compiling.values()]
        if self.adapting is not None:
            futures += self.adapting.futures
        wait(futures, timeout=seconds, return_when=FIRST_COMPLETED)

    def close(self) -> None:
        """Stop all threads. The engine must not be used afterwards."""
        for part in (self.training, self.adapting, self._viewing):
            if part is not None:
                part.close()
        if self._keeping is not None:
            self._keeping.close(WRITE_BEHIND_SECONDS)
        if self._moving is not None:
            self._moving.close()
        self.compiler.close()

    def _check_adapters(self, submit: Submit) -> None:
        if submit.adapters and self.adapting is None:
            raise HeadraceError("unsupported_parameter", "this engine serves no adapters", param="model")
        if self.adapting is not None:
            self.adapting.check_uses(use.generation for use in submit.adapters)

    def _collect_adapters(self, adapting: Adapting) -> None:
        """Adapters that have been read; requests for those that could not be are refused, whatever they have got so far."""
        for generation, error in adapting.collect():
            for choice in [one for one in self._choices.values() if any(own == generation for own, _ in one.item.adapters)]:
                self._refuse_choice(choice, error)
            adapting.failed(generation)

    def _check_queue(self) -> None:
        """Requests behind the compiler's one thread wait like any other. Raises ``queue_full``."""
        waiting = self.scheduler.waiting + len(self._compiling)
        if waiting >= self.scheduler.settings.max_waiting:
            self.scheduler.counters.refused += 1
            raise HeadraceError("queue_full", f"{waiting} requests are waiting, which is the limit")

    def _admit(self, request: LiveRequest, grammar: Grammar | None) -> None:
        choices = make_choices(request, self._next_item, self.limits)
        for choice in choices:  # before the scheduler hears of them: a matcher that fails leaves nothing behind
            choice.matcher = grammar.matcher() if grammar is not None else None
        self._next_item += len(choices)
        leader = choices[0].item
        added: list[Item] = []
        try:
            for choice in choices:
                if choice.item is leader:
                    self.scheduler.add(leader)
                else:
                    self.scheduler.add_fork(leader, choice.item)
                added.append(choice.item)
        except HeadraceError:
            for item in reversed(added):
                self.scheduler.cancel(item.item_id)
            raise
        for choice in choices:
            self._choices[choice.item.item_id] = choice
            if self._speculating is not None:
                self._speculating.open(choice)

    def _admit_compiled(self) -> None:
        """Requests whose grammar is ready start; bad grammars are refused."""
        for request_id in [id_ for id_, (_, future) in self._compiling.items() if future.done()]:
            request, future = self._compiling.pop(request_id)
            try:
                self._admit(request, future.result())
            except HeadraceError as error:
                self._refuse(request_id, error)
            except Exception:  # whatever goes wrong in a grammar belongs to the request that brought it
                logger.exception("request %d: its grammar could not be compiled", request_id)
                message = "the grammar could not be compiled; the server's log says why"
                self._refuse(request_id, HeadraceError("internal_error", message, param="grammar"))

    def _refuse_late(self, request: LiveRequest) -> None:
        """No choice of the request can begin in time; one that has begun keeps all of them."""
        choices = list(request.open.values())
        if any(choice.item.generated or choice.item.computed for choice in choices) or len(choices) < request.submit.params.n:
            return
        self.scheduler.counters.refused += 1
        for choice in choices:
            self._refuse_choice(choice, HeadraceError("overloaded", "the first token would come later than is promised; try later"))

    def _refuse_choice(self, choice: Choice, error: HeadraceError) -> None:
        """A choice ends without a word; with the last one the request is refused."""
        self.scheduler.cancel(choice.item.item_id)
        if self._speculating is not None:
            self._speculating.ended(choice)
        del self._choices[choice.item.item_id], choice.request.open[choice.index]
        if not choice.request.open:
            self._refuse(choice.request.submit.request_id, error)

    def _refuse(self, request_id: int, error: HeadraceError) -> None:
        del self._requests[request_id]
        self._refused.append(Refused(request_id, error.code, error.message, error.param))

    def _expire(self) -> None:
        now = self._clock()
        for item in self.scheduler.expired(now):
            self._drop(self._choices[item.item_id], "deadline")
        for item in self.scheduler.late(now):
            if item.item_id in self._choices:  # not refused with another choice of its request
                self._refuse_late(self._choices[item.item_id].request)
        for request_id, (request, _) in list(self._compiling.items()):
            if request.deadline is not None and request.deadline <= now:
                self._stop_compiling(request_id, "deadline")

    def _stop_compiling(self, request_id: int, reason: FinishReason) -> None:
        """End a request that still waited for its grammar; a compilation that has not begun never will."""
        request, future = self._compiling.pop(request_id)
        future.cancel()
        for choice in make_choices(request, self._next_item, self.limits):
            self._outbox.finish(choice, reason)
        del self._requests[request_id]

    def _drop(self, choice: Choice, reason: FinishReason) -> None:
        self.scheduler.cancel(choice.item.item_id)
        self._end(choice, reason)

    def _end(self, choice: Choice, reason: FinishReason, last: Taken | None = None) -> None:
        """A choice that the scheduler has let go of leaves the engine."""
        del self._choices[choice.item.item_id]
        if self._speculating is not None:
            self._speculating.ended(choice)
        self._outbox.finish(choice, reason, last)
        self._forget_if_done(choice.request)

    def _forget_if_done(self, request: LiveRequest) -> None:
        if not request.open:
            del self._requests[request.submit.request_id]

    def _note_started(self, step: Step) -> None:
        for item, start, _, _ in step.slices:
            if start < item.prompt_length:
                request = self._choices[item.item_id].request
                if request.started is None:
                    request.started = self._clock()
                    request.cached_tokens = item.found

    def _pool_rows(self, assembly: Assembly) -> None:
        """Add an embedding's new rows one after another, so that chunks can't change the sum."""
        if not assembly.pooled:
            return
        hidden = self._chain.hidden()[assembly.head_rows :]
        for rows in assembly.pooled:
            add_rows(rows, hidden[rows.first : rows.first + rows.length])

    def _commit(self, step: Step, outcome: Outcome) -> None:
        for choice, logprob in outcome.scored:
            choice.request.prompt_logprobs.append(logprob)
        given = Given(step.drafted, self.limits)
        for run in runs(outcome.chosen, step.drafted):
            given.take(run)
        spent = self.scheduler.commit(step, given.sampled, given.accepted)
        if self._speculating is not None:
            self._speculating.learn(given)
        for choice, taken in given.taken:
            self._give(choice, taken)
        for choice in outcome.unscorable:
            self._fail_request(choice.request)
        for item in spent:
            if item.item_id in self._choices:
                self._finish_without_token(self._choices[item.item_id])

    def _fail_request(self, request: LiveRequest) -> None:
        """A row of the shared prompt is not finite: no choice can go on."""
        if request.open:
            logger.error("request %d: a prompt row is not finite", request.submit.request_id)
        for choice in list(request.open.values()):
            self._drop(choice, "error")

    def _finish_without_token(self, choice: Choice) -> None:
        """Embeddings, and requests that only score their prompt."""
        self.scheduler.finish(choice.item)
        if not choice.request.submit.embed:
            self._end(choice, "length")
            return
        del self._choices[choice.item.item_id]
        if choice.pooled is not None and np.isfinite(choice.pooled).all():
            self._outbox.embedding(choice)
        else:
            self._outbox.finish(choice, "error")
        self._forget_if_done(choice.request)

    def _give(self, choice: Choice, taken: Taken) -> None:
        """Send a choice its tokens; it may end with them."""
        if taken.finish is None:
            self._outbox.tokens(choice, taken)
        else:
            self.scheduler.finish(choice.item)
            self._end(choice, taken.finish, taken)

    def _account(self, assembly: Assembly, adapters: int, seconds: float, model_seconds: float) -> None:
        self._totals.step_seconds += seconds
        self._step_seconds = seconds
        self._totals.overhead_seconds += seconds - model_seconds
        proposing = self._speculating.last_seconds if self._speculating is not None else 0.0
        self.scheduler.cost.observe(
            len(assembly.batch.token_ids), assembly.pairs, assembly.head_rows, seconds - proposing, adapters
        )
