"""Orthogonal matrices of ±1: made for every order that Paley's constructions and doubling reach."""

from __future__ import annotations

import functools
import math

import numpy as np
import numpy.typing as npt

from headrace.errors import HeadraceError

Float32 = npt.NDArray[np.float32]
Signs = npt.NDArray[np.int8]


def rotation(size: int, seed: int | None = None) -> Float32:
    """An orthogonal [size, size] matrix whose entries all have the magnitude 1/√size.

    ``seed``: rows get random signs, so that no special vector (such as all ones) is mapped onto one axis.
    Raises ``invalid_value`` for sizes without a known construction.
    """
    signs = hadamard(size).astype(np.float32)
    if seed is not None:
        signs *= np.random.default_rng(seed).choice(np.asarray([-1.0, 1.0], np.float32), size)[:, None]
    return signs / np.float32(math.sqrt(size))


@functools.lru_cache(maxsize=4)
def hadamard(size: int) -> Signs:
    """A matrix of ±1 with H·Hᵀ = size · 1. Raises ``invalid_value`` for sizes without a known construction."""
    doublings, core = 0, _core(size)
    while core is None and size % 2 == 0 and size > 2:
        size, doublings = size // 2, doublings + 1
        core = _core(size)
    if core is None:
        message = f"no Hadamard matrix is known here for {size << doublings} values: leave out the steps rotate and rotate-heads"
        raise HeadraceError("invalid_value", message, param="steps")
    for _ in range(doublings):
        core = np.block([[core, core], [core, -core]])
    core.setflags(write=False)
    return core


def is_known(size: int) -> bool:
    """Whether :func:`hadamard` can make a matrix of that size."""
    try:
        hadamard(size)
    except HeadraceError:
        return False
    return True


def _core(size: int) -> Signs | None:
    """A matrix that doubling cannot make, or one of order 1 or 2."""
    if size in (1, 2):
        return np.asarray([[1, 1], [1, -1]], np.int8)[:size, :size]
    if size % 4:
        return None
    if (size - 1) % 4 == 3 and (residues := _jacobsthal(size - 1)) is not None:
        return _paley_one(residues)
    if (size // 2 - 1) % 4 == 1 and (residues := _jacobsthal(size // 2 - 1)) is not None:
        return _paley_two(residues)
    return None


def _paley_one(residues: Signs) -> Signs:
    """Order q + 1 for a prime power q = 3 mod 4 (Paley, "On orthogonal matrices", first construction)."""
    size = len(residues) + 1
    skew = np.zeros((size, size), np.int8)
    skew[0, 1:], skew[1:, 0], skew[1:, 1:] = 1, -1, residues
    return np.asarray(skew + np.eye(size, dtype=np.int8))


def _paley_two(residues: Signs) -> Signs:
    """Order 2(q + 1) for a prime power q = 1 mod 4 (the second construction)."""
    size = len(residues) + 1
    symmetric = np.zeros((size, size), np.int8)
    symmetric[0, 1:], symmetric[1:, 0], symmetric[1:, 1:] = 1, 1, residues
    plus, minus = np.asarray([[1, 1], [1, -1]], np.int8), np.asarray([[1, -1], [-1, -1]], np.int8)
    return np.asarray(np.kron(symmetric, plus) + np.kron(np.eye(size, dtype=np.int8), minus))


def _jacobsthal(order: int) -> Signs | None:
    """Whether the difference of two elements is a square (1), not one (-1) or zero: [q, q] for a prime q or a prime's square."""
    root = math.isqrt(order)
    if _is_prime(order):
        elements = np.arange(order)
        return np.asarray(_character(order)[(elements[:, None] - elements) % order])
    if root * root == order and _is_prime(root) and root > 2:
        # a + b·√r over a non-residue r is a square exactly when its norm a² - r·b² is one below.
        character = _character(root)
        residue = int(np.flatnonzero(character == -1)[0])
        first, second = np.divmod(np.arange(order), root)
        a, b = first[:, None] - first, second[:, None] - second
        return np.asarray(character[(a * a - residue * b * b) % root])
    return None


def _character(prime: int) -> Signs:
    signs = np.full(prime, -1, np.int8)
    signs[np.arange(1, prime) ** 2 % prime] = 1
    signs[0] = 0
    return signs


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, math.isqrt(number) + 1))
