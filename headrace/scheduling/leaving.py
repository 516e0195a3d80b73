"""Which request of an instance leaves for another one. Pure: sizes in, a choice out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from headrace.scheduling.item import Item


def who_leaves(requests: Mapping[int, Sequence[Item]], wants: Callable[[Sequence[Item]], int], room: int) -> int | None:
    """The request (by id) that leaves when ``room`` pages are free elsewhere; ``None``: none fits. ``wants``: pages of a request.

    The first that waits, because nothing of it need be copied and a free place elsewhere ends its wait; else the running one
    of least priority, and of those the one with fewest pages ("Llumnix" moves the shortest of the lowest priority first).
    """
    fitting = {key: size for key, items in requests.items() if (size := wants(items)) <= room}
    waiting = [(min(item.order for item in requests[key]), key) for key in fitting if _waits(requests[key])]
    if waiting:
        return min(waiting)[1]
    running = [(max(item.priority for item in requests[key]), size, key) for key, size in fitting.items()]
    return min(running)[2] if running else None


def _waits(items: Sequence[Item]) -> bool:
    return not any(item.pages for item in items)
