"""``obliteratus demo``: the main job on the small model that comes with the program."""

from pathlib import Path
from typing import Annotated

import typer

from obliteratus.cli import options
from obliteratus.cli.obliterate import DEFAULT_METHOD
from obliteratus.cli.render import rendering
from obliteratus.cli.tables import listing, pairs, paragraph

MODEL = "smollm2-refuser"
OUTPUT = Path("out/demo")
TEST_PROMPTS = 64  # of each class, half of them: measuring takes most of the time
SELECT_PROMPTS = 16  # of each class, half of what a run scores directions on
NO_DOSES = "verify.dose=false"  # up to nine more passes over prompts and documents
NO_OVER_REFUSAL = "verify.over_refusal=0"  # answers to 100 more prompts
NEW_TOKENS = 32  # of an answer, half of what a run reads: its refusals say so in a sentence
WHAT = (
    "This demo takes smollm2-refuser, a language model of 135 million parameters that was trained "
    "to refuse harmful requests, and goes through the six stages of a run:"
)
STEPS = (
    ("SUMMON", "load it (a download of about 90 MB the first time)"),
    ("PROBE", "read its activations on 512 harmful and 512 harmless prompts"),
    ("DISTILL", "find the direction along which it refuses"),
    ("EXCISE", "remove that direction from everything that writes to the residual stream"),
    ("REBIRTH", "save the edited model as an ordinary folder"),
    ("VERIFY", f"measure the original and the saved folder on {TEST_PROMPTS} test pairs"),
)
HOW_LONG = "It takes a few minutes on two CPU cores, and nothing is sent anywhere."
HOW_TO_READ = (
    "Every row compares the original with the edited model on prompts that were not used to find "
    "the direction. The edit worked where refusal falls and the answers are not degenerate; it did "
    "no other damage where divergence, perplexity and coherence stay within their bounds. "
    "Parentheses hold 95 % intervals, and p is corrected for the number of rows. Undetermined "
    "means that there were too few prompts to say."
)


def demo(
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="DIR", help="Folder to write to."),
    ] = OUTPUT,
    force: options.Force = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Run the main job on the small model that comes with the program, and explain it."""
    with rendering(as_json=as_json, quiet=quiet, resumes=True) as screen:
        screen.say(paragraph(WHAT), pairs(STEPS), paragraph(HOW_LONG))
        from obliteratus.cli.main_job import Job, run
        from obliteratus.pipeline.methods import settings_for

        smaller = (
            f"verify.prompts={TEST_PROMPTS}",
            f"verify.max_new_tokens={NEW_TOKENS}",
            f"distill.select_prompts={SELECT_PROMPTS}",
            NO_OVER_REFUSAL,
            NO_DOSES,
        )
        settings = settings_for(DEFAULT_METHOD, smaller)
        run(screen, Job(MODEL, settings), output, force=force, offers=False)
        screen.say(listing("How to read the report", "", []), paragraph(HOW_TO_READ))
