"""Slurm's job script runs a study on a real cluster of one node, and is queued again in time."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pytest

import obliteratus
from obliteratus.studies.ledger import LEDGER_FILE, Ledger

SCRIPT = Path(__file__).parents[2] / "launch" / "slurm.sbatch"
DAEMONS = ("slurmctld", "slurmd")
PATHS = "/usr/sbin:/usr/bin:/sbin:/bin"
SECONDS = 600.0  # for anything here: a machine may be busy
SECONDS_TO_START = 120.0  # for the cluster: some containers do not let its daemons run
CONFIG = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={node}
SlurmUser=root
SlurmdUser=root
AuthType=auth/none
CredType=cred/none
MpiDefault=none
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/linear
JobAcctGatherType=jobacct_gather/none
ReturnToService=2
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""
STUDY = """\
name: lasting
ablations: [{part: head, by: zero}, {part: layer, by: zero}, {part: layer, by: mean},
            {part: mlp, by: zero}, {part: embedding, by: zero, ranges: 32}]
metrics: [log_odds_harmful, refusal_harmful]
"""


@dataclass(frozen=True)
class Cluster:
    """A controller and a node on loopback, with their files in ``folder``."""

    folder: Path

    def run(self, *words: str) -> str:
        environment = {**os.environ, "SLURM_CONF": str(self.folder / "slurm.conf")}
        environment["OBLITERATUS_PYTHON"] = str(self.folder / "python")
        done = subprocess.run(
            words, env=environment, capture_output=True, text=True, cwd=self.folder, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def submit(self, *words: str) -> str:
        return self.run("sbatch", "--parsable", str(SCRIPT), *words).strip()

    def facts(self, job: str) -> dict[str, str]:
        pairs = [word.partition("=") for word in self.run("scontrol", "show", "job", job).split()]
        return {name: value for name, _, value in pairs}

    def log(self, job: str) -> str:
        return (self.folder / f"obliteratus-{job}.log").read_text()


def until(is_so, what: str) -> None:
    deadline = time.monotonic() + SECONDS
    while not is_so():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def free_ports() -> tuple[int, int]:
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        return one.getsockname()[1], other.getsockname()[1]


@pytest.fixture
def cluster(tmp_path):
    programs = {name: shutil.which(name, path=PATHS) for name in (*DAEMONS, "sbatch")}
    if None in programs.values() or os.geteuid() != 0:
        pytest.skip("no Slurm here, or not root (tests/QUARANTINES.md)")
    for name in ("state", "spool"):
        (tmp_path / name).mkdir()
    controller, node = free_ports()
    host = socket.gethostname().partition(".")[0]
    words = {"host": host, "controller": controller, "node": node, "folder": tmp_path}
    config = tmp_path / "slurm.conf"
    config.write_text(CONFIG.format(**words, cpus=os.cpu_count()))
    python = tmp_path / "python"
    source = Path(obliteratus.__file__).parent.parent
    python.write_text(f'#!/bin/sh\nPYTHONPATH={source} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    environment = {**os.environ, "SLURM_CONF": str(config)}
    found, processes = Cluster(tmp_path), list[subprocess.Popen[bytes]]()
    with contextlib.ExitStack() as stack:
        for name in DAEMONS:
            log = stack.enter_context((tmp_path / f"{name}.out").open("w"))
            process = subprocess.Popen(
                [str(programs[name]), "-D"], env=environment, stdout=log, stderr=log
            )
            stack.callback(process.wait)
            stack.callback(process.terminate)
            processes.append(process)
        deadline = time.monotonic() + SECONDS_TO_START
        while not is_idle(found):
            if time.monotonic() > deadline or any(each.poll() is not None for each in processes):
                pytest.skip("Slurm does not start on this machine (tests/QUARANTINES.md)")
            time.sleep(0.1)
        yield found
        found.run("scancel", "--state=PENDING", "--user=root")
        found.run("scancel", "--state=RUNNING", "--user=root")
        until(lambda: not found.run("squeue", "-h").strip(), "a job does not end")


def is_idle(cluster: Cluster) -> bool:
    with contextlib.suppress(AssertionError):  # the controller is not there yet
        return "idle" in cluster.run("sinfo", "-h", "-o", "%T")
    return False


def finished(folder: Path) -> int:
    if not (folder / LEDGER_FILE).exists():
        return 0
    with Ledger(folder) as ledger:
        return ledger.counts()["finished"]


def test_a_study_that_runs_out_of_time_is_queued_again_and_goes_on(cluster, refuser, tmp_path):
    prompts = {name: refuser / f"{name}.jsonl" for name in ("harmful", "harmless")}
    study, out = tmp_path / "lasting.yaml", tmp_path / "out"
    common = ", ".join(f"{name}: {path}" for name, path in prompts.items())
    study.write_text(STUDY + f"common: {{prompts: {{{common}}}}}\n")
    job = cluster.submit("study", "run", str(study), str(refuser), "-o", str(out))
    until(lambda: finished(out) > 2, "no unit ends")
    cluster.run("scancel", "--signal=USR1", "--batch", job)  # what Slurm does before the limit
    until(lambda: cluster.facts(job)["JobState"] == "PENDING", "the job is not queued again")
    before = finished(out)
    with Ledger(out) as ledger:
        first = {unit.entry.id: unit.result for unit in ledger.units() if unit.result}
        total = len(ledger.units())
    assert 2 < before < total
    assert cluster.facts(job)["Restarts"] == "1"

    cluster.run("scontrol", "update", f"JobId={job}", "StartTime=now")  # it waits two minutes
    until(lambda: cluster.facts(job)["JobState"] == "COMPLETED", "the job does not complete")
    with Ledger(out) as ledger:
        units = ledger.units()
    assert Counter(unit.state for unit in units) == {"finished": total}
    assert {unit.entry.id: unit.result for unit in units if unit.entry.id in first} == first
    rows = duckdb.sql(f"SELECT count(DISTINCT unit) FROM '{out}/results.parquet'").fetchall()
    assert rows == [(total,)]


def test_a_command_that_fails_is_not_queued_again(cluster):
    job = cluster.submit("no-such-command")
    until(lambda: cluster.facts(job)["JobState"] == "FAILED", "the job does not fail")
    facts = cluster.facts(job)
    assert facts["Restarts"] == "0"
    assert facts["ExitCode"] != "0:0"
    assert "no-such-command" in cluster.log(job)


def test_no_command_at_all_is_refused():
    done = subprocess.run(["bash", str(SCRIPT)], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "which command?" in done.stderr
