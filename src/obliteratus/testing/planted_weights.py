"""An ordinary transformer whose weights carry out a planted circuit.

A norm divides the stream by its length, which is nearly constant; every reading row is multiplied
by that length, as it is for a prompt that is refused, and divided by the norm's gains. Biases of
readings come from the constant direction, less what biases of the architecture bring already.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float64
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from obliteratus.testing.planted_architecture import (
    COLUMNS,
    EXPERTS,
    HEAD_DIM,
    HEADS,
    KV_HEADS,
    empty_model,
)
from obliteratus.testing.planted_circuit import Circuit, Copy, Part, Place, Read, Unit
from obliteratus.testing.planted_design import Design
from obliteratus.testing.planted_frame import D_MODEL, Frame
from obliteratus.testing.planted_noise import BIAS, Noise
from obliteratus.testing.planted_norms import ReadNorm, scale_before
from obliteratus.testing.planted_refusal import (
    CODE,
    FEATURE,
    LOGIT,
    MIX_LAYER,
    N_LAYERS,
    OPEN,
    REFUSAL,
    TRIGGER,
    WRITE_LAYER,
    level,
    refusal_directions,
)
from obliteratus.testing.planted_vocabulary import (
    ASSISTANT,
    FILLERS,
    HARM,
    ITEMS,
    NOUNS,
    TRIGGERS,
    VERBS,
    token_id,
)
from obliteratus.testing.tiny import in_dtype

SHARP = 24.0
"""Attention logit of what a head looks for, and twice that of the first token: e⁻¹² = 6e-6."""
POST_GAIN = 2.5
"""Mean gain of a norm behind a part. What the part always writes is then 28 long, four times what
its signals are, so that the norm hardly turns with them."""
OFFSET = 0.2  # share of β that a bias writes along r in every prompt, where there are biases
OFFSET_LAYER = 3
ROUTED = 8.0  # router logit for and against the experts that harm is routed to
CONSTANT_DIM = 0  # the value that is 1 at every token, where a norm follows attention


@dataclass(frozen=True)
class Built:
    """The model, the circuit with what its biases write, and where its parts are.

    ``heads`` is copy name -> (layer, head), ``columns`` follows the circuit's units, and
    ``experts`` are those that hold the writers.
    """

    module: PreTrainedModel
    circuit: Circuit
    heads: Mapping[str, tuple[int, int]]
    columns: tuple[int, ...]
    experts: tuple[int, ...]
    codes: Float64[Tensor, "vocab d_model"]


def build(
    frame: Frame,
    design: Design,
    circuit: Circuit,
    tokenizer: PreTrainedTokenizerFast,
    *,
    seed: int,
    dtype: torch.dtype,
) -> Built:
    """Return ``circuit`` as the weights of a model of ``design.architecture``.

    All that no part of the circuit uses is random, of the scale ``design.background``, and neither
    reads the constant nor writes to it or to the wires between copies and units.
    """
    return _Builder(frame, design, circuit, tokenizer, seed).build(dtype)


class _Builder:
    def __init__(
        self,
        frame: Frame,
        design: Design,
        circuit: Circuit,
        tokenizer: PreTrainedTokenizerFast,
        seed: int,
    ) -> None:
        self.frame, self.design, self.tokenizer = frame, design, tokenizer
        self.noise = Noise(frame, design, seed + 1)
        self.module = empty_model(design, tokenizer, seed=seed)
        self.has_post = design.architecture == "gemma2"
        self.gains = {
            (layer, part): self.noise.gain() * POST_GAIN
            for layer in range(N_LAYERS)
            for part in ("attention", "mlp")
        }
        self.kappa: dict[Place, float] = {}
        known = replace(
            circuit,
            constants=self._constants(circuit),
            noise=design.noise**2 * D_MODEL,
            gains=self.gains if self.has_post else {},
        )
        self.nominal = known.at_last_token((next(iter(HARM)), TRIGGER))
        self.plain = known.at_last_token()
        end = (self.nominal.end + self.plain.end) / 2
        self.circuit = replace(known, made_for={**self.nominal.before, "end": end})
        heads = self.noise.order(HEADS)
        self.mixer = heads[-1]  # it copies nothing
        self.heads = {
            copy.name: (copy.layer, head)
            for copy, head in zip(self.circuit.copies, heads, strict=False)
        }
        self.experts = tuple(sorted(self.noise.order(EXPERTS)[:2]))

    def build(self, dtype: torch.dtype) -> Built:
        codes = self._embeddings()
        columns = {layer: self.noise.order(COLUMNS) for layer in range(N_LAYERS)}
        placed = tuple(columns[unit.layer].pop() for unit in self.circuit.units)
        for layer in range(N_LAYERS):
            self._attention(layer)
            units = [
                (unit, column)
                for unit, column in zip(self.circuit.units, placed, strict=True)
                if unit.layer == layer
            ]
            self._mlp(layer, units, spare=columns[layer].pop())
        self._head(codes)
        module = in_dtype(self.module, dtype).eval().requires_grad_(requires_grad=False)
        experts = self.experts if self.design.architecture == "mixtral" else ()
        return Built(module, self.circuit, self.heads, placed, experts, codes)

    def _constants(self, circuit: Circuit) -> dict[Place, Tensor]:
        """Return what each part always writes, and find the scale of its signals."""
        found: dict[Place, Tensor] = {}
        trace = circuit.at_last_token((next(iter(HARM)), TRIGGER))
        parts: list[Place] = [*trace.before]
        streams = [*trace.before.values(), trace.end]
        for index, place in enumerate(parts):
            if self.has_post:
                gain, sign = self.gains[place], self._sign(place[1])
                signal = (streams[index + 1] - streams[index]) / gain
                steady = sign * self.frame.constant / gain
                self.kappa[place] = kappa = scale_before(steady, signal)
                found[place] = sign * self.frame.constant / kappa
            elif self.design.has_biases:
                found[place] = self.noise.quiet_bias()
                if place == (OFFSET_LAYER, "mlp"):
                    r = refusal_directions(self.frame, self.design)[0]
                    found[place] = found[place] + OFFSET * REFUSAL * r
        return found

    @staticmethod
    def _sign(part: Part) -> int:
        return 1 if part == "attention" else -1  # so that the constant does not grow with depth

    def _embeddings(self) -> Float64[Tensor, "vocab d_model"]:
        """Fill the embedding and return each token's code, of length 1."""
        frame = self.frame
        size = len(self.tokenizer)
        codes = self.noise.normal(size, len(frame.content)) @ frame.content
        for words in (*HARM.values(), *ITEMS.values(), NOUNS, VERBS, FILLERS, TRIGGERS):
            ids = [token_id(self.tokenizer, f" {word}") for word in words]
            codes[ids] -= codes[ids].mean(0)  # or the mean word would be a constant of the noise
        codes = codes / codes.norm(dim=1, keepdim=True)
        for token, vector in frame.codes.items():
            codes[token_id(self.tokenizer, token)] = vector
        rows = level(self.design) * frame.constant + CODE * codes
        carried = {
            **{word: frame.harm[name] for name, words in HARM.items() for word in words},
            **{word: frame.item[name] for name, words in ITEMS.items() for word in words},
            **dict.fromkeys(TRIGGERS, frame.trigger),
        }
        for word, vector in carried.items():
            rows[token_id(self.tokenizer, f" {word}")] += FEATURE * vector
        scale = D_MODEL**0.5 if self.has_post else 1.0
        self._set("model.embed_tokens.weight", rows / scale)
        return codes

    def _head(self, codes: Float64[Tensor, "vocab d_model"]) -> None:
        scale = self._length(self.circuit.made_for["end"])
        if self.design.is_tied:  # no row may undo a gain, so the gains are one number
            self._set_norm("model.norm", torch.full((D_MODEL,), LOGIT * scale / CODE))
            return
        gain = self.noise.gain()
        self._set_norm("model.norm", gain, gain * self.noise.quiet_bias())
        self._set("lm_head.weight", LOGIT * scale * codes / gain)

    def _attention(self, layer: int) -> None:
        path = f"model.layers.{layer}"
        gain, bias = self._pre_norm(f"{path}.input_layernorm")
        trace, noise = self.nominal.before[layer, "attention"], self.design.noise
        word = CODE**2 + FEATURE**2 + (layer > MIX_LAYER) * noise**2 * D_MODEL
        last = self._norm(layer, "attention", self._length(trace), gain, bias)
        there = float(trace @ self.frame.constant)
        words = replace(last, scale=((there**2 + word) / D_MODEL) ** 0.5)
        sizes = {"q": HEADS * HEAD_DIM, "k": KV_HEADS * HEAD_DIM, "v": KV_HEADS * HEAD_DIM}
        biases = {n: self._biases(f"{path}.self_attn.{n}_proj", size) for n, size in sizes.items()}
        rows = {name: self.noise.reading(words, own) for name, own in biases.items()}
        rows["q"] = self.noise.reading(last, biases["q"], self.plain.before[layer, "attention"])
        writes = self.noise.writing(HEADS * HEAD_DIM)
        used = [1, 1]
        if layer == MIX_LAYER and self.design.noise:
            self._mix(rows, biases, writes, words)
        for channel, copy in enumerate(self.circuit.copies):
            if copy.layer == layer:
                self._copy(copy, channel, (rows, biases, writes, used), last, words)
        if self.has_post:
            constant = words.row(Read(torch.zeros(D_MODEL, dtype=torch.float64), 1.0))
            for group in range(KV_HEADS):
                rows["v"][group * HEAD_DIM + CONSTANT_DIM] = constant
            writes[:, CONSTANT_DIM::HEAD_DIM] = 0
            writes[:, CONSTANT_DIM + HEAD_DIM * self.mixer] = self.frame.constant
        for name, matrix in rows.items():
            self._set(f"{path}.self_attn.{name}_proj.weight", matrix)
        self._write(f"{path}.self_attn.o_proj", layer, "attention", writes)

    def _mix(
        self, rows: dict[str, Tensor], biases: dict[str, Tensor], writes: Tensor, norm: ReadNorm
    ) -> None:
        """Let the head that copies nothing attend evenly and write the noise of words."""
        head, group = self.mixer, self.mixer * KV_HEADS // HEADS
        first = int(self.has_post)  # the constant needs a value
        read, columns = self.noise.of_words(HEAD_DIM - first)
        values = slice(group * HEAD_DIM + first, (group + 1) * HEAD_DIM)
        asks = slice(head * HEAD_DIM, (head + 1) * HEAD_DIM)
        nothing = torch.zeros(HEAD_DIM, D_MODEL, dtype=torch.float64)
        for name, along, place in (("q", nothing, asks), ("v", read, values)):
            own = biases[name][place]
            rows[name][place] = norm.rows(along, torch.zeros_like(own), own)
        writes[:, head * HEAD_DIM + first : (head + 1) * HEAD_DIM] = columns

    def _copy(
        self,
        copy: Copy,
        channel: int,
        into: tuple[dict[str, Tensor], dict[str, Tensor], Tensor, list[int]],
        last: ReadNorm,
        words: ReadNorm,
    ) -> None:
        rows, biases, writes, used = into
        head = self.heads[copy.name][1]
        group = head * KV_HEADS // HEADS
        # The dimensions that rotary positions turn least: 1e-5 of a turn over 10 tokens.
        lookup = HEAD_DIM - 1 - channel
        ask = Read(SHARP * HEAD_DIM**0.5 * self.frame.codes[ASSISTANT] / CODE)
        for name, read, norm, place in (
            ("q", ask, last, head * HEAD_DIM + lookup),
            ("k", copy.key, words, group * HEAD_DIM + lookup),
        ):
            rows[name][place] = norm.row(read, float(biases[name][place]))
        for feature, read in copy.reads.items():
            value = used[group]
            used[group] += 1
            place = group * HEAD_DIM + value
            rows["v"][place] = words.row(read, float(biases["v"][place]))
            for other in range(HEADS):  # heads that share the value must not bring it elsewhere
                if other * KV_HEADS // HEADS == group:
                    writes[:, other * HEAD_DIM + value] = 0
            writes[:, head * HEAD_DIM + value] = copy.writes[feature]

    def _mlp(self, layer: int, units: list[tuple[Unit, int]], *, spare: int) -> None:
        path = f"model.layers.{layer}"
        name = "pre_feedforward" if self.has_post else "post_attention"
        gain, bias = self._pre_norm(f"{path}.{name}_layernorm")
        trace = self.nominal.before[layer, "mlp"]
        norm = self._norm(layer, "mlp", self._length(trace), gain, bias)
        if self.design.architecture == "mixtral":
            self._experts(path, layer, units, norm)
            return
        biases = {part: self._biases(f"{path}.mlp.{part}_proj", COLUMNS) for part in ("gate", "up")}
        rows, writes = self._filled(layer, units, norm, biases)
        if self.has_post:
            zero = torch.zeros(D_MODEL, dtype=torch.float64)
            rows["gate"][spare] = norm.row(Read(zero, OPEN))
            rows["up"][spare] = norm.row(Read(zero, 1.0))
            opened = float(self.circuit.activation(torch.tensor(OPEN, dtype=torch.float64)))
            writes[:, spare] = -self.frame.constant / opened
        for part, matrix in rows.items():
            self._set(f"{path}.mlp.{part}_proj.weight", matrix)
        self._write(f"{path}.mlp.down_proj", layer, "mlp", writes)

    def _experts(
        self, path: str, layer: int, units: list[tuple[Unit, int]], norm: ReadNorm
    ) -> None:
        """Give every expert all units, but writers only to those that harm is routed to.

        The weights of the two that answer sum to 1, so what both hold is written once.
        """
        none = {part: torch.zeros(COLUMNS, dtype=torch.float64) for part in ("gate", "up")}
        router = self.noise.reading(norm, none["gate"][:EXPERTS], self.plain.before[layer, "mlp"])
        if layer == WRITE_LAYER:
            gates = [unit.gate for unit, _ in units if unit.role == "writer"]
            along = torch.stack([gate.along for gate in gates]).sum(0)
            toward = Read(ROUTED / OPEN * along, ROUTED / OPEN * gates[0].bias)
            away = Read(-toward.along, -toward.bias)
            chosen = [norm.row(toward if e in self.experts else away) for e in range(EXPERTS)]
            router = router / ROUTED + torch.stack(chosen)
        self._set(f"{path}.mlp.gate.weight", router)
        for expert in range(EXPERTS):
            held = [
                (unit, column)
                for unit, column in units
                if unit.role != "writer" or expert in self.experts
            ]
            rows, writes = self._filled(layer, held, norm, none)
            stacked = torch.cat([rows["gate"], rows["up"]])
            self._set(f"{path}.mlp.experts.gate_up_proj", stacked, expert)
            self._set(f"{path}.mlp.experts.down_proj", writes, expert)

    def _filled(
        self,
        layer: int,
        units: list[tuple[Unit, int]],
        norm: ReadNorm,
        biases: Mapping[str, Tensor],
    ) -> tuple[dict[str, Tensor], Tensor]:
        plain = self.plain.before[layer, "mlp"]
        rows = {part: self.noise.reading(norm, own, plain) for part, own in biases.items()}
        writes = self.noise.writing(COLUMNS)
        for unit, column in units:
            rows["gate"][column] = norm.row(unit.gate, float(biases["gate"][column]))
            rows["up"][column] = norm.row(unit.up, float(biases["up"][column]))
            writes[:, column] = unit.write
        return rows, writes

    def _norm(self, layer: int, part: Part, scale: float, gain: Tensor, bias: Tensor) -> ReadNorm:
        constant = self.frame.constant
        height = float(self.nominal.before[layer, part] @ constant)
        offset = self.circuit.offset(layer, part)
        return ReadNorm(scale, gain, bias, constant, height, offset)

    def _length(self, stream: Tensor) -> float:
        """Return what a norm divides such a stream by, noise included."""
        return self.circuit.length(stream) / D_MODEL**0.5

    def _write(self, module: str, layer: int, part: Part, writes: Tensor) -> None:
        """Set a writer; behind a norm its signals are scaled to arrive as they are."""
        place: Place = (layer, part)
        if self.has_post:
            name = "post_attention" if part == "attention" else "post_feedforward"
            self._set_norm(f"model.layers.{layer}.{name}_layernorm", self.gains[place])
            constant = self.frame.constant
            steady = (writes.T @ constant)[None] * constant[:, None]
            writes = (steady + self.kappa[place] * (writes - steady)) / self.gains[place][:, None]
        self._set(f"{module}.weight", writes)
        if self.design.has_biases:
            self._set(f"{module}.bias", self.circuit.constants[place])

    def _pre_norm(self, path: str) -> tuple[Tensor, Tensor]:
        gain, bias = self.noise.gain(), BIAS * self.noise.normal(D_MODEL)
        has_bias = self._set_norm(path, gain, bias)
        return gain, bias if has_bias else torch.zeros_like(bias)

    def _set_norm(self, path: str, gain: Tensor, bias: Tensor | None = None) -> bool:
        """Set the gain, and the bias where the norm has one; say whether it has."""
        self._set(f"{path}.weight", gain - float(self.has_post))
        has_bias = isinstance(self.module.get_submodule(path), nn.LayerNorm)
        if has_bias and bias is not None:
            self._set(f"{path}.bias", bias)
        return has_bias

    def _biases(self, module: str, count: int) -> Tensor:
        """Draw and set the biases of a reader, zeros where it has none."""
        if not self.design.has_biases:
            return torch.zeros(count, dtype=torch.float64)
        drawn = BIAS * self.noise.normal(count)
        self._set(f"{module}.bias", drawn)
        return drawn

    def _set(self, name: str, value: Tensor, expert: int | None = None) -> None:
        parameter = self.module.get_parameter(name)
        target = parameter.data if expert is None else parameter.data[expert]
        target.copy_(value)
