"""The most that sequences will hold at one time, each growing until it ends."""

from __future__ import annotations


def peak_of(expected: list[tuple[int, int]]) -> int:
    """Tokens at the worst moment. ``expected``: (tokens to come, tokens held now) of each; sorted in place.

    The need peaks just before some sequence ends: then all that end later still live, each grown by as many tokens.
    """
    expected.sort(reverse=True)
    tokens, most = 0, 0
    for alive, (ahead, length) in enumerate(expected, 1):
        tokens += length
        most = max(most, tokens + alive * ahead)
    return most
