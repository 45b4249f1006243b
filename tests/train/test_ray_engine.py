"""Sweeps on a real cluster of several Ray nodes: workers and nodes die in the middle, and nothing is lost."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from om2p_data.errors import UserError
from om2p_train import engine, run_folder, sweep
from om2p_train.parcels import Listing, Piece, Receiver, Sender
from om2p_train.sweep import State

ray = pytest.importorskip("ray")
cluster_utils = pytest.importorskip("ray.cluster_utils")

SWEEP = """
tasks = ["cn"]
tiers = ["random"]
algorithms = ["bc", "own.toml"]
seeds = [0, 1]
transitions = 500
settings = [
    "run.updates=8000", "run.evaluate_every=4000", "run.checkpoint_every=50", "run.evaluation_episodes=4",
    "network.hidden=[8]",
]
"""
OWN = 'base = "bc"\n[optimizer]\nbatch_size = 16\n'


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head that takes no jobs, and two nodes with a CPU each."""
    # Sockets lie in there, whose names are short by necessity: shorter than those of pytest's folders may be.
    with tempfile.TemporaryDirectory(prefix="ray-") as scratch, pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("TMPDIR", scratch)  # of the nodes
        made = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
        for _ in range(2):
            made.add_node(num_cpus=1)
        yield made
        made.shutdown()


# Ray's core writes of what it meets inside, past its Python side, on standard error.
RAYS_OWN = re.compile(r"^\[\d{4}-\d\d-\d\d [\d:,]+ [A-Z] \d+ \d+\] \S+\.cc:\d+: .*\n", re.MULTILINE)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    Path("own.toml").write_text(OWN)
    for name in ("whole", "mine"):
        Path(f"{name}.toml").write_text(SWEEP)
    return tmp_path


def begun(*words: str) -> subprocess.Popen:
    command = [sys.executable, "-c", "from om2p_cli.train import main; main()", "sweep", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(found: Callable[[], Any], seconds: float = 120.0) -> Any:
    end = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return value


class Found(NamedTuple):
    pid: int
    parent: int
    words: str


def processes() -> dict[int, Found]:
    listed = subprocess.run(["ps", "-eww", "-o", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
    rows = (line.split(None, 2) for line in listed.splitlines())
    return {int(pid): Found(int(pid), int(parent), words) for pid, parent, words in rows}


class Work(NamedTuple):
    """A run: its process, the worker of Ray that it is a child of, and the node of that."""

    run: Found
    worker: Found
    node: Any


def run_at_work(cluster: Any) -> Work | None:
    """A run on this cluster: other tests may have their own at the same time."""
    every = processes()
    nodes = {entry.process.pid: node for node in cluster.worker_nodes for entry in node.all_processes["raylet"]}
    for run in every.values():
        worker = every.get(run.parent)
        if " run --dataset om2p/cooperative-navigation/random-v0" in run.words and worker and worker.parent in nodes:
            return Work(run, worker, nodes[worker.parent])
    return None


def checkpoints(folder: str) -> list[Path]:
    return list(Path(folder).glob("*/checkpoint.safetensors"))


def contents(folder: Path) -> dict[str, bytes]:
    kept = ("evaluations.csv", "metrics.csv", "policies/seed0.safetensors", "policies/seed1.safetensors")
    return {str(path.relative_to(folder)): path.read_bytes() for name in kept for path in folder.glob(f"*/{name}")}


def whole() -> dict[str, bytes]:
    """What an undisturbed sweep leaves, computed on this machine without Ray."""
    process = begun("whole.toml", "--workers", "2", "--quiet", "--root", "elsewhere")
    assert process.wait(timeout=200) == 0
    return contents(Path("sweeps/whole"))


def resumed_at(folder: str) -> list[int]:
    facts = [run_folder.read_facts(path.parent) for path in Path(folder).glob("*/run.json")]
    return [entry["update"] for each in facts for entry in each["resumed"]]


def test_a_worker_and_a_node_die_and_nothing_is_lost_without_shared_storage(cluster, here):
    words = ["mine.toml", "--engine", "ray", "--address", cluster.address, "--storage", "fetch", "--fetch-every", "1"]
    process = begun(*words, "--retries", "4")
    try:
        wait_for(lambda: checkpoints("sweeps/mine") or process.poll() is not None)
        assert process.poll() is None, process.communicate()
        found = wait_for(lambda: run_at_work(cluster))
        assert "sweeps/mine" not in found.run.words  # it works in a folder of its node
        os.kill(found.worker.pid, signal.SIGKILL)
        wait_for(lambda: found.run.pid not in processes(), 10.0)  # it went along
        cluster.remove_node(wait_for(lambda: run_at_work(cluster)).node, allow_graceful=False)
        out, err = process.communicate(timeout=250)
    finally:
        process.kill()
    cluster.add_node(num_cpus=1)
    assert process.returncode == 0, err
    assert "its Ray worker failed: WorkerCrashedError" in err
    assert "its node died" in err
    assert "(raylet)" not in out + err
    assert "| own " in out
    assert any(update > 0 for update in resumed_at("sweeps/mine"))
    assert contents(Path("sweeps/mine")) == whole()
    assert not list(Path("sweeps/mine/logs").glob(".*"))
    assert "return" in Path("sweeps/mine/logs/data-cn-random.log").read_text()


def test_a_sweep_on_shared_storage_stops_and_goes_on(cluster, here):
    Path("mine.toml").write_text(SWEEP.replace('["bc", "own.toml"]', '["own.toml"]'))
    Path("whole.toml").write_text(Path("mine.toml").read_text())
    words = ["mine.toml", "--engine", "ray", "--address", cluster.address]
    process = begun(*words)
    wait_for(lambda: checkpoints("sweeps/mine") or process.poll() is not None)
    assert process.poll() is None, process.communicate()
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    again = f"--engine ray --address {cluster.address}"
    assert err.splitlines()[-1] == f"stopped; to go on: om2p-train sweep mine.toml --out sweeps/mine {again}"
    assert run_at_work(cluster) is None
    assert checkpoints("sweeps/mine")
    process = begun(*words, "--quiet")
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert not RAYS_OWN.sub("", err)
    assert "| own " in out
    assert any(update > 0 for update in resumed_at("sweeps/mine"))
    assert contents(Path("sweeps/mine")) == whole()


def refused(address: str | None, here: Path, threads: int = 1, gpus: float = 0.0) -> str:
    from om2p_train import ray_engine

    jobs = sweep.jobs(sweep.read(Path("mine.toml")), here / "out", here)
    share = ray_engine.Share(None, threads, gpus, None)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(UserError) as caught, ray_engine.connected(address, share) as launcher:
        engine.run(jobs, launcher, here / "out" / "logs", 0, lambda *_: None)
    assert signal.getsignal(signal.SIGTERM) is before
    assert not ray.is_initialized()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def hold(stop: list[Any], seconds: float) -> Iterator[float]:
    """A task that does nothing but wait, as that of a job does: when it began and when it ended."""
    began = time.time()
    yield began
    from om2p_train.ray_node import aside  # which takes seconds: it must not hide that another task begins

    while time.time() < began + seconds:
        aside(lambda: ray.wait(stop, timeout=0.2))
    yield time.time()


def test_a_job_that_waits_keeps_its_cpu(cluster):
    """Two CPUs and three tasks: two at a time. Where Ray gives a waiting task's CPU away, there are three."""
    from om2p_train.ray_engine import _Bell

    with ray.init(address=cluster.address, log_to_driver=False, logging_level="CRITICAL"):
        rung = ray.remote(num_cpus=0)(_Bell).remote().rung.remote()
        task = ray.remote(num_cpus=1, num_returns="streaming")(hold)
        spans = [[ray.get(when) for when in messages] for messages in [task.remote([rung], 9.0) for _ in range(3)]]
    assert max(sum(began <= start < end for began, end in spans) for start, _ in spans) == 2


def test_what_no_node_can_take_is_refused(cluster, here):
    assert "a job takes 7 CPUs and 0 GPUs, which no node of the cluster has" in refused(cluster.address, here, 7)


def test_a_node_with_another_version_is_named(cluster, here, tmp_path):
    facts = tmp_path / "path" / "om2p-0.0.9.dist-info" / "METADATA"
    facts.parent.mkdir(parents=True)
    facts.write_text("Metadata-Version: 2.1\nName: om2p\nVersion: 0.0.9\n")
    path = os.pathsep.join([str(facts.parents[1]), os.environ.get("PYTHONPATH", "")])
    node = cluster.add_node(num_cpus=3, env_vars={"PYTHONPATH": path})
    try:
        assert "has om2p 0.0.9, and this machine" in refused(cluster.address, here, 3)
    finally:
        cluster.remove_node(node, allow_graceful=False)


def test_addresses_where_no_cluster_is(here):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        port = other.getsockname()[1]
        assert f"no Ray cluster answers at 127.0.0.1:{port}: Connection refused" in refused(f"127.0.0.1:{port}", here)
    for address in ("ray://there:10001", "there", "there:"):
        assert "--address takes HOST:PORT of a cluster's head, or auto" in refused(address, here)


def sent(sender: Sender, receiver: Receiver) -> list[str]:
    parts = list(sender.read())
    for part in parts:
        receiver.finish(part) if isinstance(part, Listing) else receiver.add(part)
    return [part.name for part in parts if isinstance(part, Piece)]


def test_a_folder_is_brought_whole_and_only_what_changed(tmp_path, monkeypatch):
    monkeypatch.setattr("om2p_train.parcels._PIECE", 4)
    here, there = tmp_path / "here", tmp_path / "there"
    (here / "policies").mkdir(parents=True)
    for name in ("metrics.csv", "checkpoint.safetensors", "run.json", "policies/seed0.safetensors"):
        (here / name).write_text(f"of {name}")
    (here / ".run.json.partial").write_text("half")
    (here / "empty").touch()
    sender, receiver = Sender(here), Receiver(there, tmp_path / "staging")
    names = sent(sender, receiver)
    assert list(dict.fromkeys(names))[:2] == ["run.json", "checkpoint.safetensors"]
    shutil.rmtree(tmp_path / "staging", ignore_errors=True)
    (here / ".run.json.partial").unlink()
    assert {path.name: path.read_bytes() for path in there.rglob("*") if path.is_file()} == {
        path.name: path.read_bytes() for path in here.rglob("*") if path.is_file()
    }
    assert sent(sender, receiver) == []
    with (here / "metrics.csv").open("a") as file:
        file.write("x" * 9)
    (here / "empty").unlink()
    assert set(sent(sender, receiver)) == {"metrics.csv"}
    assert (there / "metrics.csv").read_text() == "of metrics.csv" + "x" * 9
    assert not (there / "empty").exists()


def test_pieces_without_their_listing_change_nothing(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "run.json").write_text("before")
    receiver = Receiver(tmp_path / "there", tmp_path / "staging")
    receiver.add(Piece("run.json", 0, b"after"))
    assert (tmp_path / "there" / "run.json").read_text() == "before"
    receiver.close()
    assert not (tmp_path / "staging").exists()


class Fickle(engine.Launcher):
    """Ends every job at once, with the codes given."""

    def __init__(self, codes: list[int | None]):
        self.codes, self.taken = codes, []

    def has_room(self) -> bool:
        return not self.taken

    def start(self, job: sweep.Job, log: Path) -> None:
        self.taken = [job]

    def look(self) -> list[engine.Began | engine.Ended]:
        if not self.taken:
            return []
        job = self.taken.pop()
        return [engine.Began(job, "there"), engine.Ended(job, self.codes.pop(0), "its node died")]

    def stop(self) -> None:
        pass


@pytest.mark.parametrize(
    ("codes", "failed", "left_out"), [([None, 0, 0, 0], 0, 0), ([None, None], 1, 2), ([2], 1, 2), ([0, 1, 0, 0], 0, 0)]
)
def test_lost_jobs_are_tried_again_and_bad_input_is_not(here, codes, failed, left_out):
    jobs = sweep.jobs(sweep.read(Path("mine.toml")), here / "out", here)
    launcher, told = Fickle(codes), []
    outcome = engine.run(jobs, launcher, here / "logs", 1, lambda job, what, seconds: told.append(what))
    assert (len(outcome.failed), len(outcome.left_out)) == (failed, left_out)
    assert launcher.codes == []
    assert told[0] == "begins on there"
    assert jobs[0].state() is State.WAITING
    assert set(outcome.failed.values()) <= {"its node died"}
