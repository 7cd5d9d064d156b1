"""``obliteratus probe``: the directions of a behaviour as a file; nothing is edited."""

from typing import Annotated

import typer

from obliteratus.cli import options
from obliteratus.cli.obliterate import DEFAULT_METHOD, method_names
from obliteratus.cli.render import rendering


def probe(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help=options.MODEL_HELP, show_default=False)
    ],
    *,
    method: Annotated[
        str,
        typer.Option(
            "--method",
            "-m",
            metavar="NAME",
            help="The method of obliterate whose directions these are.",
            autocompletion=method_names,
        ),
    ] = DEFAULT_METHOD,
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
    save_activations: options.SaveActivations = False,
    force: options.Force = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Read MODEL's activations and write the directions along which obliterate would edit it.

    DIR gets directions.safetensors, for `obliterate --stream --directions`, and settings.json.
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
        probe=options.section(save_activations=save_activations),
    )
    stages = ("summon", "probe", "distill")
    with rendering(as_json=as_json, quiet=quiet, stages=stages, resumes=True) as screen:
        from obliteratus.cli.directions import run

        run(screen, model, method, assignments or [], flags, output, force=force)
