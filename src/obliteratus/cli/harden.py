"""``obliteratus harden``: train refusal to be harder to remove, and measure that."""

from typing import Annotated

import typer

from obliteratus.cli import options
from obliteratus.cli.render import rendering

DEFAULT_RECIPE = "ablated-refusal"


def _recipe_names(incomplete: str) -> list[str]:
    from obliteratus.hardening.recipe import recipes

    return [recipe.name for recipe in recipes() if recipe.name.startswith(incomplete)]


def harden(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help=options.MODEL_HELP, show_default=False)
    ],
    *,
    recipe: Annotated[
        str,
        typer.Option(
            "--recipe",
            metavar="NAME",
            help="ablated-refusal, extended-refusal or plain-refusal (a control).",
            autocompletion=_recipe_names,
        ),
    ] = DEFAULT_RECIPE,
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
    judge: options.JudgeName = None,
    judge_model: options.JudgeModel = None,
    judge_url: options.JudgeUrl = None,
    capability: options.Capability = None,
    force: options.Force = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Train MODEL so that its refusal is harder to remove; measure what removing it costs.

    The cost is measured before and after: how many directions an attacker has to take out, what
    else that changes, and how long finding them takes. Finished stages are cached.
    """
    flags = options.settings(
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
        verify=options.section(
            judge=options.section(name=judge, model=judge_model, url=judge_url) or None,
            capability=options.split_names(capability),
        ),
    )
    stages = ("summon", "attack", "harden", "rebirth", "verify")
    with rendering(as_json=as_json, quiet=quiet, stages=stages, resumes=True) as screen:
        from obliteratus.cli.defence import run

        run(screen, model, recipe, assignments or [], flags, output, force=force)
