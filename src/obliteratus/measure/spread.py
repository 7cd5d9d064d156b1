"""Some of many, at equal distances."""


def spread_indices(total: int, count: int) -> tuple[int, ...]:
    """Return ``count`` of ``total`` indices at equal distances (all of them if there are fewer).

    Prompts and items are ordered by category, so every category keeps its share.
    """
    if count >= total:
        return tuple(range(total))
    return tuple(int(index * total / count) for index in range(count))
