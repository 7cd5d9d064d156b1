"""A lens tuned to the model's own answers: an affine translator for every layer (2303.08112).

The final norm and the head read the last layer's stream. Earlier layers may hold the same in other
directions, which the head does not read; a translator h' = h + (h − m) A + b turns them. It is
ridge regression from the layer's stream to the last one, on neutral text and never on the prompts,
with the penalty that predicts other documents best. Where the head makes less of that than of the
stream as it is, a few steps of gradient descent on KL(answer ‖ lens) follow. On documents of a
third part the KL of both lenses is reported, so that a translator that learned nothing shows.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from obliteratus.analysis.bench import Bench
from obliteratus.analysis.lens import layers_of
from obliteratus.analysis.neutral_text import passages
from obliteratus.events import track
from obliteratus.measure.head import Head, chunks
from obliteratus.models.chat import encode
from obliteratus.models.loaded import LoadedModel
from obliteratus.models.plumbing import capture
from obliteratus.probe.forward import forward_batches

STATES = 6
"""Tokens of a passage that are learned on; chosen by and reported on is the last, where prompts
are read."""
PARTS = (0.7, 0.85)  # of the documents: to learn on, to choose by up to here, the rest to report on
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # of the mean variance of a coordinate, times states
SILENT = 1e-6  # of the mean deviation: a coordinate that moves less is constant
STEPS, EVERY, BATCH, RATE = 40, 10, 64, 1e-2
"""Of gradient descent where it is needed; ``RATE`` in deviations of the last stream."""


@dataclass(frozen=True)
class Neutral:
    """States of neutral text: the stream at every layer and what the head reads at the end.

    ``part`` is 0 for documents to learn on, 1 to choose by and 2 to report on.
    """

    streams: Float[Tensor, "state layer d_model"]
    final: Float[Tensor, "state d_model"]
    document: Int64[np.ndarray, " state"]
    part: Int64[np.ndarray, " state"]

    def rows(self, part: int) -> Int64[np.ndarray, " row"]:
        """Return the states of a part."""
        return np.flatnonzero(self.part == part)


@dataclass(frozen=True)
class Translator:
    """h' = h + ((h − m) ⊘ s) W + b; ``trained`` says whether descent on KL went on from ridge."""

    mean: Float64[Tensor, " d_model"]
    scale: Float64[Tensor, " d_model"]
    weight: Float64[Tensor, "d_model d_model"]
    bias: Float64[Tensor, " d_model"]
    trained: bool = False

    def __call__(self, stream: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_model"]:
        """Return what the head is to read instead of ``stream``, in its dtype."""
        exact = stream.cpu().double()
        moved = exact + ((exact - self.mean) / self.scale) @ self.weight + self.bias
        return moved.to(stream)


@dataclass(frozen=True)
class TunedLens:
    """A translator per layer (None at the last, which the head reads as it is), and its test.

    ``plain`` and ``tuned`` are KL(answer ‖ lens) in nats on the documents of ``document``.
    """

    translators: tuple[Translator | None, ...]
    plain: Float64[np.ndarray, "row layer"]
    tuned: Float64[np.ndarray, "row layer"]
    document: Int64[np.ndarray, " row"]

    def translate(
        self, streams: Float[Tensor, "prompt layer d_model"]
    ) -> Float[Tensor, "prompt layer d_model"]:
        """Return ``streams`` as the head is to read them."""
        layers = [
            streams[:, place] if each is None else each(streams[:, place])
            for place, each in enumerate(self.translators)
        ]
        return torch.stack(layers, dim=1)


class Reader:
    """The final norm and the head of a model: streams to log-probabilities, and their KL."""

    def __init__(self, model: LoadedModel, head: Head) -> None:
        """Look up the norm, if there is one."""
        name = model.anatomy.final_norm
        self._norm = None if name is None else model.module.get_submodule(name)
        self.head, self._like = head, head.weight

    def __call__(self, stream: Float[Tensor, "row d_model"]) -> Float[Tensor, "row vocab"]:
        """Return what the head would say if the model ended with ``stream``."""
        rows = stream.to(self._like)
        return self.head.log_probabilities(rows if self._norm is None else self._norm(rows))

    @torch.no_grad()
    def divergence(
        self, final: Float[Tensor, "row d_model"], stream: Float[Tensor, "row d_model"]
    ) -> Float64[np.ndarray, " row"]:
        """Return KL(answer ‖ lens) of every row in nats; ``final`` is behind the final norm."""
        found: list[Tensor] = []
        for one, other in zip(chunks(final), chunks(stream), strict=True):
            answer = self.head.log_probabilities(one.to(self._like))
            found.append((answer.exp() * (answer - self(other))).sum(dim=-1).double().cpu())
        return torch.cat(found).numpy()


def neutral_states(bench: Bench) -> Neutral:
    """Run the passages of neutral text and keep the streams of a few tokens of each.

    Raises:
        MeasurementError: see ``passages`` and ``forward_batches``.
    """
    text, model = passages(bench.settings), bench.model
    encoded, layers = encode(model, text.texts, system=bench.system), layers_of(model)
    names, number = np.unique(text.document, return_inverse=True)
    place = np.random.default_rng(bench.seed).permutation(len(names)) / len(names)
    part = (place[:, None] >= PARTS).sum(axis=1)[number]
    streams: list[Tensor] = []
    finals: list[Tensor] = []
    owner: list[int] = []
    with capture(model, layers) as stream:
        for batch, hidden in forward_batches(model, encoded, task="read neutral text"):
            for row, passage in enumerate(batch.rows):
                last = int(batch.lengths[row]) - 1
                several = np.unique(np.linspace(0, last, STATES + 1).astype(int)[1:]).tolist()
                tokens = [last] if part[passage] else several
                kept = [stream[layer][row, tokens].cpu() for layer in layers]
                streams.append(torch.stack(kept, dim=1))
                finals.append(hidden[row, tokens].cpu())
                owner += [passage] * len(tokens)
    return Neutral(torch.cat(streams), torch.cat(finals), text.document[owner], part[owner])


def tune(bench: Bench, neutral: Neutral) -> TunedLens:
    """Fit a translator for every layer but the last, and test all of them."""
    reader, count = Reader(bench.model, bench.head), neutral.streams.shape[1]
    places = track(range(count - 1), task="tune the lens", total=count - 1, unit="layers")
    found = [*(fit(reader, neutral, place, seed=bench.seed) for place in places), None]
    rows = neutral.rows(2)
    final = neutral.final[rows]
    plain, tuned = np.empty((2, len(rows), count))
    for place, each in enumerate(found):
        stream = neutral.streams[rows, place]
        plain[:, place] = reader.divergence(final, stream)
        tuned[:, place] = (
            plain[:, place] if each is None else reader.divergence(final, each(stream))
        )
    return TunedLens(tuple(found), plain, tuned, neutral.document[rows])


def fit(reader: Reader, neutral: Neutral, place: int, *, seed: int) -> Translator:
    """Return the translator of the layer in ``place``: by ridge, or trained where that is worse."""
    found = by_ridge(neutral, place)
    rows = neutral.rows(1)
    final, stream = neutral.final[rows], neutral.streams[rows, place]
    plain = float(reader.divergence(final, stream).mean())
    if float(reader.divergence(final, found(stream)).mean()) < plain:
        return found
    return by_descent(reader, neutral, place, found, seed=seed)


def by_ridge(neutral: Neutral, place: int) -> Translator:
    """Return the ridge map to the last stream, its penalty chosen on documents of part 1."""
    streams, last = neutral.streams[:, place].double(), neutral.streams[:, -1].double()
    learn, choose = neutral.rows(0), neutral.rows(1)
    mean = streams[learn].mean(dim=0)
    scale = streams[learn].std(dim=0)
    scale = scale.clamp(min=SILENT * max(float(scale.mean()), torch.finfo(torch.float64).tiny))
    z, target = (streams - mean) / scale, last - streams
    bias = target[learn].mean(dim=0)
    units = last[learn].std(dim=0).clamp(min=float(SILENT * last[learn].std(dim=0).mean()))
    wanted = target[learn] - bias
    tried: list[tuple[float, Tensor]] = []
    for penalty in PENALTIES:
        weight = _solved(z[learn], wanted, penalty)
        miss = (z[choose] @ weight + bias - target[choose]) / units
        tried.append((float(miss.square().mean()), weight))
    weight = min(tried, key=lambda each: each[0])[1]
    return Translator(mean, scale, weight, bias)


def _solved(
    z: Float64[Tensor, "state d_model"], wanted: Float64[Tensor, "state d_model"], penalty: float
) -> Float64[Tensor, "d_model d_model"]:
    """Return the ridge weights, by the smaller of the two systems."""
    count, width = z.shape
    eye = torch.eye(min(count, width), dtype=z.dtype) * penalty * count
    if width <= count:
        return torch.linalg.solve(z.T @ z + eye, z.T @ wanted)
    return z.T @ torch.linalg.solve(z @ z.T + eye, wanted)


def by_descent(
    reader: Reader, neutral: Neutral, place: int, start: Translator, *, seed: int
) -> Translator:
    """Return the best of the stream as it is, ``start``, and descent on KL from the better.

    What is best is judged on documents of part 1, every few steps.
    """
    choose = neutral.rows(1)
    learn = neutral.rows(0)
    final, stream = neutral.final[choose], neutral.streams[choose, place]
    nothing = Translator(start.mean, start.scale, 0 * start.weight, 0 * start.bias)
    tried = [(float(reader.divergence(final, each(stream)).mean()), each)
             for each in (nothing, start)]  # fmt: skip
    best, found = min(tried, key=lambda each: each[0])
    unit = float(neutral.streams[learn, -1].double().std(dim=0).mean())
    width = len(start.mean) ** 0.5
    weight, bias = (found.weight * width / unit).clone(), (found.bias / unit).clone()
    values = [weight.requires_grad_(), bias.requires_grad_()]
    optimiser = torch.optim.Adam(values, lr=RATE)
    rng = np.random.default_rng(seed)
    for step in range(1, STEPS + 1):
        rows = rng.choice(learn, size=min(BATCH, len(learn)), replace=False)
        with torch.enable_grad():
            exact = neutral.streams[rows, place].double()
            z = (exact - start.mean) / start.scale
            answer = reader.head.log_probabilities(neutral.final[rows].to(reader.head.weight))
            seen = reader(exact + unit * (z @ weight / width + bias))
            loss = (answer.exp() * (answer - seen)).sum(dim=-1).mean()
            optimiser.zero_grad()
            loss.backward()  # pyright: ignore[reportUnknownMemberType]
        optimiser.step()
        if step % EVERY == 0:
            with torch.no_grad():
                now = Translator(start.mean, start.scale, unit * weight.detach() / width,
                                 unit * bias.detach().clone(), trained=True)  # fmt: skip
            value = float(reader.divergence(final, now(stream)).mean())
            if value < best:
                best, found = value, now
    return found
