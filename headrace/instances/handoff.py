"""Requests that have their first token go on from instances for prompts to instances for tokens."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Mapping

from headrace.errors import HeadraceError
from headrace.instances.member import Member
from headrace.instances.owners import Owned
from headrace.instances.relocation import Relocation
from headrace.instances.slots import Slots
from headrace.placement.roles import PullRule, Role, check_roles, for_tokens, who_pulls

logger = logging.getLogger("headrace.instances.handoff")

PAUSE = 0.02
"""Seconds until somebody is asked again after nobody could take a request."""


class Handoff:
    """The roles of one group's instances, and the requests that have to go on because of them."""

    def __init__(self, roles: tuple[Role, ...], slots: Slots, relocation: Relocation, owners: Mapping[int, Owned]) -> None:
        self.roles: dict[int, Role] = dict(enumerate(roles))
        self.rule = PullRule()
        self.done = 0
        self.refused = 0
        self._slots = slots
        self._relocation = relocation
        self._owners = owners
        self._queue: dict[int, None] = {}
        self._moving: Counter[int] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()
        self._again: asyncio.TimerHandle | None = None

    @property
    def waiting(self) -> int:
        """Requests that nobody has taken over yet."""
        return len(self._queue)

    def change(self, roles: Mapping[int, str]) -> None:
        """Give instances other roles, now; nothing is loaded again.

        Raises ``invalid_value`` for an instance that there is not, ``invalid_setting`` when nobody would be left for something.
        """
        unknown = roles.keys() - self.roles.keys()
        if unknown:
            raise HeadraceError("invalid_value", f"there is no instance {min(unknown)}; {self._slots.names()}", param="roles")
        wanted = {**self.roles, **roles}
        self.roles = dict(enumerate(check_roles([wanted[each] for each in sorted(self.roles)])))
        self.look()

    def takes(self, number: int, role: Role) -> None:
        """An instance brings its role with it. Where nobody is left for prompts or for tokens, everybody takes them."""
        self.roles[number] = role
        self.look()

    def token(self, owned: Owned, member: Member) -> None:
        """A request has got a token from this engine."""
        if self.roles[member.number] == "prefill" and not owned.move and not self._ends(owned):
            request_id = owned.submit.request_id
            if request_id not in self._queue:
                self._queue[request_id] = None
                self.look()

    def look(self) -> None:
        """Begin what can begin, in the order in which requests got their first tokens."""
        for request_id in list(self._queue):
            owned = self._owners.get(request_id)
            holder = owned.holder if owned is not None else None
            if owned is None or self._ends(owned) or holder is None or self.roles[holder.number] != "prefill":
                del self._queue[request_id]  # the next token from a wrong place enters it again
            elif not owned.move and self._moving[holder.number] < self.rule.at_once and not self._begin(owned, holder):
                break
        if self._queue and self._again is None:
            self._again = asyncio.get_running_loop().call_later(PAUSE, self._look_again)

    def close(self) -> None:
        """Begin nothing any more."""
        self._queue.clear()
        for task in self._tasks:
            task.cancel()
        if self._again is not None:
            self._again.cancel()

    def _look_again(self) -> None:
        self._again = None
        self.look()

    def _ends(self, owned: Owned) -> bool:
        params = owned.submit.params
        return owned.submit.embed or len(owned.closed) >= max(params.n, params.best_of or 0)

    def _begin(self, owned: Owned, holder: Member) -> bool:
        """Ask for the move; False when nobody can take the request now."""
        serving = [slot.number for slot in self._slots.serving if slot.member is not holder]
        places = [number for number in for_tokens(serving, self.roles) if self.roles[number] != "prefill"]
        loads = {number: self._slots[number].member.load() for number in places}
        ready = holder.ready
        target = who_pulls(loads, -(-(owned.length + 1) // (ready.page_tokens if ready is not None else 16)), self.rule)
        if target is None:
            return not loads  # nobody is there for tokens: the request ends where it is
        load = loads[target]
        request_id = owned.submit.request_id
        del self._queue[request_id]
        self._moving[holder.number] += 1
        done = self._relocation.begin(holder, self._slots[target].member, load.pages - load.held, request_id)
        task = asyncio.create_task(self._follow(done, holder.number))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return True

    async def _follow(self, done: asyncio.Future[str | None], source: int) -> None:
        problem = await done
        self._moving[source] -= 1
        self.done += problem is None
        if problem is not None:
            self.refused += 1  # it stays, and its next token enters it again
            logger.debug("a request was not taken over: %s", problem)
        self.look()
