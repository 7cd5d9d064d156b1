"""``obliteratus obliterate``: the main job, from a model's name to a verified edited model."""

from pathlib import Path
from typing import Annotated

import typer

from obliteratus.cli import options
from obliteratus.cli.render import rendering
from obliteratus.errors import UsageError

DEFAULT_METHOD = "advanced"


def method_names(incomplete: str) -> list[str]:
    """Return the methods whose names begin with ``incomplete``, for the shell."""
    from obliteratus.pipeline.methods import methods

    return [method.name for method in methods() if method.name.startswith(incomplete)]


def obliterate(
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help=options.MODEL_HELP, show_default=False)
    ] = None,
    *,
    method: Annotated[
        str | None,
        typer.Option(
            "--method",
            "-m",
            metavar="NAME",
            help=f"basic, advanced, aggressive or tuned; {DEFAULT_METHOD} if not given.",
            autocompletion=method_names,
        ),
    ] = None,
    repeated: Annotated[
        Path | None,
        typer.Option("--from", metavar="RUN.JSON", help="Repeat the run that this file records."),
    ] = None,
    behaviour: options.BehaviourName = None,
    assignments: options.Assignments = None,
    seed: options.Seed = None,
    dtype: options.Dtype = None,
    device_map: options.DeviceMap = None,
    max_memory: options.MaxMemory = None,
    quantize: options.Quantize = None,
    revision: options.Revision = None,
    trust_remote_code: options.TrustRemoteCode = False,
    harmful: options.Harmful = None,
    harmless: options.Harmless = None,
    categories: options.Categories = None,
    system: options.System = None,
    stream: options.Stream = False,
    directions: options.DirectionsFile = None,
    plan: options.PlanFile = None,
    output: options.Output = None,
    save_activations: options.SaveActivations = False,
    save_completions: options.SaveCompletions = False,
    judge: options.JudgeName = None,
    judge_model: options.JudgeModel = None,
    judge_url: options.JudgeUrl = None,
    capability: options.Capability = None,
    force: options.Force = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    allow_leak: Annotated[
        bool,
        typer.Option(
            "--allow-leak",
            help="Go on where a proof finds something left, and report it.",
            metavar=options.NO_VALUE,
        ),
    ] = False,
    auto_regularize: Annotated[
        bool,
        typer.Option(
            "--auto-regularize",
            help="Edit at the largest strength whose KL and perplexity pass.",
            metavar=options.NO_VALUE,
        ),
    ] = False,
) -> None:
    """Map how MODEL refuses, remove it, verify the result and save it to a folder.

    Finished stages are cached: the same command goes on where an interrupted one stopped.
    """
    flags = options.settings(
        behaviour=behaviour,
        seed=seed,
        model=options.section(
            dtype=dtype,
            device_map=device_map,
            max_memory=max_memory,
            quantize=quantize,
            revision=revision,
            trust_remote_code=trust_remote_code,
        ),
        prompts=options.section(
            harmful=harmful,
            harmless=harmless,
            categories=options.split_names(categories),
            system=system,
        ),
        probe=options.section(save_activations=save_activations),
        edit=options.section(allow_leak=allow_leak, auto_regularize=auto_regularize),
        verify=options.section(
            save_completions=save_completions,
            judge=options.section(name=judge, model=judge_model, url=judge_url) or None,
            capability=options.split_names(capability),
        ),
    )
    with rendering(as_json=as_json, quiet=quiet, resumes=True) as screen:
        from obliteratus.cli.main_job import run, what_to_do

        job = what_to_do(model, method, repeated, assignments or [], flags)
        if stream:
            from obliteratus.cli.stream import check_flags
            from obliteratus.cli.stream import run as run_on_disk

            check_flags(flags, has_plan=plan is not None, given=method or assignments)
            run_on_disk(screen, job, output, directions=directions, plan=plan, force=force)
        elif directions is not None or plan is not None:
            raise UsageError("--directions and --plan go with --stream. Add it, or leave them out.")
        else:
            run(screen, job, output, force=force)
