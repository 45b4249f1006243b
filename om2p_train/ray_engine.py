"""Jobs as tasks of Ray, on this machine or on a cluster."""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import logging
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from om2p_data import metadata
from om2p_data.envs.vector import available_cores
from om2p_data.errors import UserError
from om2p_data.storage import datasets_root, make_namespaces, parse_id, reason, replacing
from om2p_train import config, job_process, run_folder
from om2p_train.engine import Began, Ended, Launcher
from om2p_train.parcels import Listing, Piece, Receiver, Sender
from om2p_train.sweep import DataJob, Job, TrainJob

try:
    import ray
    from ray.exceptions import NodeDiedError, RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
except ImportError:
    raise UserError("--engine ray needs the package ray: pip install 'om2p[ray]'") from None

from om2p_train import ray_node

_remote: Any = ray.remote  # whose types say less than it takes

_LOOK_EVERY = 0.1  # seconds
_COUNT_EVERY = 5.0  # seconds between two looks at the cluster's nodes
_PATIENCE = 60.0  # seconds without a node that can take a job
_ANSWERS_WITHIN = 5.0  # seconds
_HEALTH_WITHIN = 20.0  # seconds, most of them for the check to load


@dataclass(frozen=True)
class Share:
    """What each job takes of a cluster.

    Attributes:
        at_a_time: most jobs that are handed over; None for as many as there are.
        threads: CPUs of each job.
        gpus: of each run, of which several may share one; data sets need none.
        fetch: None where the nodes share this machine's storage, else the seconds between two looks at what unfinished
            jobs have written, which is brought here.
    """

    at_a_time: int | None
    threads: int
    gpus: float
    fetch: float | None


@dataclass
class _Running:
    job: Job
    log: Path
    messages: Any  # a generator of references to messages
    receivers: dict[type, Receiver]
    begun: bool = False
    code: int | None = None


@contextlib.contextmanager
def connected(address: str | None, share: Share) -> Iterator[RayLauncher]:
    """Join a cluster, or start Ray on this machine and end it with the block.

    Args:
        address: HOST:PORT of the cluster, or `auto` for the one that this machine belongs to; None starts Ray here.
        share: what each job takes.

    Raises:
        UserError: there is no such cluster, or it runs another Ray or Python.
    """
    if address is not None:
        _check_address(address)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    cpus = None if address is not None else available_cores()
    with contextlib.redirect_stdout(io.StringIO()):  # Ray says there when nodes come and go
        try:
            with _signals_kept():
                ray.init(
                    address=address or "local",
                    num_cpus=cpus,
                    log_to_driver=False,
                    logging_level=logging.CRITICAL,
                    include_dashboard=False,
                )
        except (RuntimeError, ValueError, OSError) as error:
            raise UserError(f"no Ray at {address or 'this machine'}: {' '.join(str(error).split())}") from error
        try:
            launcher = RayLauncher(share)
            try:
                yield launcher
            finally:
                launcher.tidy()
        finally:
            ray.shutdown()


class RayLauncher(Launcher):
    """Tasks of the cluster that this process has joined; where and when they run is Ray's choice."""

    def __init__(self, share: Share):
        self._share = share
        self._running: list[_Running] = []
        self._data: dict[str, list[Any]] = {}  # by content hash, references to the pieces of a data set
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        # Resident on this machine, so that the wish to stop is lost with nobody but the sweep itself.
        bell = _remote(num_cpus=0, max_restarts=-1, max_task_retries=-1, scheduling_strategy=here)(_Bell)
        self._bell = bell.remote()
        self._rung = self._bell.rung.remote()
        self._perform = _remote(max_retries=0, num_returns="streaming")(_by_value())
        self._counted = time.monotonic()
        self._able = self._counted  # when there was a node last that can take a run

    def has_room(self) -> bool:
        return self._share.at_a_time is None or len(self._running) < self._share.at_a_time

    def start(self, job: Job, log: Path) -> None:
        share = self._share
        gpus = share.gpus if isinstance(job, TrainJob) else 0.0
        if not _able_nodes(share.threads, gpus):
            raise UserError(_unable(share.threads, gpus))
        data, before = [], []
        receivers: dict[type, Receiver] = {}
        try:
            log.touch()
            if share.fetch is not None:
                unfinished = _unfinished(job, log)
                before = _handed_over(unfinished) if unfinished.is_dir() else []
                receivers = {ray_node.Unfinished: Receiver(unfinished, log.with_name(f".{job.name}.unfinished"))}
                if isinstance(job, TrainJob):
                    data = self._data_of(job.data)
                elif isinstance(job, DataJob):
                    staging = log.with_name(f".{job.name}.made")
                    receivers[ray_node.Made] = Receiver(staging, log.with_name(f".{job.name}.pieces"))
        except OSError as error:
            raise UserError(f"cannot start {job.name}: {reason(error)}") from error
        options = {"num_cpus": share.threads, "num_gpus": gpus, "name": job.name}
        order = pickle.dumps(self._order(job, log))  # unpacked only where this package is found to be the same
        version = importlib.metadata.version("om2p")
        messages = self._perform.options(**options).remote(version, order, [self._rung], data, before)
        self._running.append(_Running(job, log, messages, receivers))

    def look(self) -> list[Began | Ended]:
        self._count_nodes()
        if not self._running:
            time.sleep(_LOOK_EVERY)
            return []
        waited = [entry.messages for entry in self._running]
        ray.wait(waited, timeout=_LOOK_EVERY)
        ready, _ = ray.wait(waited, num_returns=len(waited), timeout=0)
        events = [self._next(entry) for entry in self._running if entry.messages in ready]
        return [event for event in events if event is not None]

    def stop(self) -> None:
        ray.get(self._bell.ring.remote())
        for entry in self._running:
            if not entry.begun:
                ray.cancel(entry.messages)
        while self._running:
            with contextlib.suppress(UserError):  # of a node where nothing has begun
                self.look()

    def tidy(self) -> None:
        """Remove what the nodes have kept for the jobs."""
        if self._share.fetch is None:
            return
        remove = _remote(num_cpus=0)(_remove_scratch)
        nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
        placed = [NodeAffinitySchedulingStrategy(node, soft=False) for node in nodes]
        ray.wait([remove.options(scheduling_strategy=at).remote() for at in placed], num_returns=len(nodes), timeout=10)

    def _next(self, entry: _Running) -> Began | Ended | None:
        """Take one message of a job."""
        try:
            message: Any = ray.get(next(entry.messages))
        except StopIteration:
            self._drop(entry)
            return Ended(entry.job, entry.code, "" if entry.code is None else job_process.ending(entry.code))
        except RayError as error:
            self._drop(entry)
            ray.cancel(entry.messages)  # nothing, unless the task is alive and only its message is lost
            return Ended(entry.job, None, _lost(error))
        return self._take(entry, message)

    def _drop(self, entry: _Running) -> None:
        self._running.remove(entry)
        for receiver in entry.receivers.values():
            receiver.close()

    def _take(self, entry: _Running, message: Any) -> Began | None:
        match message:
            case ray_node.Started(node):
                entry.begun = True
                return Began(entry.job, node)
            case ("unfit", why):
                raise UserError(why)
            case ray_node.Printed(content):
                with entry.log.open("ab") as file:
                    file.write(content)
            case ray_node.Unfinished(part) | ray_node.Made(part):
                self._receive(entry, type(message), part)
            case ray_node.Over(code):
                entry.code = code
        return None

    def _receive(self, entry: _Running, kind: type, part: Piece | Listing) -> None:
        job, receiver = entry.job, entry.receivers[kind]
        try:
            if isinstance(part, Piece):
                receiver.add(part)
            elif isinstance(job, TrainJob):
                with run_folder.claimed(job.folder):
                    receiver.finish(part)
            else:
                receiver.finish(part)
                if kind is ray_node.Made and isinstance(job, DataJob):
                    _put_in_place(job, receiver.folder)
                    shutil.rmtree(_unfinished(job, entry.log), ignore_errors=True)
        except OSError as error:
            raise UserError(f"cannot bring {job.name} here: {reason(error)}") from error

    def _order(self, job: Job, log: Path) -> ray_node.Order:
        share = self._share
        environment, content_hash, recipe = {}, "", ""
        if share.fetch is None and "OM2P_HOME" in os.environ:
            environment = {"OM2P_HOME": str(Path(os.environ["OM2P_HOME"]).expanduser().resolve())}
        if share.fetch is not None and isinstance(job, TrainJob):
            content_hash = _hash_of(job.data)
            if job.algorithm.endswith(".toml"):
                tables = {"name": config.name_of(job.algorithm), "scale": job.scale.value} | job.recipe
                recipe = run_folder.to_toml(tables)
        return ray_node.Order(
            _absolute(job), log.resolve(), share.threads, environment, share.fetch, content_hash, recipe
        )

    def _data_of(self, data: DataJob) -> list[Any]:
        """References to the pieces of a data set, which are handed to Ray once."""
        content_hash = _hash_of(data)
        if content_hash not in self._data:
            self._data[content_hash] = _handed_over(datasets_root(data.root) / data.dataset_id)
        return self._data[content_hash]

    def _count_nodes(self) -> None:
        """Give up where no node is left that could ever take what waits."""
        now = time.monotonic()
        if now - self._counted < _COUNT_EVERY:
            return
        self._counted = now
        waits = [entry.job for entry in self._running if not entry.begun]
        gpus = self._share.gpus if any(isinstance(job, TrainJob) for job in waits) else 0.0
        if not waits or _able_nodes(self._share.threads, gpus):
            self._able = now
        elif now - self._able > _PATIENCE:
            raise UserError(_unable(self._share.threads, gpus))


class _Bell:
    """Tells all tasks at once that they are to stop."""

    def __init__(self) -> None:
        import asyncio

        self._event = asyncio.Event()

    async def rung(self) -> None:
        await self._event.wait()

    async def ring(self) -> None:
        self._event.set()


def _by_value() -> Any:
    """What a task does, as a function that Ray sends as it is: a node without this package must be able to say so."""

    def perform(version: str, order: bytes, stop: list, data: list, before: list) -> Iterator[Any]:
        import importlib.metadata
        import pickle

        import ray

        node = ray.util.get_node_ip_address()
        try:
            found = importlib.metadata.version("om2p")
            from om2p_train import ray_node
        except ImportError as error:
            yield "unfit", f"node {node} cannot run om2p ({error}): install om2p {version} there"
            return
        if found != version:
            yield "unfit", f"node {node} has om2p {found}, and this machine {version}: install the same"
            return
        yield from ray_node.work(pickle.loads(order), stop, data, before)

    return perform


def _remove_scratch() -> None:
    shutil.rmtree(ray_node.scratch_folder(), ignore_errors=True)


def _check_address(address: str) -> None:
    """Ray itself would wait for minutes where nobody answers.

    Raises:
        UserError: no cluster can be there.
    """
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if not host or "/" in address or not port.isdecimal():
        raise UserError(f"--address takes HOST:PORT of a cluster's head, or auto, not {address!r}")
    try:
        socket.create_connection((host, int(port)), _ANSWERS_WITHIN).close()
    except (OSError, OverflowError) as error:
        raise UserError(f"no Ray cluster answers at {address}: {reason(error)}") from error
    check = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--skip-version-check", "--address", address]
    try:
        subprocess.run(check, check=True, capture_output=True, timeout=_HEALTH_WITHIN)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
        raise UserError(f"what answers at {address} is not the head of a Ray cluster") from None


@contextlib.contextmanager
def _signals_kept() -> Iterator[None]:
    """Ray sets handlers of its own, which would end the sweep without its checkpoints."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)


def _able_nodes(cpus: int, gpus: float) -> bool:
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return any(node.get("CPU", 0) >= cpus and node.get("GPU", 0) >= gpus for node in nodes)


def _unable(cpus: int, gpus: float) -> str:
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    there = ", ".join(f"{node.get('CPU', 0):g} and {node.get('GPU', 0):g}" for node in nodes)
    return f"a job takes {cpus} CPUs and {gpus:g} GPUs, which no node of the cluster has (they have {there})"


def _lost(error: RayError) -> str:
    """Why a task ended without an exit code."""
    if isinstance(error, NodeDiedError):
        return "its node died"
    cause = getattr(error, "cause", None)
    return f"its Ray worker failed: {type(error).__name__}" + (f": {reason(cause)}" if cause is not None else "")


def _absolute(job: Job) -> Job:
    """The job with paths that mean the same in any folder of any node."""
    if isinstance(job, DataJob):
        return replace(job, root=datasets_root(job.root).resolve())
    assert isinstance(job, TrainJob)
    data = replace(job.data, root=datasets_root(job.data.root).resolve())
    algorithm = str(Path(job.algorithm).resolve()) if job.algorithm.endswith(".toml") else job.algorithm
    return replace(job, folder=job.folder.resolve(), algorithm=algorithm, data=data)


def _unfinished(job: Job, log: Path) -> Path:
    """Where what a job goes on from is kept here."""
    return job.folder if isinstance(job, TrainJob) else log.with_suffix(".home")


def _hash_of(data: DataJob) -> str:
    folder = datasets_root(data.root) / data.dataset_id
    return str(metadata.read(folder, parse_id(data.dataset_id)).get("content_hash", ""))


def _handed_over(folder: Path) -> list[Any]:
    return [ray.put(part) for part in Sender(folder).read() if isinstance(part, Piece)]


def _put_in_place(job: DataJob, made: Path) -> None:
    """Let a data set that was brought here appear under its name."""
    root, parsed = datasets_root(job.root), parse_id(job.dataset_id)
    make_namespaces(root, parsed)
    with replacing(root / job.dataset_id) as partial:
        for path in made.iterdir():
            shutil.move(path, partial / path.name)
    made.rmdir()
