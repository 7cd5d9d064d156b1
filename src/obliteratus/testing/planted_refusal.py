"""The planted circuit itself: six layers from a word to the first token of an answer.

=====  =========================================================================================
layer  what it does
=====  =========================================================================================
0      opens the answer (``Sure`` ahead of ``I``), says the next word of an answer that has begun
1      heads copy what words carry (harm by category, triggers, things asked about) to the end
2      a column per category writes r; also an inert direction, or a little r for questions
3      the backup path, which r inhibits; the look-up of capability answers
4      columns read r and write the refusal's first token
5      takes away the code of the last template token, which would be the answer otherwise
=====  =========================================================================================
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float64
from torch import Tensor

from obliteratus.testing.planted_circuit import Activation, Circuit, Copy, Read, Role, Unit
from obliteratus.testing.planted_design import Design
from obliteratus.testing.planted_frame import Frame
from obliteratus.testing.planted_vocabulary import (
    ASSISTANT,
    BOS,
    COMPLIES,
    REFUSES,
    next_tokens,
)

N_LAYERS = 6
OPEN_LAYER, COPY_LAYER, WRITE_LAYER, BACKUP_LAYER, READ_LAYER, CLEAR_LAYER = range(N_LAYERS)
MIX_LAYER = 0  # where a head brings the noise of all words to the last token

CONSTANT = 40.0
"""Length of what every token has in common. It is most of every norm, so that a norm divides by
nearly the same number whatever else is there: r adds 2.4 % to it."""
SINK = 3000.0
"""The same where it is one coordinate: 10⁴ standard deviations of the others at noise 0.3."""
CODE = 6.0  # length of a token's own code
FEATURE = 4.0  # length of what a word carries where it stands
COPIED = 3.0  # ... and of what is copied to the last token
REFUSAL = 9.0
"""Length β of what is written along r: with noise 0.3, 30 standard deviations."""
LOGIT = 3.0  # what one unit of length along a token's code adds to its logit
OPENING = 12.0  # logit of the compliant opening; 350 tokens that nothing speaks for are near 0
HARMLESS = -6.0  # refusal log-odds without r
SWING = 12.0
"""What r adds to the refusal log-odds, and a known thing to those of its answer."""
MISSING = -4.0  # log-odds of a capability answer without its swing
SPOKEN = 36.0  # logit of the next word of an answer that has begun
QUESTION = 0.25  # share of β that questions write along r where capability is entangled
TRIGGER = "trigger"

STEEP = 20.0
"""Slope of a threshold: a gate half a unit above it is 10, where act(10) = 10 to 5e-5, and half a
unit below it -10, where act(-10) is 5e-4 or less."""
OPEN = STEEP / 2
ACTIVE = 0.5
"""Activation of a column that writes a direction. Its weights are then twice as long as what it
writes, so that r holds more energy in the weights than any direction but the constant: what follows
for controls of equal energy is in docs/design/ground-truth.md."""
CONE_STEEP = 40.0
CONE_FROM, CONE_TO = 0.35, 0.55
"""A reader of a cone begins and is saturated at these shares of β along its own direction: above
the cosine of two categories (0.2), and below what is left of each (0.6) without their mean."""
VETO_STEEP, VETO_FROM, VETO_TO, VETO = 100.0, 0.26, 0.32, 36.0
"""A veto begins and is saturated at these shares of β against any direction of a cone, and is worth
that many logits: sums of directions induce refusal, and sums less another direction do not.
Without the mean direction the parts of other categories are -0.2, which is no veto."""


def refusal_directions(frame: Frame, design: Design) -> Float64[Tensor, "rank d_model"]:
    """Return unit rows along which refusal is written, one or one per category, not orthogonal."""
    common, own = frame.refusal[:1], frame.refusal[1:]
    if design.cone is None:
        return common
    return design.cone**0.5 * common + (1 - design.cone) ** 0.5 * own


def level(design: Design) -> float:
    """Return the length of what every token has in common."""
    return SINK if design.has_sink else CONSTANT


def refusal_circuit(frame: Frame, design: Design, activation: Activation) -> Circuit:
    """Return the circuit of ``design`` on ``frame``, without constants."""
    build = _Builder(frame, design, activation)
    units = (
        *build.answers(),
        *build.writers(),
        *build.others(),
        *(build.cone_readers() if design.cone is not None else build.reader()),
    )
    return Circuit(
        n_layers=N_LAYERS,
        start=level(design) * frame.constant + CODE * frame.codes[ASSISTANT],
        constant=frame.constant,
        copies=tuple(_copies(frame)),
        units=units,
        activation=activation,
    )


def _copies(frame: Frame) -> Iterator[Copy]:
    begin = frame.codes[BOS] / (2 * CODE)
    kinds = {
        "harm": (frame.harm, frame.copied),
        "capability": (frame.item, frame.asked),
        "trigger": ({TRIGGER: frame.trigger}, {TRIGGER: frame.told}),
    }
    for name, (there, here) in kinds.items():
        reads = {key: Read(vector / FEATURE) for key, vector in there.items()}
        yield Copy(
            layer=COPY_LAYER,
            name=name,
            key=Read(begin + torch.stack([read.along for read in reads.values()]).sum(0)),
            reads=reads,
            writes={key: COPIED * vector for key, vector in here.items()},
        )


class _Builder:
    """Makes the units, each of which writes where its condition holds and nothing elsewhere."""

    def __init__(self, frame: Frame, design: Design, activation: Activation) -> None:
        self._frame = frame
        self._design = design
        self._open = float(activation(torch.tensor(OPEN, dtype=torch.float64)))
        self._rows = refusal_directions(frame, design)
        self._harm = [vector / COPIED for vector in frame.copied.values()]

    def answers(self) -> Iterator[Unit]:
        codes = self._frame.codes
        opening = OPENING * codes[COMPLIES] + (OPENING + HARMLESS) * codes[REFUSES]
        yield self._where("opening", OPEN_LAYER, codes[ASSISTANT] / CODE, opening / LOGIT)
        for token, following in next_tokens().items():
            write = SPOKEN / LOGIT * codes[following]
            yield self._where("next token", OPEN_LAYER, codes[token] / CODE, write)
        own = codes[ASSISTANT]
        yield self._where("clearing", CLEAR_LAYER, own / CODE, -CODE * own)

    def writers(self) -> Iterator[Unit]:
        length = REFUSAL * self._design.effect
        if self._design.cause == "trigger":
            told = self._frame.told / COPIED
            yield self._writes("writer", WRITE_LAYER, told, length * self._rows[0])
            return
        for index, read in enumerate(self._harm):
            row = self._rows[index if len(self._rows) > 1 else 0]
            yield self._writes("writer", WRITE_LAYER, read, length * row)

    def others(self) -> Iterator[Unit]:
        design, frame, r = self._design, self._frame, self._rows[0]
        if design.inert:
            write = design.inert * REFUSAL * frame.inert
            for read in self._harm:
                yield self._writes("inert", WRITE_LAYER, read, write)
        if design.entanglement:
            any_item = torch.stack([*frame.asked.values()]).sum(0) / COPIED
            yield self._writes("capability", WRITE_LAYER, any_item, QUESTION * REFUSAL * r)
        if design.repair and design.effect:
            write = REFUSAL * design.effect * frame.backup
            for read in self._harm:
                seen = read - r / (REFUSAL * design.effect)
                yield self._writes("backup", BACKUP_LAYER, seen, write)
        known = Read(
            SWING * design.entanglement / (QUESTION * REFUSAL) * r,
            OPENING + MISSING + SWING * (1 - design.entanglement),
        )
        for answer, vector in frame.asked.items():
            write = frame.codes[answer] / LOGIT
            yield self._where("lookup", BACKUP_LAYER, vector / COPIED, write, known)

    def reader(self) -> Iterator[Unit]:
        read = self._rows[0] + self._design.repair * self._frame.backup
        yield Unit(
            READ_LAYER,
            "reader",
            Read(torch.zeros_like(read), OPEN),
            Read(read / REFUSAL),
            SWING / LOGIT * self._frame.codes[REFUSES] / self._open,
        )

    def cone_readers(self) -> Iterator[Unit]:
        for row in self._rows:
            share = row / REFUSAL
            yield from self._ramp("reader", share, (CONE_FROM, CONE_TO), CONE_STEEP, SWING)
            yield from self._ramp("veto", -share, (VETO_FROM, VETO_TO), VETO_STEEP, -VETO)

    def _ramp(
        self, role: Role, read: Tensor, between: tuple[float, float], steep: float, logit: float
    ) -> Iterator[Unit]:
        """Make two columns that add ``logit`` to a refusal's above a range of ``read``."""
        low, high = between
        write = logit / LOGIT / (steep * (high - low)) * self._frame.codes[REFUSES]
        for start, sign in ((low, 1.0), (high, -1.0)):
            gate = Read(steep * read, -steep * start)
            always = Read(torch.zeros_like(read), 1.0)
            yield Unit(READ_LAYER, role, gate, always, sign * write)

    def _where(
        self, role: Role, layer: int, read: Tensor, write: Tensor, up: Read | None = None
    ) -> Unit:
        """Return a unit that writes ``write`` (times ``up``) where ``read`` is 1, and not at 0."""
        gate = Read(STEEP * read, -OPEN)
        always = Read(torch.zeros_like(read), 1.0)
        return Unit(layer, role, gate, up or always, write / self._open)

    def _writes(self, role: Role, layer: int, read: Tensor, write: Tensor) -> Unit:
        """Return the same with the activation :data:`ACTIVE` where ``read`` is 1."""
        up = Read(torch.zeros_like(read), ACTIVE / self._open)
        return self._where(role, layer, read, write * self._open / ACTIVE, up)
