"""What a pack's log-probabilities are worth: the loss, and the factor by which each of them pulls."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from headrace.training.pack import Pack

Doubles = npt.NDArray[np.float64]


def likelihood_factors(pack: Pack, total: float) -> Doubles:
    """Of the mean negative log-likelihood over ``total`` weight: the loss is −Σ factor · log-probability."""
    return pack.weights.astype(np.float64) / total


def document_sums(pack: Pack, scores: Doubles) -> Doubles:
    """Weighted log-probability of each document, [documents]."""
    return np.asarray(np.bincount(pack.documents, pack.weights * scores, minlength=len(pack.ends)), np.float64)


def preference(pack: Pack, scores: Doubles, reference: Doubles, beta: float, pairs: int) -> tuple[float, Doubles]:
    """The loss of "Direct Preference Optimization" (Rafailov et al.), this pack's part of the mean over ``pairs``, and its factors.

    ``reference``: the documents' sums under the model without the adapter.
    """
    gained = document_sums(pack, scores) - reference
    margins = beta * (gained[0::2] - gained[1::2])
    losses = np.logaddexp(0.0, -margins)
    pull = np.repeat(beta * np.exp(-np.logaddexp(0.0, margins)) / pairs, 2)
    pull[1::2] *= -1.0
    return float(losses.sum() / pairs), pull[pack.documents] * pack.weights.astype(np.float64)
