"""Units on a real Ray cluster of two nodes, one of which is killed."""

import json
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from obliteratus.errors import StorageError, UsageError
from obliteratus.studies.engines.ray import RayEngine
from obliteratus.studies.ledger import Entry, Ledger
from obliteratus.studies.placement import (
    PROGRAMS,
    USABLE,
    Accelerators,
    Needs,
    accelerators,
    gpus_for,
    needs,
    spread,
    too_much,
)
from obliteratus.studies.run import run_study
from obliteratus.studies.schema import Study
from obliteratus.studies.work import Runner, Work
from obliteratus.testing.refuser import tiny_settings

ray = pytest.importorskip("ray", reason="Ray comes with the dev extra (tests/QUARANTINES.md)")

UNITS = 40
# The workers cannot import a test: what is defined here travels to them as code.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


def fakes(log: str, seconds: float) -> Runner:
    """Make units that take a while and say on which node they ran."""

    def run(entry: Entry) -> dict[str, object]:
        import ray

        node = ray.get_runtime_context().get_node_id()
        with Path(log).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"unit": entry.id, "node": node}) + "\n")
        time.sleep(seconds)
        if entry.spec["number"] == 7:
            raise ValueError("seven")
        return {"node": node, "square": entry.spec["number"] ** 2}

    return run


def study(folder: Path, address: str, seconds: float = 0.25) -> Work:
    folder.mkdir()
    with Ledger(folder, create=True) as ledger:
        ledger.add([Entry(f"u{i:03d}", "fake", "none", {"number": i}) for i in range(UNITS)], {})
    runner = partial(fakes, str(folder / "log"), seconds)
    return Work(folder, runner, workers=2, address=address)


@pytest.fixture
def cluster(monkeypatch):
    """Two raylets on loopback with one processor each, the first of them the head."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_worker_niceness", "0")  # beside other tests nice ones would starve
    from ray.cluster_utils import Cluster

    options = {"num_cpus": 1, "object_store_memory": 80_000_000, "memory": 4_000_000_000}
    found = Cluster(initialize_head=True, head_node_args={**options, "include_dashboard": False})
    found.second = found.add_node(**options)
    found.wait_for_nodes()
    yield found
    ray.shutdown()
    found.shutdown()


@pytest.mark.filterwarnings("ignore")
def test_a_node_that_dies_loses_and_repeats_no_result(cluster, tmp_path):
    work = study(tmp_path / "study", cluster.address)

    def kill() -> None:
        log = work.folder / "log"
        while not log.exists() or len(nodes(log)) < 2:
            time.sleep(0.05)
        time.sleep(1.0)
        cluster.remove_node(cluster.second, allow_graceful=False)

    def nodes(log: Path) -> set[str]:
        return {json.loads(line)["node"] for line in log.read_text().splitlines()}

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    looks = []
    RayEngine().work_off(work, lambda: looks.append(time.monotonic()))
    killer.join()
    with Ledger(work.folder) as ledger:
        units = ledger.units()
        counts = ledger.counts()
    assert counts == {"waiting": 0, "running": 0, "finished": UNITS - 1, "failed": 1}
    assert [unit.error for unit in units if unit.state == "failed"] == ["ValueError: seven"]
    for unit in units:
        if unit.state == "finished":
            assert unit.result["square"] == unit.entry.spec["number"] ** 2
    assert len({unit.result["node"] for unit in units if unit.result}) == 2
    begun = Counter(
        json.loads(line)["unit"] for line in (work.folder / "log").read_text().splitlines()
    )
    again = [unit for unit, count in begun.items() if count > 1]
    deaths = sum(unit.deaths for unit in units)
    assert len(again) <= deaths <= 1  # a unit that was lost may not have begun
    assert len(looks) > 10


@pytest.mark.filterwarnings("ignore")
def test_a_study_runs_on_a_cluster_made_for_it(refuser, tmp_path):
    prompts = {name: str(refuser / f"{name}.jsonl") for name in ("harmful", "harmless")}
    small = Study.model_validate(
        {
            "name": "small",
            "models": [str(refuser)],
            "ablations": [{"part": "layer", "by": "zero"}],
            "metrics": ["log_odds_harmful"],
            "common": {"prompts": prompts},
        }
    )
    done = run_study(small, tmp_path / "ray", engine="ray", workers=1)
    assert done.pace.counts["finished"] == len(done.units)
    alone = run_study(small, tmp_path / "local", workers=1)
    rows = [[unit.result["rows"] for unit in each.units] for each in (done, alone)]
    assert rows[0] == rows[1]


class TwoNodes:
    """A cluster of which one node is dead."""

    @staticmethod
    def nodes():
        return [
            {"Alive": True, "Resources": {"memory": 16e9, "GPU": 2.0}},
            {"Alive": False, "Resources": {"memory": 900e9, "GPU": 8.0}},
        ]


def test_a_model_that_fits_on_no_node_is_refused_with_both_sizes():
    none = Accelerators()
    assert too_much(TwoNodes, Needs(1.0, 0, 15_000_000_000), none) is None
    said = too_much(TwoNodes, Needs(1.0, 0, 800_000_000_000), none)
    assert "800.0 GB" in said
    assert "16.0 GB" in said


def test_a_model_that_needs_more_gpus_than_a_node_has_is_refused():
    gpus = Accelerators(2, 80_000_000_000)
    assert too_much(TwoNodes, Needs(1.0, 2, 1, 140_000_000_000), gpus) is None
    said = too_much(TwoNodes, Needs(1.0, 3, 1, 160_000_000_000), gpus)
    assert "3 GPUs of 80.0 GB" in said
    assert "no node has more than 2" in said


@pytest.mark.parametrize(
    ("size", "memory", "count"),
    [(1e9, 80e9, 1), (70e9, 80e9, 1), (72e9, 80e9, 2), (141e9, 80e9, 2), (145e9, 80e9, 3)],
)
def test_a_model_gets_as_few_gpus_as_hold_it(size, memory, count):
    assert gpus_for(int(size), int(memory)) == count


def spec_of(refuser, **model):
    settings = tiny_settings(refuser, "basic").model_dump(mode="json")
    settings["model"] |= model
    return {"model": str(refuser), "settings": settings}


def test_gpus_are_asked_for_by_need_and_by_the_device_map(refuser):
    total = {"CPU": 8.0}
    plenty = needs(total, 2, spec_of(refuser), Accelerators(4, 80_000_000_000))
    assert (plenty.gpus, plenty.cpus) == (1, 4.0)
    narrow = Accelerators(4, int((PROGRAMS + plenty.model / 2.5) / USABLE))
    assert needs(total, 2, spec_of(refuser), narrow).gpus == 3
    assert needs(total, 2, spec_of(refuser, device_map="auto"), narrow).gpus == 3
    assert needs(total, 2, spec_of(refuser, device_map="cuda:0"), narrow).gpus == 1
    assert needs(total, 2, spec_of(refuser, device_map="cpu"), narrow).gpus == 0
    wide = needs(total, 2, spec_of(refuser, dtype="float32"), narrow)
    assert wide.gpus > 3
    assert wide.model > plenty.model
    none = needs(total, 2, spec_of(refuser), Accelerators(4, 0))
    assert (none.gpus, none.memory) == (0, PROGRAMS + none.model)


def test_a_model_is_spread_over_several_gpus_unless_its_place_is_named(refuser):
    assert spread(spec_of(refuser), 2)["settings"]["model"]["device_map"] == "auto"
    assert spread(spec_of(refuser), 1) == spec_of(refuser)
    named = spec_of(refuser, device_map="balanced")
    assert spread(named, 2) == named


def where() -> Runner:
    """Make units that say how many GPUs they have and where their model is to be."""

    def run(entry: Entry) -> dict[str, object]:
        import ray

        return {
            "gpus": len(ray.get_gpu_ids()),
            "device_map": entry.spec["settings"]["model"]["device_map"],
        }

    return run


@pytest.mark.filterwarnings("ignore")
def test_a_unit_gets_the_gpus_that_its_model_needs(refuser, tmp_path, monkeypatch):
    from obliteratus.studies.engines import ray as module

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    small = needs({}, 1, spec_of(refuser), Accelerators(4, 80_000_000_000)).model
    folder = tmp_path / "study"
    folder.mkdir()
    with Ledger(folder, create=True) as ledger:
        ledger.add([Entry("u", "fake", "model", spec_of(refuser))], {})
    ray.init(num_cpus=1, num_gpus=4, include_dashboard=False, log_to_driver=False)
    try:
        assert accelerators(ray) == Accelerators(4, 0)  # Ray says four and torch can use none
        memory = int((PROGRAMS + small / 2.5) / USABLE)
        monkeypatch.setattr(module, "accelerators", lambda _: Accelerators(4, memory))
        RayEngine().work_off(Work(folder, where, workers=1), lambda: None)
    finally:
        ray.shutdown()
    with Ledger(folder) as ledger:
        (unit,) = ledger.units()
    assert unit.error is None
    assert unit.result == {"gpus": 3, "device_map": "auto"}


@pytest.mark.filterwarnings("ignore")
def test_an_address_where_nobody_is(tmp_path):
    work = replace(study(tmp_path / "study", "x"), address="127.0.0.1:1")
    with pytest.raises(StorageError, match="no Ray cluster answers"):
        RayEngine().work_off(work, lambda: None)


def test_an_address_without_ray_is_refused(tmp_path):
    small = Study.model_validate({"name": "x", "models": ["m"], "methods": ["basic"]})
    with pytest.raises(UsageError, match="--address goes with --engine ray"):
        run_study(small, tmp_path / "x", address="auto")
