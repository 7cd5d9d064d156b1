"""Between-category directions: what tells the categories' refusals apart, around δ."""

import torch
from jaxtyping import Float64
from torch import Tensor

from obliteratus.directions.paired_svd import leading_axes
from obliteratus.directions.samples import EXTRACTORS, Samples, unit_delta
from obliteratus.errors import DirectionError
from obliteratus.operator.bases import orthonormalise

SMALLEST_SPREAD = 1e-9  # of the largest singular value: below it rounding is all there is
ELSE = "use distill.extractor=difference_of_means."


@EXTRACTORS.register("category_svd")
def category_svd(samples: Samples, *, max_rank: int = 1) -> Float64[Tensor, "rank d_model"]:
    """Return δ̂, then the axes along which the categories' mean differences vary around it.

    With δ_c the mean pair difference of the n_c pairs of category c, rows 1… are the leading right
    singular vectors of the matrix with rows √(n_c / n) (δ_c − δ̂ δ̂ᵀδ_c): the axes of the variance
    *between* categories. The paired SVD ranks the pairs' whole variance instead, in which what
    merely differs from prompt to prompt outweighs what a kind of request has in common; a mean over
    n_c pairs leaves a share 1 / n_c of it. K categories give at most K rows, because the weighted
    δ_c have the mean δ. Whether a row carries refusal is decided causally by the rank search.

    Raises:
        DirectionError: the class means do not differ, the set is not paired, a pair has no
            category, or there is only one category.
    """
    first = unit_delta(samples)
    means = _category_means(samples)
    outside = means - (means @ first.T) @ first
    rest = leading_axes(outside, samples.delta, min(max_rank, len(means)) - 1)
    spread = torch.linalg.vector_norm(outside @ rest.T, dim=0)
    is_real = spread > SMALLEST_SPREAD * torch.linalg.vector_norm(means)
    return orthonormalise(torch.cat([first, rest[is_real]]))


def _category_means(samples: Samples) -> Float64[Tensor, "category d_model"]:
    """Return √(n_c / n) δ_c of every category, in the order of their names."""
    if not samples.is_paired:
        raise DirectionError(
            "category_svd needs pairs of a harmful and a harmless prompt, and this set is not "
            f"paired. Add a column 'pair' to both prompt files, or {ELSE}"
        )
    names = sorted({name for name in samples.categories if name is not None})
    missing = samples.categories.count(None) if samples.categories else len(samples.harmful)
    if missing:
        raise DirectionError(
            f"category_svd needs the category of every pair, and {missing} of "
            f"{len(samples.harmful)} have none. Add a column 'category' to the prompts, or {ELSE}"
        )
    if len(names) < 2:
        raise DirectionError(
            f"category_svd compares categories, and all pairs are of '{names[0]}'. Add another "
            f"category, or {ELSE}"
        )
    labels = torch.tensor([names.index(str(name)) for name in samples.categories])
    sums = torch.zeros(len(names), len(samples.delta), dtype=torch.float64)
    sums.index_add_(0, labels, samples.differences.cpu())
    counts = labels.bincount(minlength=len(names))
    return sums / (counts * len(labels)).sqrt()[:, None]
