"""The directions of a planted transformer: one random orthonormal frame, dealt out by name."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from obliteratus.testing.planted_vocabulary import HARM, ITEMS, SPECIAL, spoken

D_MODEL = 128


@dataclass(frozen=True)
class Frame:
    """Orthonormal directions of the stream, each with one meaning.

    ``constant`` is what every token has; ``harm``, ``item`` and ``trigger`` are written by words
    where they stand; ``copied``, ``asked`` and ``told`` are the same at the last position.
    ``refusal`` holds one axis more than there are categories. ``codes`` are the tokens that can be
    said and the special ones; ``content`` spans all other words. ``sink`` is a coordinate, and then
    the constant.
    """

    constant: Float64[Tensor, " d_model"]
    harm: Mapping[str, Float64[Tensor, " d_model"]]
    copied: Mapping[str, Float64[Tensor, " d_model"]]
    item: Mapping[str, Float64[Tensor, " d_model"]]
    asked: Mapping[str, Float64[Tensor, " d_model"]]
    trigger: Float64[Tensor, " d_model"]
    told: Float64[Tensor, " d_model"]
    refusal: Float64[Tensor, "rank d_model"]
    backup: Float64[Tensor, " d_model"]
    inert: Float64[Tensor, " d_model"]
    codes: Mapping[str, Float64[Tensor, " d_model"]]
    content: Float64[Tensor, "content d_model"]
    sink: int | None = None

    def noisy(self) -> Float64[Tensor, "axis d_model"]:
        """Return orthonormal rows that span what noise may touch.

        All but the constant and the wires, which are what words carry and heads copy: there a
        threshold would turn noise into something else.
        """
        said = torch.stack([self.codes[token] for token in spoken()])
        rest = torch.stack([self.backup, self.inert])
        return torch.cat([self.refusal, rest, said, self.content])


def frame(seed: int, *, has_sink: bool, is_centred: bool) -> Frame:
    """Return a frame drawn by ``seed``.

    ``is_centred`` keeps it orthogonal to (1, …, 1), which a LayerNorm takes out.
    """
    source = torch.Generator().manual_seed(seed)
    columns = torch.randn(D_MODEL, D_MODEL, generator=source, dtype=torch.float64)
    if is_centred:
        columns[:, 0] = 1.0
    sink = int(torch.randint(D_MODEL, (), generator=source)) if has_sink else None
    if sink is not None:
        columns[:, int(is_centred)] = torch.eye(D_MODEL, dtype=torch.float64)[sink]
    rows = list(torch.linalg.qr(columns).Q.T[int(is_centred) :])
    constant = rows.pop(0)
    if sink is not None:
        constant = constant.abs().round()  # QR may turn its sign

    def deal(names: tuple[str, ...]) -> dict[str, Tensor]:
        return {name: rows.pop(0) for name in names}

    categories, answers = tuple(HARM), tuple(ITEMS)
    return Frame(
        constant=constant,
        harm=deal(categories),
        copied=deal(categories),
        item=deal(answers),
        asked=deal(answers),
        trigger=rows.pop(0),
        told=rows.pop(0),
        refusal=torch.stack([rows.pop(0) for _ in range(len(categories) + 1)]),
        backup=rows.pop(0),
        inert=rows.pop(0),
        codes=deal(tuple(dict.fromkeys([*SPECIAL, *spoken()]))),
        content=torch.stack(rows),
        sink=sink,
    )
