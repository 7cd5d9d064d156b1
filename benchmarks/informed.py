"""Does what the analyses decide make a better edit? ``informed`` against ``advanced``, paired.

    python benchmarks/informed.py smollm2-refuser
    python benchmarks/informed.py planted-backup --seed 3 -o out/backup.md
    python benchmarks/informed.py qwen2.5-coder-0.5b --set verify.prompts=64

Both methods run on the same model with the same seed, cache and settings, and each saved folder is
measured against the original on the same test prompts, which neither has seen. The two edits are
then compared prompt by prompt: refusals by the exact McNemar test, log-odds, divergences and −log p
of held-out documents by a paired bootstrap and sign flips. A difference whose interval holds 0 is
none that this many prompts can show. Prints the decisions and a table; nothing that a model said is
kept. ``planted-VARIANT`` is a transformer of docs/design/ground-truth.md.
"""

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from obliteratus.events import Event, StageFinished, listening
from obliteratus.measure.divergence import first_token_kl, sequence_kl
from obliteratus.measure.head import Head, head_of
from obliteratus.measure.log_odds import RefusalTokens
from obliteratus.models.summon import summon
from obliteratus.pipeline.methods import settings_for
from obliteratus.pipeline.obliterate import obliterate
from obliteratus.pipeline.stages import Laboratory
from obliteratus.prompts.contrast import Splits
from obliteratus.prompts.load import contrast_set
from obliteratus.prompts.split import split
from obliteratus.release.save import RECORDS
from obliteratus.settings import RunSettings
from obliteratus.statistics.bootstrap import paired_bootstrap
from obliteratus.statistics.estimate import Estimate
from obliteratus.statistics.paired import mcnemar
from obliteratus.statistics.permutation import sign_flip
from obliteratus.store import Store
from obliteratus.testing.planted_transformer import planted, planted_folder
from obliteratus.verify.identity import weights_fingerprint
from obliteratus.verify.measure import measure_model
from obliteratus.verify.measurement import Measurement
from obliteratus.verify.records.decisions import DecisionMade
from obliteratus.verify.report import REPORT_FILE, load_report
from obliteratus.verify.sections import prompt_log_odds

METHODS = ("advanced", "informed")
PLANTED = "planted-"
PLANTED_PROMPTS = 384
"""Pairs of a planted model: 64 of them to report on."""
BASE = (
    "verify.random_controls=0",
    "verify.dose=false",
    "verify.over_refusal=0",
    "verify.coherence=false",
)
"""What is not compared is not measured; --set comes after and may ask for it."""
QUANTITIES = (
    ("refusal log-odds, harmful", "log_odds"),
    ("first-token KL, harmless (nats)", "kl_first"),
    ("KL along its answers (nats)", "kl_sequence"),
    ("−log p per token, held-out documents", "nll"),
)
OF_PLANTED = ("verify.max_new_tokens=8", "distill.max_kl=0.1", "verify.text_documents=20")


@dataclass(frozen=True)
class Edited:
    """One edit as it was measured: per-prompt values, its decisions, its minutes."""

    fingerprint: str
    refused: list[bool]
    log_odds: np.ndarray
    kl_first: np.ndarray
    kl_sequence: np.ndarray
    nll: np.ndarray
    decisions: tuple[DecisionMade, ...]
    seconds: float


@dataclass(frozen=True)
class Case:
    """What both edits are held against: the original, its test prompts and its refusal tokens."""

    splits: Splits
    original: Measurement
    head: Head
    tokens: RefusalTokens
    store: Store

    def measured(self, folder: Path, settings: RunSettings, seconds: float) -> Edited:
        """Measure the edited model in ``folder``, prompt by prompt."""
        edited = summon(str(folder), settings.model, store=self.store)
        found = measure_model(
            edited,
            self.splits.test,
            settings.verify,
            reference=self.original,
            system=settings.prompts.system,
            store=self.store,
        )
        own = head_of(edited)
        before, after = self.original, found
        along = sequence_kl(before.forced.states, self.head, after.forced.states, own)
        first = first_token_kl(before.first.harmless, self.head, after.first.harmless, own)
        return Edited(
            fingerprint=weights_fingerprint(edited),
            refused=found.harmful.are("refusal"),
            log_odds=prompt_log_odds(found.first.harmful, own, self.tokens).numpy(),
            kl_first=first.numpy(),
            kl_sequence=along.per_prompt().numpy(),
            nll=(found.heldout.nll / found.heldout.tokens).numpy(),
            decisions=load_report(folder / RECORDS / REPORT_FILE).decisions,
            seconds=seconds,
        )


def main(words: Sequence[str] | None = None) -> None:
    """Run both methods, compare them, and print the decisions and the table."""
    arguments = _arguments(words)
    with tempfile.TemporaryDirectory() as folder, listening(_tell):
        work = Path(folder)
        model, base = _model(arguments.model, work, arguments.seed)
        text = compared(model, arguments.model, [*base, *arguments.set], work, arguments.seed)
    print(text)
    if arguments.output is not None:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(text + "\n", encoding="utf-8")


def compared(model: str, name: str, assignments: Sequence[str], work: Path, seed: int) -> str:
    """Return the decisions and the table of both methods on ``model``, as Markdown."""
    store = Store()
    every = [f"seed={seed}", *BASE, *assignments]
    plain = settings_for("advanced", every)
    loaded = summon(model, plain.model, store=store)
    splits = split(contrast_set(plain.prompts))
    laboratory = Laboratory(loaded, splits, plain, store)
    activations, _ = laboratory.probed()
    tokens = laboratory.refusal_tokens(activations)
    assert tokens is not None, f"{name} has no first tokens that show refusal"
    original = measure_model(
        loaded, splits.test, plain.verify, system=plain.prompts.system, store=store
    )
    head = head_of(loaded)
    before = prompt_log_odds(original.first.harmful, head, tokens)
    refused = float(np.mean(original.harmful.are("refusal")))
    del loaded, laboratory, activations
    found: dict[str, Edited] = {}
    for method in METHODS:
        settings = settings_for(method, every)
        folder = work / method
        seconds = obliterate(model, folder, settings, store=store).seconds
        case = Case(splits, original, head, tokens, store)
        found[method] = case.measured(folder, settings, seconds)
    n = len(original.harmful.ids)
    heading = (
        f"### {name}\n\nSeed {seed}, {n} harmful and {len(original.harmless.ids)} harmless test "
        f"prompts, {plain.verify.max_new_tokens} new tokens. The original refuses {refused:.1%}, "
        f"refusal log-odds {before.mean():.2f}."
    )
    return "\n\n".join((heading, _decisions(found["informed"]), _table(found, seed)))


def _tell(event: Event) -> None:
    """Say on the error stream which stage has ended: a run takes minutes."""
    if isinstance(event, StageFinished):
        print(f"{event.stage} {event.seconds:.0f} s: {event.text}", file=sys.stderr, flush=True)


def _decisions(edited: Edited) -> str:
    if not edited.decisions:
        return "No decision was made."
    return "\n".join(f"- [{each.status}] {each.line}" for each in edited.decisions)


def _table(found: Mapping[str, Edited], seed: int) -> str:
    first, second = (found[method] for method in METHODS)
    turned = mcnemar(first.refused, second.refused)
    rows = [
        ("refused harmful prompts", *_shares(first, second), _shown(turned.effect), turned.p_value)
    ]
    for label, name in QUANTITIES:
        before, after = getattr(first, name), getattr(second, name)
        change = paired_bootstrap(before, after, seed=seed)
        p_value = sign_flip(after - before, seed=seed).p_value
        values = (f"{before.mean():.4f}", f"{after.mean():.4f}")
        rows.append((label, *values, _shown(change), p_value))
    same = first.fingerprint == second.fingerprint
    lines = [
        "| test prompts or documents | advanced | informed | informed − advanced (95 %) | p |",
        "|---|---|---|---|---|",
        *(f"| {a} | {b} | {c} | {d} | {p:.3g} |" for a, b, c, d, p in rows),
        f"| minutes, with what the cache held | {first.seconds / 60:.1f} "
        f"| {second.seconds / 60:.1f} | | |",
        "",
        f"The two edits are {'the same' if same else 'different'} weights.",
    ]
    return "\n".join(lines)


def _shares(*edits: Edited) -> tuple[str, ...]:
    return tuple(f"{sum(each.refused)} of {len(each.refused)}" for each in edits)


def _shown(estimate: Estimate) -> str:
    low, high = estimate.interval
    return f"{estimate.value:+.4f} ({low:+.4f} to {high:+.4f}), n = {estimate.n}"


def _model(name: str, work: Path, seed: int) -> tuple[str, list[str]]:
    """Return what to load, and what is set for it: a planted model is written first."""
    if not name.startswith(PLANTED):
        return name, []
    plant = planted(name.removeprefix(PLANTED), seed=seed)
    folder = planted_folder(work / "original", plant, prompts=PLANTED_PROMPTS)
    sides = ("harmful", "harmless")
    return str(folder), [*OF_PLANTED, *(f"prompts.{s}={folder / f'{s}.jsonl'}" for s in sides)]


def _arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path, help="write the Markdown here as well")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    return parser.parse_args(words)


if __name__ == "__main__":
    main()
