"""What the tests start in two processes: the program, or PROBE alone, with something broken."""

import sys
from pathlib import Path

from transformers.distributed.tensor_parallel import RowwiseParallel

from obliteratus.cli.main import main
from obliteratus.errors import MeasurementError
from obliteratus.models import summon as summoning
from obliteratus.models.summon import summon
from obliteratus.probe import capture
from obliteratus.probe.capture import probe
from obliteratus.probe.files import save_activations
from obliteratus.processes import is_first, leave
from obliteratus.prompts.contrast import ContrastSet, Prompt
from obliteratus.settings import ModelSettings
from obliteratus.testing.refuser import refuser_prompts


def read_prompts(model: str, parallel: str | None, output: Path) -> None:
    """Probe ``model`` on the prompts of the tiny refuser and save the activations."""
    harmful, harmless = (
        tuple(Prompt(f"{side}{index}", text) for index, text in enumerate(texts))
        for side, texts in zip("ab", refuser_prompts(), strict=True)
    )
    loaded = summon(model, ModelSettings.model_validate({"parallel": parallel}))
    found = probe(loaded, ContrastSet("refuser", harmful, harmless, is_paired=True))
    if is_first():
        save_activations(found, output)
    leave()


def leave_parts_unsummed() -> None:
    """Let every process keep its part of what a block writes."""
    RowwiseParallel.transform_output_post_forward = lambda _self, _module, output, _mesh: output


def fail_in_the_second(*_: object) -> None:
    """Stand in for a check that finds something in one process only."""
    if not is_first():
        raise MeasurementError("the second process has found something.")


if __name__ == "__main__":
    what, *arguments = sys.argv[1:]
    if what == "failing":
        capture._check_finite = fail_in_the_second
        sys.argv[1:] = arguments
        sys.exit(main())
    if what in {"unsummed", "unchecked"}:
        leave_parts_unsummed()
    if what == "unchecked":
        summoning.check_streams = lambda _: None
    read_prompts(arguments[0], arguments[1], Path(arguments[2]))
