"""How rich a set of activations is, and how alike two of them are, without what few prompts add.

The *effective rank* is exp(−Σ p log p) of the shares p of variance along the principal axes (Roy
and Vetterli 2007). *Debiased CKA* is the centred alignment of two Gram matrices with the unbiased
estimate of their inner products (Song et al. 2012; arXiv 2405.01012): of unrelated activations it
is 0 however few the prompts, where the plain one nears 1 as the width outgrows them.
"""

import numpy as np
from jaxtyping import Float64

from obliteratus.errors import MeasurementError

FEWEST = 4
"""Prompts below which the unbiased product is not defined."""


def effective_rank(rows: Float64[np.ndarray, "prompt d_model"]) -> float:
    """Return exp of the entropy of the spectrum of the centred ``rows``; 0 where nothing varies."""
    centred = rows - rows.mean(axis=0)
    values = np.maximum(np.linalg.eigvalsh(centred @ centred.T), 0.0)
    total = float(values.sum())
    if total <= 0:
        return 0.0
    shares = values[values > 0] / total
    return float(np.exp(-(shares * np.log(shares)).sum()))


def independent_rank(
    rows: Float64[np.ndarray, "prompt d_model"], rng: np.random.Generator
) -> float:
    """Return the effective rank with every coordinate dealt anew among the prompts.

    Coordinates keep their variances, and share nothing: a large one alone makes no low rank.
    """
    return effective_rank(rng.permuted(rows, axis=0))


def debiased_cka(
    one: Float64[np.ndarray, "prompt d_model"], other: Float64[np.ndarray, "prompt d_model"]
) -> float:
    """Return the debiased CKA of the same prompts in two models, 0 where one does not vary.

    Raises:
        MeasurementError: fewer than 4 prompts.
    """
    if len(one) < FEWEST:
        raise MeasurementError(
            f"debiased CKA needs {FEWEST} prompts, and there are {len(one)}. Raise analyze.prompts."
        )
    first, second = (_centred(rows @ rows.T) for rows in (one, other))
    sizes = float((first * first).sum()) * float((second * second).sum())
    return float((first * second).sum()) / sizes**0.5 if sizes > 0 else 0.0


def _centred(gram: Float64[np.ndarray, "prompt prompt"]) -> Float64[np.ndarray, "prompt prompt"]:
    """Return the U-centred Gram matrix, whose products are unbiased."""
    n = len(gram)
    hollow = gram - np.diag(np.diagonal(gram))
    sums = hollow.sum(axis=1)
    found = hollow - (sums[:, None] + sums) / (n - 2) + sums.sum() / ((n - 1) * (n - 2))
    return found - np.diag(np.diagonal(found))
