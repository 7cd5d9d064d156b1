"""``obliteratus obliterate``: the main job, from a model's name to a verified edited model."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from obliteratus.cli import options
from obliteratus.cli.render import Screen, rendering
from obliteratus.cli.results import next_steps, show_report
from obliteratus.errors import UsageError

if TYPE_CHECKING:
    from obliteratus.settings import RunSettings

DEFAULT_METHOD = "advanced"


def _method_names(incomplete: str) -> list[str]:
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
            help=f"basic, advanced or aggressive; {DEFAULT_METHOD} if not given.",
            autocompletion=_method_names,
        ),
    ] = None,
    repeated: Annotated[
        Path | None,
        typer.Option("--from", metavar="RUN.JSON", help="Repeat the run that this file records."),
    ] = None,
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
    save_activations: options.SaveActivations = False,
    save_completions: options.SaveCompletions = False,
    force: options.Force = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Map how MODEL refuses, remove it, verify the result and save it to a folder.

    Finished stages are cached: the same command goes on where an interrupted one stopped.
    """
    flags = options.section(
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
        verify=options.section(save_completions=save_completions),
    )
    with rendering(as_json=as_json, quiet=quiet, resumes=True) as screen:
        name, settings = _what_to_do(model, method, repeated, assignments or [], flags)
        run(screen, name, output or default_output(name, settings.method), settings, force=force)


def run(screen: Screen, model: str, output: Path, settings: "RunSettings", *, force: bool) -> None:
    """Run the main job and show its report; ``demo`` does the same."""
    screen.title(f"{model} · {settings.method} · to {output}")
    from obliteratus.pipeline.obliterate import obliterate as run_stages

    result = run_stages(model, output, settings, force=force)
    show_report(screen, result.report, seconds=result.seconds)
    screen.say(next_steps(result.folder))
    screen.path(result.folder)
    screen.result(
        "obliterate",
        {
            "folder": str(result.folder),
            "seconds": result.seconds,
            "report": result.report.as_json(),
        },
    )


def default_output(model: str, method: str) -> Path:
    """Return ``out/<last part of the model's name>-<method>``."""
    return Path("out") / f"{Path(model).name.removesuffix('.gguf')}-{method}"


def _what_to_do(
    model: str | None,
    method: str | None,
    repeated: Path | None,
    assignments: list[str],
    flags: dict[str, Any],
) -> tuple[str, "RunSettings"]:
    """Return the model's name and the settings, from the flags or from a recorded run."""
    from obliteratus.pipeline.methods import settings_for

    if repeated is None:
        if model is None:
            raise UsageError(
                "which model? Write `obliteratus obliterate MODEL`; `obliteratus models` lists the "
                "names that are known without a path."
            )
        return model, settings_for(method or DEFAULT_METHOD, assignments, flags)
    from obliteratus.pipeline.record import read_run

    if method is not None:
        raise UsageError(
            "--from repeats the method of the recorded run: leave --method out, or leave --from "
            "out and begin a new run."
        )
    recorded = read_run(repeated)
    base = options.merged(recorded.settings.model_dump(mode="json"), flags)
    return model or recorded.model, settings_for(recorded.settings.method, assignments, base)
