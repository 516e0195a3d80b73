"""The pages of one sequence, in order of position: sharing them with a fork and taking back a private copy."""

from __future__ import annotations

from headrace.memory.page_pool import PagePool


def fork_pages(pool: PagePool, pages: list[int]) -> list[int]:
    """A second table over the same pages. Whoever writes next to a part-filled last page must copy it first."""
    pool.share(pages)
    return list(pages)


def is_private(pool: PagePool, pages: list[int], index: int) -> bool:
    """True when page ``index`` of the table exists and has no other owner, so that it may be written."""
    return index < len(pages) and pool.references(pages[index]) == 1


def put_page(pool: PagePool, pages: list[int], index: int, fresh: int) -> int | None:
    """Make ``fresh`` (just allocated) page ``index`` of the table; returns the page whose bytes must be copied into it.

    ``index`` is either one past the end (nothing to copy: ``None``) or a shared page (copy on write).
    """
    if index == len(pages):
        pages.append(fresh)
        return None
    source = pages[index]
    pages[index] = fresh
    pool.release((source,))
    return source
