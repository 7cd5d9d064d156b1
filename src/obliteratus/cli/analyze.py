"""``obliteratus analyze``: how a model refuses, as findings and an atlas; nothing is edited."""

from typing import Annotated

import typer

from obliteratus.cli import options
from obliteratus.cli.render import rendering


def _module_names(incomplete: str) -> list[str]:
    from obliteratus.analysis.module import ANALYSES

    done, comma, last = incomplete.rpartition(",")
    return [f"{done}{comma}{name}" for name in ANALYSES if name.startswith(last)]


def analyze(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help=options.MODEL_HELP, show_default=False)
    ],
    *,
    modules: Annotated[
        str | None,
        typer.Option(
            "--modules",
            metavar="A,B",
            help="Only these analyses, with commas.",
            autocompletion=_module_names,
        ),
    ] = None,
    other: Annotated[
        str | None,
        typer.Option(
            "--other", metavar="MODEL", help="A second model: does the direction transfer to it?"
        ),
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
    output: options.Output = None,
    force: options.Force = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Ask how MODEL refuses, without editing it, and write what was found as an atlas.

    DIR gets atlas.html, findings.json with the arrays in findings.safetensors, and analysis.json.
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
        analyze=options.section(modules=options.split_names(modules), other=other),
    )
    with rendering(
        as_json=as_json,
        quiet=quiet,
        stages=("summon", "probe", "distill", "analyze"),
        resumes=True,
    ) as screen:
        from obliteratus.cli.atlas import run

        run(screen, model, assignments or [], flags, output, force=force)
