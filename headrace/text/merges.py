"""Merge lists for SentencePiece BPE vocabularies, which keep a score for each piece and no merges."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_FORMAT = b"headrace merges 1"


def default_merge_cache() -> Path:
    """Where derived merges are kept between starts: ``$XDG_CACHE_HOME/headrace`` or ``~/.cache/headrace``."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "headrace"


def merges_from_scores(
    tokens: Sequence[str], scores: Sequence[float], mergeable: Sequence[bool], cache: Path | None
) -> list[tuple[str, str]]:
    """Every pair of pieces that makes a piece, best score first: the order in which SentencePiece would merge them.

    With ``cache`` the result is kept as pairs of ids in a file named by the hash of all inputs; a file that does not
    fit is derived anew, and a folder that can't be written only costs the time again.
    """
    path = None if cache is None else cache / f"merges-{_key(tokens, scores, mergeable)}.u32"
    pairs = _load(path, len(tokens))
    if pairs is None:
        pairs = _derive(tokens, scores, mergeable)
        _save(path, pairs)
    return [(tokens[left], tokens[right]) for left, right in pairs.tolist()]


def _derive(tokens: Sequence[str], scores: Sequence[float], mergeable: Sequence[bool]) -> NDArray[np.uint32]:
    ids: dict[str, int] = {}
    for index, token in enumerate(tokens):
        if mergeable[index]:
            ids.setdefault(token, index)
    get = ids.get
    found: list[tuple[float, int, int]] = []
    for token, index in ids.items():
        rank = -scores[index]
        for cut in range(1, len(token)):
            left = get(token[:cut])
            if left is None:
                continue
            right = get(token[cut:])
            if right is not None:
                found.append((rank, left, right))
    found.sort()
    return np.array([(left, right) for _, left, right in found], dtype=np.uint32).reshape(-1, 2)


def _key(tokens: Sequence[str], scores: Sequence[float], mergeable: Sequence[bool]) -> str:
    digest = hashlib.sha256(_FORMAT)
    digest.update("\0".join(tokens).encode("utf-8", "surrogatepass"))
    digest.update(np.asarray(scores, dtype=np.float64).tobytes())
    digest.update(np.asarray(mergeable, dtype=np.bool_).tobytes())
    return digest.hexdigest()[:32]


def _load(path: Path | None, vocab: int) -> NDArray[np.uint32] | None:
    if path is None or not path.is_file():
        return None
    data = path.read_bytes()
    if len(data) < 32 or (len(data) - 32) % 8 or hashlib.sha256(data[32:]).digest() != data[:32]:
        return None
    pairs = np.frombuffer(data, dtype=np.uint32, offset=32).reshape(-1, 2)
    return pairs if pairs.size == 0 or int(pairs.max()) < vocab else None


def _save(path: Path | None, pairs: NDArray[np.uint32]) -> None:
    """Write beside and rename, so that a reader never meets half a file."""
    if path is None:
        return
    body = pairs.tobytes()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as out:
            out.write(hashlib.sha256(body).digest() + body)
        Path(out.name).replace(path)
    except OSError:
        return
