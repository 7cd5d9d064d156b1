"""What the ablation of refusal changes, in one report, and no number without its null.

The untouched model is held against itself with the selected direction out of every write, by hooks,
and with the same taken out along random directions (:mod:`obliteratus.analysis.turned`): effective
rank and debiased CKA of the stream at every layer, refusal log-odds, first-token KL, and the
likelihood of held-out text. Every change is held against what a further such null would bring
about. Coherence compares whole answers, hundreds of tokens for each prompt, direction and null:
VERIFY measures it, on the edited model.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float64
from scipy import stats

from obliteratus.analysis.bench import Bench
from obliteratus.analysis.beyond_random import NEGLIGIBLE
from obliteratus.analysis.findings import Findings
from obliteratus.analysis.geometry_change import debiased_cka, effective_rank, independent_rank
from obliteratus.analysis.intervening import selected
from obliteratus.analysis.module import ANALYSES, Analysis
from obliteratus.analysis.resampling import SIGNIFICANT, prediction_bound
from obliteratus.analysis.suite import Suite, measure_suite
from obliteratus.errors import MeasurementError
from obliteratus.measure.documents import select_text
from obliteratus.pictures.spec import Line, Panel, Picture
from obliteratus.statistics.bootstrap import bootstrap_mean
from obliteratus.statistics.estimate import Estimate, Verdict
from obliteratus.statistics.permutation import sign_flip

DOCUMENTS = 8
NEGLIGIBLE_KL, NEGLIGIBLE_NLL = 0.01, 0.005
"""Nats: a tenth of what VERIFY tolerates of an edited model (0.1, and 5 % of perplexity)."""
BLOCKS = 8
"""Blocks of prompts that the jackknife leaves out in turn: seven degrees of freedom."""
Statistic = Callable[[np.ndarray, np.ndarray], float]
LEFT_OUT = {
    "coherence": "it compares whole answers, which take long to generate for every random "
    "direction; obliteratus verify measures it on the edited model"
}


def evaluation_suite(suite: Suite, *, seed: int) -> Findings:
    """Return every change with its null; a verdict *supported* is a change beyond that.

    Raises:
        MeasurementError: too few prompts, documents or nulls, or (our bug) a number has no null.
    """
    layers = range(len(suite.layers))
    chance = _chance(suite, seed)
    estimates = {
        **behaviour_changes(suite, seed=seed),
        **stream_changes(suite, seed=seed),
        "effective_rank": _absolute_rank(suite, float(chance.mean()), seed),
    }
    missing = [name for name, each in estimates.items() if each.null is None]
    if missing:
        raise MeasurementError(f"{', '.join(missing)} would be reported without a null.")
    after = np.array([[effective_rank(each[:, n]) for n in layers] for each in suite.after])
    cka = np.array(
        [[debiased_cka(suite.before[:, n], each[:, n]) for n in layers] for each in suite.after]
    )
    return Findings(
        module="evaluation_suite",
        headline=_headline(estimates),
        estimates=estimates,
        arrays={
            "effective_rank": np.array([effective_rank(suite.before[:, n]) for n in layers]),
            "effective_rank_independent": chance,
            "effective_rank_ablated": after[0],
            "effective_rank_random": after[1:],
            "cka": cka[0],
            "cka_random": cka[1:],
        },
        facts={"layers": list(suite.layers), "left_out": LEFT_OUT},
    )


def behaviour_changes(suite: Suite, *, seed: int) -> dict[str, Estimate]:
    """Return the fall of refusal, the first-token KL, and the rise of the NLL of held-out text."""
    return {
        "refusal_fall": _mean_change(suite.fall, NEGLIGIBLE, seed),
        "first_token_kl": _mean_change(suite.kl, NEGLIGIBLE_KL, seed),
        "nll_rise": _mean_change(suite.nll, NEGLIGIBLE_NLL, seed),
    }


def stream_changes(suite: Suite, *, seed: int) -> dict[str, Estimate]:
    """Return what debiased CKA loses, and by how much the effective rank changes, over layers."""
    return {
        "cka_loss": _geometry(suite, _cka_loss, seed),
        "rank_change": _geometry(suite, _rank_change, seed),
    }


def _chance(suite: Suite, seed: int) -> Float64[np.ndarray, " layer"]:
    rng = np.random.default_rng(seed)
    layers = range(len(suite.layers))
    return np.array([independent_rank(suite.before[:, layer], rng) for layer in layers])


def _mean_change(
    values: Float64[np.ndarray, "vector unit"], negligible: float, seed: int
) -> Estimate:
    bound = prediction_bound(values[1:].mean(axis=1))
    test = sign_flip(values[0] - bound, seed=seed)
    found = bootstrap_mean(values[0], seed=seed)
    verdict: Verdict = "undetermined"
    if found.value > max(bound, negligible) and test.p_value < SIGNIFICANT:
        verdict = "supported"
    elif found.interval[1] < max(bound, negligible):
        verdict = "not_supported"
    return replace(found, null=bound, verdict=verdict)


def _cka_loss(before: np.ndarray, after: np.ndarray) -> float:
    layers = range(before.shape[1])
    return float(np.mean([1 - debiased_cka(before[:, n], after[:, n]) for n in layers]))


def _rank_change(before: np.ndarray, after: np.ndarray) -> float:
    """Return the mean relative size of the change, whichever way it goes."""
    layers = range(before.shape[1])
    pairs = [(effective_rank(before[:, n]), effective_rank(after[:, n])) for n in layers]
    return float(np.mean([abs(two - one) / max(one, 1e-12) for one, two in pairs]))


def _geometry(suite: Suite, statistic: Statistic, seed: int) -> Estimate:
    found = np.array([statistic(suite.before, after) for after in suite.after])
    bound = prediction_bound(found[1:])
    left = [
        statistic(suite.before[rows], suite.after[0][rows]) for rows in _blocks(suite.before, seed)
    ]
    low, high = _jackknife(float(found[0]), left)
    verdict: Verdict = "undetermined"
    if low > bound:
        verdict = "supported"
    elif high < bound:
        verdict = "not_supported"
    return Estimate(float(found[0]), (low, high), len(suite.before), bound, seed, verdict)


def _absolute_rank(suite: Suite, chance: float, seed: int) -> Estimate:
    """Return the mean effective rank of the untouched stream; supported below independence."""

    def mean(rows: np.ndarray) -> float:
        return float(np.mean([effective_rank(rows[:, n]) for n in range(rows.shape[1])]))

    value = mean(suite.before)
    low, high = _jackknife(value, [mean(suite.before[r]) for r in _blocks(suite.before, seed)])
    verdict: Verdict = "supported" if high < chance else "undetermined"
    return Estimate(value, (low, high), len(suite.before), chance, seed, verdict)


def _blocks(rows: np.ndarray, seed: int) -> list[np.ndarray]:
    """Return the prompts that are left when one block after the other is taken out."""
    order = np.random.default_rng(seed).permutation(len(rows))
    parts = np.array_split(order, min(BLOCKS, len(rows)))
    return [np.setdiff1d(order, part) for part in parts]


def _jackknife(value: float, left: Sequence[float]) -> tuple[float, float]:
    count = len(left)
    spread = float(np.sqrt((count - 1) * np.var(left)))
    reach = float(stats.t.ppf(0.975, count - 1)) * spread
    return value - reach, value + reach


def _headline(estimates: Mapping[str, Estimate]) -> str:
    words = {
        "refusal_fall": "refusal log-odds fall by",
        "first_token_kl": "first-token KL is",
        "nll_rise": "NLL per token rises by",
        "cka_loss": "debiased CKA loses",
    }
    parts = [
        f"{text} {estimates[name].value:.3g} (random below {estimates[name].null or 0.0:.3g})"
        for name, text in words.items()
    ]
    more = [name for name, each in estimates.items() if each.verdict == "supported"]
    beyond = [name.replace("_", " ") for name in more if name in words]
    said = ", ".join(beyond) if beyond else "nothing"
    return f"With the direction out, {'; '.join(parts)}. Beyond random directions: {said}."


def pictures(found: Findings) -> tuple[Picture, ...]:
    """Draw debiased CKA and effective rank at every layer, beside those of random directions."""
    arrays = found.arrays
    x = tuple(-1.0 if each == "embedding" else float(each) for each in found.facts["layers"])

    def random(name: str) -> list[Line]:
        return [
            Line("random" if row == 0 else "", x, tuple(each.tolist()), role="muted", dashed=True)
            for row, each in enumerate(arrays[name])
        ]

    alike = [*random("cka_random"), Line("the direction", x, tuple(arrays["cka"].tolist()))]
    rank = [
        *random("effective_rank_random"),
        Line("untouched", x, tuple(arrays["effective_rank"].tolist()), role="original"),
        Line("ablated", x, tuple(arrays["effective_rank_ablated"].tolist()), role="edited"),
        Line(
            "independent coordinates",
            x,
            tuple(arrays["effective_rank_independent"].tolist()),
            role="undetermined",
            dashed=True,
        ),
    ]
    return (
        Picture(
            "What the ablation does to the stream",
            "Above: debiased CKA of the stream with and without the direction, 1 where nothing "
            "changes. Below: effective rank, with that of coordinates dealt anew among prompts. −1 "
            "is the embedding.",
            (
                Panel(tuple(alike), "layer", "debiased CKA", zero=False, whole_x=True),
                Panel(tuple(rank), "layer", "effective rank", zero=False, whole_x=True),
            ),
        ),
    )


def _run(bench: Bench) -> Findings:
    layer, row = selected(bench.directions)
    texts = [document.text for document in select_text()[:DOCUMENTS]]
    return evaluation_suite(
        measure_suite(bench, row, layer, texts, seed=bench.seed), seed=bench.seed
    )


ANALYSES.register("evaluation_suite")(
    Analysis(
        title="Evaluation suite",
        question="What does taking the refusal direction out change besides refusal, and is it "
        "more than an equally large random ablation changes?",
        method="The direction is taken out of every write by hooks: effective rank and debiased "
        "CKA of the stream by layer, refusal log-odds, first-token KL, NLL of held-out text. "
        "Coherence needs whole answers and is left to verify.",
        null="what is taken out along r, taken out along 6 random directions instead (for refusal, "
        "6 random directions out): prediction bounds for a seventh; coordinates dealt anew among "
        "prompts for the effective rank",
        source="2405.01012 (debiased CKA), Roy and Vetterli 2007 (effective rank), 2406.11717",
        cost="16 forward passes of 32 harmful prompts, 16 of 32 harmless ones, 8 of 8 documents",
        run=_run,
        pictures=pictures,
    )
)
