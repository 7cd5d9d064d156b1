"""``obliteratus verify``: two models measured by the same code, and what differs."""

from typing import Annotated

import typer

from obliteratus.cli import options
from obliteratus.cli.render import rendering


def verify(
    original: Annotated[
        str, typer.Argument(metavar="ORIGINAL", help=options.MODEL_HELP, show_default=False)
    ],
    edited: Annotated[
        str,
        typer.Argument(metavar="EDITED", help="The model made from it.", show_default=False),
    ],
    *,
    behaviour: options.BehaviourName = None,
    assignments: options.Assignments = None,
    seed: options.Seed = None,
    dtype: options.Dtype = None,
    device_map: options.DeviceMap = None,
    max_memory: options.MaxMemory = None,
    quantize: options.Quantize = None,
    parallel: options.Parallel = None,
    revision: options.Revision = None,
    trust_remote_code: options.TrustRemoteCode = False,
    harmful: options.Harmful = None,
    harmless: options.Harmless = None,
    categories: options.Categories = None,
    system: options.System = None,
    output: options.Output = None,
    save_completions: options.SaveCompletions = False,
    judge: options.JudgeName = None,
    judge_model: options.JudgeModel = None,
    judge_url: options.JudgeUrl = None,
    capability: options.Capability = None,
    force: options.Force = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Measure ORIGINAL and EDITED with the same code and compare them, whoever made the edit.

    With --output the report is written to DIR/report.json and DIR/report.html.
    """
    flags = options.settings(
        behaviour=behaviour,
        seed=seed,
        model=options.section(
            dtype=dtype,
            device_map=device_map,
            max_memory=max_memory,
            quantize=quantize,
            parallel=parallel,
            revision=revision,
            trust_remote_code=trust_remote_code,
        ),
        prompts=options.section(
            harmful=harmful,
            harmless=harmless,
            categories=options.split_names(categories),
            system=system,
        ),
        verify=options.section(
            save_completions=save_completions,
            judge=options.section(name=judge, model=judge_model, url=judge_url) or None,
            capability=options.split_names(capability),
        ),
    )
    with rendering(
        as_json=as_json, quiet=quiet, stages=("summon", "verify"), resumes=True
    ) as screen:
        from obliteratus.cli import comparison

        settings = comparison.settings_from_flags(flags, assignments or [])
        comparison.check_output(output, force=force)
        screen.title(f"{original} against {edited}")
        comparison.run(screen, original, edited, settings, output)
