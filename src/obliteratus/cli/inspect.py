"""``obliteratus inspect``: what reads and writes a model's residual stream, and what it needs."""

from typing import Annotated

import typer

from obliteratus.cli import options
from obliteratus.cli.render import rendering
from obliteratus.cli.stage import stage

FILE = "anatomy.json"


def inspect(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help=options.MODEL_HELP, show_default=False)
    ],
    *,
    revision: options.Revision = None,
    trust_remote_code: options.TrustRemoteCode = False,
    output: options.Output = None,
    force: options.Force = False,
    as_json: options.Json = False,
) -> None:
    """Show what reads and writes MODEL's residual stream, and the memory that a run needs.

    The weights are not loaded. With --output the anatomy is written to DIR/anatomy.json.
    """
    flags = options.section(revision=revision, trust_remote_code=trust_remote_code)
    with rendering(as_json=as_json, stages=("summon",)) as screen:
        screen.title(f"inspect {model}")
        with stage("summon", f"read the configuration of {model}") as result:
            from obliteratus.cli import anatomy as view
            from obliteratus.cli.loading import load_outline, model_settings
            from obliteratus.models.describe import coverage, describe

            module = load_outline(model, model_settings(flags))
            anatomy = describe(module)
            share = coverage(module, anatomy)
            result.text = f"{anatomy.family}, {anatomy.n_layers} blocks, d_model {anatomy.d_model}"
        value = view.as_json(model, module, anatomy, share)
        if output is not None:
            view.write(output / FILE, value, force=force)
        view.show(screen, module, anatomy, share)
        if output is not None:
            screen.say(f" Written to {output / FILE}.")
        screen.result("inspect", value)
