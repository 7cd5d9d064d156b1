"""The main job as a user runs it: minutes, peak memory and what the report says.

    python benchmarks/main_job.py qwen2.5-coder-0.5b --method advanced -o out/qwen

Peak memory is held against 1.3 x the weights + 1 GB, an untied head not counted. Run it once
before, so that the download and the conversion of the model are not part of what is measured;
--fresh gives the run an empty cache except for the models.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from obliteratus.store import default_root

MODEL_KINDS = ("wheel", "gguf", "merged", "file")  # cache entries that are models, not results


def main() -> None:
    """Run the job in a process of its own and print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--method", default="advanced")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--fresh", action="store_true", help="start without cached results")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        environment = dict(os.environ)
        if arguments.fresh:
            environment["OBLITERATUS_CACHE"] = str(_models_only(Path(folder)))
        command = [
            str(Path(sys.executable).with_name("obliteratus")),
            "obliterate",
            arguments.model,
            *("--method", arguments.method, "--output", str(arguments.output), "--force"),
            *(part for each in arguments.set for part in ("--set", each)),
        ]
        start = time.perf_counter()
        subprocess.run(command, check=True, env=environment)
        seconds = time.perf_counter() - start
    _print(arguments.output, seconds)


def _models_only(folder: Path) -> Path:
    """Fill ``folder`` with links to the cached models."""
    for entry in default_root().iterdir():
        if entry.name.split("-")[0] in MODEL_KINDS:
            (folder / entry.name).symlink_to(entry)
    return folder


def _print(output: Path, seconds: float) -> None:
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    weights = sum(file.stat().st_size for file in output.glob("*.safetensors"))
    receipt = json.loads((output / "obliteratus" / "receipt.json").read_text())
    weights -= receipt["untied_bytes"]
    limit = 1.3 * weights + 1e9 + receipt["untied_bytes"]
    run = json.loads((output / "obliteratus" / "run.json").read_text())
    report = json.loads((output / "obliteratus" / "report.json").read_text())
    print(f"\nwall clock            {seconds:8.1f} s")
    for stage, spent in run["seconds"].items():
        print(f"  {stage:<19} {spent:8.1f} s")
    print(f"weights               {weights / 1e9:8.2f} GB")
    print(f"peak memory           {peak / 1e9:8.2f} GB (limit {limit / 1e9:.2f} GB)")
    for claim in report["claims"]:
        estimate = claim["estimate"]
        low, high = estimate["interval"]
        print(
            f"{claim['key']:<21} {estimate['value']:8.4f} [{low:.4f}, {high:.4f}] "
            f"n={estimate['n']} {estimate['verdict']}"
        )


if __name__ == "__main__":
    main()
