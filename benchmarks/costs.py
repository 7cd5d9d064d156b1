"""What a stage costs on a machine, from a model's shape and a handful of measured constants.

A product of a matrix with ``rows`` rows takes parameters · (``read`` + ``rows`` · ``product``)
seconds: its numbers are read once and multiplied with each row. What stands between products moves
``moved`` bytes a row at ``memory`` bytes a second, and each operation costs ``dispatch`` seconds,
however small. A sum over n processes takes ``latency`` and 2 (n − 1) / n of its bytes at ``link``.
These follow one another. Of an edit on disk they do not: :func:`interleaved`.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import factorial


@dataclass(frozen=True)
class Latent:
    """Latent attention (DeepSeek-V2 and later): ranks of the two compressions, and head widths."""

    query: int
    key_value: int
    plain: int
    rotary: int
    value: int


@dataclass(frozen=True)
class Shape:
    """A model's sizes, in numbers.

    ``experts`` of ``expert_mlp`` (``active`` of them for each token, ``shared`` ones for all) stand
    in all blocks but the first ``dense``, which have an MLP of ``mlp``. The tensor plan of
    transformers splits MLPs, experts and the embedding, and attention unless it is ``latent``; the
    head stays whole in every process.
    """

    name: str
    layers: int
    width: int
    heads: int
    kv_heads: int
    head: int
    mlp: int
    vocabulary: int
    experts: int = 0
    active: int = 0
    shared: int = 0
    expert_mlp: int = 0
    dense: int = 0
    latent: Latent | None = None

    @property
    def attention(self) -> int:
        """Parameters of one block's attention."""
        if self.latent is None:
            return 2 * self.width * self.head * (self.heads + self.kv_heads)
        its = self.latent
        up = its.query * self.heads * (its.plain + its.rotary)
        down = self.width * (its.query + its.key_value + its.rotary)
        back = its.key_value * self.heads * (its.plain + its.value)
        return up + down + back + self.heads * its.value * self.width

    @property
    def routed(self) -> int:
        """Blocks with experts."""
        return self.layers - self.dense if self.experts else 0

    def mlp_of(self, experts: int) -> int:
        """Return the parameters of all MLPs, with this many experts a block beside the shared."""
        plain = 3 * self.width * self.mlp * (self.layers - self.routed)
        return plain + 3 * self.width * self.expert_mlp * (experts + self.shared) * self.routed

    @property
    def embedding(self) -> int:
        """Parameters of the embedding, and as many of the head."""
        return self.width * self.vocabulary

    @property
    def parameters(self) -> int:
        """All of them, but gains."""
        router = self.width * self.experts * self.routed
        return (
            2 * self.embedding + self.attention * self.layers + self.mlp_of(self.experts) + router
        )

    @property
    def written(self) -> int:
        """Parameters of the matrices that write into the stream; one in three of an MLP's."""
        output = self.heads * (self.head if self.latent is None else self.latent.value) * self.width
        return self.embedding + output * self.layers + self.mlp_of(self.experts) // 3

    @property
    def largest(self) -> int:
        """Parameters of the largest matrix that is edited whole (an embedding is not)."""
        output = self.heads * (self.head if self.latent is None else self.latent.value) * self.width
        plain = self.width * self.mlp if self.layers > self.routed else 0
        return max(output, plain, self.width * self.expert_mlp if self.routed else 0)

    def held(self, n: int) -> int:
        """Return the parameters that one of ``n`` processes holds under the tensor plan."""
        split = self.mlp_of(self.experts) + self.embedding
        whole = self.embedding + self.width * self.experts * self.routed
        attention = self.attention * self.layers
        return whole + split // n + (attention // n if self.latent is None else attention)

    def read(self, rows: int, n: int) -> int:
        """Return the parameters of the blocks that ``rows`` tokens make one of ``n`` read."""
        reached = (
            self.experts * (1 - (1 - self.active / self.experts) ** rows) if self.experts else 0
        )
        attention = self.attention * self.layers // (n if self.latent is None else 1)
        return attention + self.mlp_of(round(reached)) // n

    def multiplied(self, n: int) -> int:
        """Return the parameters of the blocks that one token is multiplied with in one of ``n``."""
        attention = self.attention * self.layers // (n if self.latent is None else 1)
        return attention + self.mlp_of(self.active) // n

    def sums(self) -> int:
        """Return how many sums over the processes one forward pass takes."""
        of_mlps = self.layers + (self.routed if self.shared else 0)
        return 1 + of_mlps + (self.layers if self.latent is None else 0)

    def moved(self, n: int) -> int:
        """Return the numbers that one token moves between products in one of ``n`` processes.

        Read and written by the operations of a transformers block of Llama's kind: two norms of 7
        passes over the width, two additions of 3, silu and its product 5 over the MLP, rotation 10
        over queries and keys, and the copies in and out of attention 4.
        """
        split = n if self.latent is None else 1
        heads = self.head * (self.heads + self.kv_heads) // split
        mlp = (self.mlp * (self.layers - self.routed)) // n
        mlp += self.expert_mlp * (self.active + self.shared) * self.routed // n
        return self.layers * (20 * self.width + 14 * heads) + 5 * mlp

    @property
    def alive(self) -> int:
        """The numbers of one token that are in memory at the peak of a batch, as PROBE counts."""
        return self.width * (12 + self.layers) + 4 * self.mlp

    def cached(self, n: int) -> int:
        """Return the numbers that one token leaves in the cache of one of ``n`` processes."""
        if self.latent is not None:
            return self.layers * (self.latent.key_value + self.latent.rotary)
        return 2 * self.layers * self.kv_heads * self.head // n


@dataclass(frozen=True)
class Machine:
    """One process of a run, in seconds and bytes; ``disk`` and what follows are of its machine.

    ``dispatch`` is per block and forward pass. ``disk`` is read and ``write`` written at; a core
    takes ``handle`` for a byte that is read and written again, and changes ``edit`` bytes in a
    second. An edit on disk has ``threads`` on ``cores``, and ``free`` bytes of memory.
    """

    name: str
    n: int
    number: int
    read: float
    product: float
    memory: float
    dispatch: float
    latency: float
    link: float
    disk: float
    write: float
    hash: float
    handle: float
    edit: float
    cores: int
    threads: int
    free: float
    room: float = 0.0


@dataclass(frozen=True)
class Cost:
    """Seconds by what takes them, bytes held by one process, bytes over the network and disk."""

    seconds: Mapping[str, float]
    memory: float = 0.0
    network: float = 0.0
    disk: float = 0.0

    @property
    def total(self) -> float:
        """All seconds: the terms follow one another."""
        return sum(self.seconds.values())

    @property
    def limit(self) -> str:
        """The largest term."""
        return max(self.seconds, key=lambda name: self.seconds[name])

    def __add__(self, other: "Cost") -> "Cost":
        seconds = Counter(self.seconds)
        seconds.update(other.seconds)
        return Cost(
            seconds,
            max(self.memory, other.memory),
            self.network + other.network,
            self.disk + other.disk,
        )

    def times(self, count: float) -> "Cost":
        """Return the cost of doing it ``count`` times."""
        seconds = {name: count * value for name, value in self.seconds.items()}
        return Cost(seconds, self.memory, count * self.network, count * self.disk)


def forward(
    shape: Shape, machine: Machine, rows: int, *, split: bool = True, heads: int = 0
) -> Cost:
    """Return one pass of ``rows`` tokens through the blocks, with ``heads`` rows of logits.

    ``split`` is tensor parallelism over the machine's processes; without it each has the whole.
    """
    n, size = (machine.n if split else 1), machine.number
    summed = shape.sums() * rows * shape.width * size if n > 1 else 0
    on_wire = 2 * (n - 1) / n * summed
    head = shape.embedding * (machine.read + heads * machine.product) if heads else 0.0
    seconds = {
        "read weights": shape.read(rows, n) * machine.read,
        "products": shape.multiplied(n) * rows * machine.product + head,
        "memory": shape.moved(n) * rows * size / machine.memory,
        "dispatch": shape.layers * machine.dispatch,
        "sums": (shape.sums() * machine.latency if n > 1 else 0) + on_wire / machine.link,
    }
    alive = rows * size * shape.alive
    return Cost(seconds, shape.held(n) * size + alive, network=on_wire)


def batch_that_fits(shape: Shape, machine: Machine, fastest: int) -> int:
    """Return the tokens of a batch: at most ``fastest``, and a quarter of the memory left."""
    left = machine.room - shape.held(machine.n) * machine.number
    return max(1, min(fastest, int(left / 4 / (shape.alive * machine.number))))


def probing(
    shape: Shape, machine: Machine, tokens: int, *, batch: int, prefix: int = 0, split: bool = True
) -> Cost:
    """Return PROBE over ``tokens`` tokens in batches of ``batch``, behind a ``prefix`` run once.

    Without ``split`` each process has the whole model and takes its share of the tokens.
    """
    own = tokens if split else -(-tokens // machine.n)
    whole, rest = divmod(own, batch)
    cost = forward(shape, machine, batch, split=split).times(whole) if whole else Cost({})
    for rows in (rest, prefix):
        cost += forward(shape, machine, rows, split=split) if rows else Cost({})
    return cost


def answering(
    shape: Shape, machine: Machine, prompts: int, tokens: int, *, prompt: int, batch: int, rows: int
) -> Cost:
    """Return greedy answers of ``tokens`` tokens to ``prompts`` of ``prompt`` tokens each.

    Prompts are read in batches of ``batch`` tokens and answered ``rows`` at a time.
    """
    rows = min(rows, prompts)
    step = forward(shape, machine, rows, heads=rows)
    cache = shape.cached(machine.n) * rows * (prompt + tokens) * machine.number
    reading = probing(shape, machine, prompts * prompt, batch=batch)
    whole = reading + step.times(tokens * prompts / rows)
    return Cost(whole.seconds, step.memory + cache, whole.network)


def summoning(shape: Shape, machine: Machine, *, hashed: bool = True) -> Cost:
    """Return SUMMON: the first process hashes the files, then each reads its part."""
    size = shape.parameters * machine.number
    seconds = {"disk": size / machine.disk, "hash": size / machine.hash if hashed else 0.0}
    return Cost(seconds, shape.held(machine.n) * machine.number, disk=size * (2 if hashed else 1))


def editing(size: float, changed: float, machine: Machine, *, largest: float, share: float) -> Cost:
    """Return EXCISE on disk of ``size`` bytes, of which ``changed`` change.

    Its threads take piece after piece: each waits until the disk has read one, edits it or lets the
    kernel copy it, and leaves it to be written (:func:`interleaved`). There are no more of them
    than matrices of ``largest`` bytes have room in ``share`` of the free memory: a bound, since
    smaller pieces need not wait.
    """
    disk = size / machine.disk + size / machine.write
    cores = changed / machine.edit + size * machine.handle
    threads = max(1, min(machine.threads, int(share * machine.free / largest)))
    together = interleaved(disk, cores, machine.cores, threads)
    limits = {"disk": disk, "cores": cores / min(machine.cores, threads)}
    longest = max(limits, key=lambda name: limits[name])
    waiting = together - limits[longest]
    return Cost({longest: limits[longest], "waiting": waiting}, disk=2 * size)


def interleaved(disk: float, cores: float, count: int, threads: int) -> float:
    """Return the seconds of work that ``threads`` do, each at the disk or at a core at a time.

    The disk is busy for ``disk`` seconds of it and ``count`` cores for ``cores`` together. One
    thread takes the sum, many take the longer of disk and cores / count; between them they wait for
    each other. That is a closed queueing network (Gordon and Newell, 1967), whose throughput is
    G(threads − 1) / G(threads), with G(n) the sum of disk^(n−k) · cores^k / β(k) over the k that
    are at the cores, β(k) = k! as long as each has a core, and count! · count^(k − count) beyond.
    """

    def waits(at_cores: int) -> float:
        served = min(at_cores, count)
        return factorial(served) * float(count) ** (at_cores - served)

    def states(n: int) -> float:
        return sum(disk ** (n - k) * cores**k / waits(k) for k in range(n + 1))

    return states(threads) / states(threads - 1)
