"""How well a tuned lens predicts the model's answers on text it was not learned on."""

from dataclasses import replace

import numpy as np

from obliteratus.analysis.findings import Findings
from obliteratus.analysis.resampling import SIGNIFICANT, ends, weights
from obliteratus.analysis.tuned_lens import TunedLens
from obliteratus.pictures.spec import Line, Panel, Picture, Role
from obliteratus.statistics.claims import claim_above
from obliteratus.statistics.estimate import Estimate

NATS = 1e-6  # less is rounding


def with_lens(found: Findings, lens: TunedLens, *, seed: int) -> Findings:
    """Return ``found`` with the held-out KL of both lenses, and where tuning did not help.

    Intervals are over documents. A layer counts as better where that of the difference is above 0.
    """
    names, row = np.unique(lens.document, return_inverse=True)
    member = (np.arange(len(names))[:, None] == row).astype(float)
    drawn = weights(len(names), np.random.default_rng(seed)) @ member
    drawn /= drawn.sum(axis=1, keepdims=True)
    arrays: dict[str, np.ndarray] = {}
    for name, values in (("kl_logit", lens.plain), ("kl_tuned", lens.tuned)):
        arrays[name] = values.mean(axis=0)
        arrays[f"{name}_low"], arrays[f"{name}_high"] = ends(drawn @ values)
    saved = (lens.plain - lens.tuned)[:, :-1]
    low, _ = ends(drawn @ saved)
    layers = found.facts["layers"]
    worse = [layers[place] for place in np.flatnonzero(low <= NATS)]
    total = saved.mean(axis=1)
    value = float(total.mean())
    first, last = ends(drawn @ total)
    interval = (min(float(first), value), max(float(last), value))
    estimate = Estimate(value, interval, len(names), null=0.0, seed=seed)
    trained = [layers[place] for place, each in enumerate(lens.translators)
               if each is not None and each.trained]  # fmt: skip
    words = "The tuned lens reads the answers of other text better than the head alone"
    words = f"{words} at every layer." if not worse else (
        f"{words}, but not at {', '.join(map(str, worse))} ({1 - SIGNIFICANT:.0%} intervals)."
    )  # fmt: skip
    return replace(
        found,
        headline=f"{found.headline} {words}",
        estimates={**found.estimates, "kl_saved_by_tuning": claim_above(estimate, 0.0)},
        arrays={**found.arrays, **arrays},
        facts={**found.facts, "lens": "tuned", "tuned_not_better": worse, "trained": trained},
    )


def lens_picture(found: Findings) -> Picture:
    """Draw the held-out KL of both lenses by layer."""
    x = tuple(float(layer) for layer in range(-1, len(found.arrays["kl_tuned"]) - 1))

    def line(name: str, label: str, role: Role) -> Line:
        values, low, high = (
            tuple(found.arrays[f"{name}{end}"].tolist()) for end in ("", "_low", "_high")
        )
        return Line(label, x, values, low, high, role)

    lines = (line("kl_logit", "the head alone", "muted"), line("kl_tuned", "tuned", "edited"))
    return Picture(
        "How well each lens reads the answer",
        "Divergence of what the lens says at a layer from the model's answer, on neutral text that "
        "was not learned on; 95 % intervals over documents, −1 is the embedding.",
        (Panel(lines, "layer (block output)", "KL, nats", whole_x=True),),
    )
