"""Metrics that are not right or wrong: a number between, and one of the whole corpus."""

import math


def likelihood_of_first(doc, results):
    """Return the probability of the first choice among the choices."""
    del doc
    odds = [math.exp(value) for value, _ in results]
    return {"confidence": odds[0] / sum(odds)}


def both_ends(doc, results):
    """Return what only all items together make a number of."""
    del doc
    values = [value for value, _ in results]
    return {"spread": (min(values), max(values))}


def widest(ends):
    """Return how far apart the ends of all items are."""
    return max(high for _, high in ends) - min(low for low, _ in ends)
