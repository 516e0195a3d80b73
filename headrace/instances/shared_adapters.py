"""Adapters of a group: calls go to every instance, under one generation that the group gives; newcomers are told all."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from headrace.engine.wire import (
    AdapterAnswer,
    AdapterCall,
    AdapterCard,
    AdapterList,
    ListAdapters,
    PinAdapter,
    RegisterAdapter,
    RemoveAdapter,
)
from headrace.errors import HeadraceError
from headrace.instances.member import Member

_STATES = ("registered", "loading", "resident", "pinned")


@dataclass(slots=True)
class Known:
    """An adapter that has a name: how it was registered, and its generation in the group."""

    call: RegisterAdapter
    generation: int


class SharedAdapters:
    """What names mean in the whole group. ``living`` gives the instances that know all adapters. One call at a time."""

    def __init__(self, living: Callable[[], Sequence[Member]]) -> None:
        self._living = living
        self._known: dict[str, Known] = {}
        self._last = 0
        self._turn = asyncio.Lock()

    async def call(self, call: AdapterCall) -> AdapterAnswer | AdapterList:
        """Carry a call out everywhere, or nowhere."""
        async with self._turn:
            match call:
                case ListAdapters():
                    return AdapterList(call.call_id, await self._cards())
                case RegisterAdapter():
                    return await self._register(call)
                case _:
                    return await self._change(call)

    async def bring(self, member: Member) -> None:
        """An instance that starts again learns all adapters that have names. Raises when it can't."""
        async with self._turn:
            for known in self._known.values():
                answer = await self._ask(member, known.call)
                if answer.card is None:
                    raise HeadraceError(answer.code, answer.message, param=answer.param)
                member.generations[known.generation] = answer.card.generation
            member.informed = True

    async def _register(self, call: RegisterAdapter) -> AdapterAnswer:
        refused = self._conflict(call)
        if refused is not None:
            return refused
        answers = await self._everywhere(call)
        problem = next((answer for _, answer in answers if answer.card is None), None)
        if problem is not None or not answers:
            for member, answer in answers:
                if answer.card is not None:
                    await self._undo(member, call.name)
            return _renamed(problem, call) if problem is not None else _dead(call)
        self._last += 1
        self._known[call.name] = Known(call, self._last)
        for member, answer in answers:
            assert answer.card is not None, "nobody refused"
            member.generations[self._last] = answer.card.generation
        return self._answer(call, answers)

    async def _undo(self, member: Member, name: str) -> None:
        """One could not register what others have: they take back the name, or its former meaning comes back."""
        known = self._known.get(name)
        if known is None:
            await self._ask(member, RemoveAdapter(0, name))
            return
        answer = await self._ask(member, known.call)
        if answer.card is not None:
            member.generations[known.generation] = answer.card.generation

    async def _change(self, call: RemoveAdapter | PinAdapter) -> AdapterAnswer:
        known = self._known.get(call.name)
        if known is None:
            return AdapterAnswer(
                call.call_id, None, "adapter_not_found", f"no adapter has the name {call.name[:64]!r}", "lora_name"
            )
        if isinstance(call, RemoveAdapter):
            refused = self._conflict(call)
            if refused is not None:
                return refused
        answers = await self._everywhere(call)
        problem = next((answer for _, answer in answers if answer.card is None), None)
        if problem is not None or not answers:
            return _renamed(problem, call) if problem is not None else _dead(call)
        answer = self._answer(call, answers)
        if isinstance(call, RemoveAdapter):
            del self._known[call.name]
        else:
            known.call = msgspec.structs.replace(known.call, pin=call.pinned)
        return answer

    async def _everywhere(self, call: AdapterCall) -> list[tuple[Member, AdapterAnswer]]:
        answers = []
        for member in self._living():
            try:
                answers.append((member, await self._ask(member, call)))
            except HeadraceError:  # it has ended, and will be told all when it is back
                continue
        return answers

    async def _cards(self) -> list[AdapterCard]:
        merged: dict[str, AdapterCard] = {}
        for member in self._living():
            answer = await member.ask(ListAdapters(member.new_request_id()))
            assert isinstance(answer, AdapterList), "a list is answered by a list"
            for card in answer.cards:
                if card.name in self._known:
                    merged[card.name] = _merged(merged.get(card.name), card, self._known[card.name].generation)
        return list(merged.values())

    def _answer(
        self, call: RegisterAdapter | RemoveAdapter | PinAdapter, answers: list[tuple[Member, AdapterAnswer]]
    ) -> AdapterAnswer:
        merged: AdapterCard | None = None
        for _, answer in answers:
            assert answer.card is not None, "nobody refused"
            merged = _merged(merged, answer.card, self._known[call.name].generation)
        return AdapterAnswer(call.call_id, merged)

    def _conflict(self, call: RegisterAdapter | RemoveAdapter) -> AdapterAnswer | None:
        known = self._known.get(call.name)
        present = known.generation if known is not None else 0
        if call.expected_generation is None or call.expected_generation == present:
            return None
        who = f"generation {present} has" if present else "no adapter has"
        message = f"{who} the name {call.name[:64]!r}, not {call.expected_generation}"
        return AdapterAnswer(call.call_id, None, "adapter_conflict", message, "expected_generation")

    @staticmethod
    async def _ask(member: Member, call: AdapterCall) -> AdapterAnswer:
        """One instance's answer to the call; generations are the group's matter."""
        own = msgspec.structs.replace(call, call_id=member.new_request_id())
        if isinstance(own, (RegisterAdapter, RemoveAdapter)):
            own = msgspec.structs.replace(own, expected_generation=None)
        answer = await member.ask(own)
        assert isinstance(answer, AdapterAnswer), "a call about one adapter is answered by its card"
        return answer


def _merged(known: AdapterCard | None, card: AdapterCard, generation: int) -> AdapterCard:
    """One card for all instances: what is most present, and the sums of uses."""
    if known is None:
        return msgspec.structs.replace(card, generation=generation)
    state = max(known.state, card.state, key=lambda state: _STATES.index(state) if state in _STATES else 0)
    return msgspec.structs.replace(known, state=state, waiting=known.waiting + card.waiting, uses=known.uses + card.uses)


def _renamed(answer: AdapterAnswer, call: AdapterCall) -> AdapterAnswer:
    return msgspec.structs.replace(answer, call_id=call.call_id)


def _dead(call: AdapterCall) -> AdapterAnswer:
    return AdapterAnswer(call.call_id, None, "engine_dead", "no instance is there to be asked; they start again")
