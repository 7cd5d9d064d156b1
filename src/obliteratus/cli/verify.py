"""``obliteratus verify``: measure two models with the same code and compare them."""

from typing import Annotated

import typer

from obliteratus.cli import options
from obliteratus.cli.render import rendering
from obliteratus.settings import settings_from, with_overrides


def verify(
    original: Annotated[
        str, typer.Argument(metavar="ORIGINAL", help=options.MODEL_HELP, show_default=False)
    ],
    edited: Annotated[
        str, typer.Argument(metavar="EDITED", help="The model made from it.", show_default=False)
    ],
    *,
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
    save_completions: options.SaveCompletions = False,
    force: options.Force = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Measure ORIGINAL and EDITED, any two models of one vocabulary, and compare them in pairs.

    With --output the report is written to DIR/report.json and DIR/report.html.
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
        verify=options.section(save_completions=save_completions),
    )
    with rendering(as_json=as_json, quiet=quiet, stages=("summon", "verify")) as screen:
        settings = settings_from(with_overrides(flags, assignments or []))
        screen.title(f"verify {edited} against {original}")
        from obliteratus.cli.results import show_report
        from obliteratus.store import Store, atomic_folder, check_target
        from obliteratus.verify.html import HTML_FILE, save_html
        from obliteratus.verify.report import REPORT_FILE, save_report
        from obliteratus.verify.verify import verify as compare

        if output is not None:
            check_target(output, replace=force)
        report = compare(
            original,
            edited,
            prompts=settings.prompts,
            settings=settings.verify,
            models=settings.model,
            seed=settings.seed,
            store=Store(),
        )
        if output is not None:
            with atomic_folder(output, replace=force) as work:
                save_report(report, work / REPORT_FILE)
                save_html(report, work / HTML_FILE)
        show_report(screen, report)
        if output is not None:
            screen.say(f" Written to {output}.")
            screen.path(output)
        screen.result("verify", {"report": report.model_dump(mode="json")})
