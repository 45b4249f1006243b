"""The part of a Ray task that runs a job on a node, and tells the sweep what becomes of it."""

from __future__ import annotations

import contextlib
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import ray

from om2p_data.storage import datasets_root, locked, make_namespaces, parse_id, replacing
from om2p_train import job_process
from om2p_train.parcels import Listing, Piece, Sender, put
from om2p_train.sweep import DataJob, Job, TrainJob

if TYPE_CHECKING:
    from ray import ObjectRef

T = TypeVar("T")

_LOOK_EVERY = 0.2  # seconds


@dataclass(frozen=True)
class Order:
    """What a task is to do.

    Attributes:
        job: with the paths that it has on shared storage; without such storage, those are left alone.
        log: where a shared log lies.
        threads: of the job.
        environment: variables of the job.
        fetch: seconds between two looks at what can be brought back; None where storage is shared.
        content_hash: of the data set that a run needs.
        recipe: text of the recipe that a run takes, where it is no bundled one.
    """

    job: Job
    log: Path
    threads: int
    environment: dict[str, str]
    fetch: float | None
    content_hash: str = ""
    recipe: str = ""


class Started(NamedTuple):
    """The node that took the job."""

    node: str


class Printed(NamedTuple):
    """More of what the job printed."""

    content: bytes


class Unfinished(NamedTuple):
    """Part of the folder from which another process would go on."""

    part: Piece | Listing


class Made(NamedTuple):
    """Part of a data set that is complete."""

    part: Piece | Listing


class Over(NamedTuple):
    """The exit code of the job."""

    code: int


# The pair is "unfit" and why this node can do none of the jobs; also a node without this package can send it.
Message = Started | Printed | Unfinished | Made | Over | tuple[str, str]


def work(
    order: Order, stop: Sequence[ObjectRef], data: Sequence[ObjectRef], before: Sequence[ObjectRef]
) -> Iterator[Message]:
    """Do a job.

    Args:
        order: the job and its circumstances.
        stop: one object, which is there when the job is to write its checkpoint and end.
        data: pieces of the data set that it needs.
        before: pieces of the folder that an earlier attempt left.
    """
    node = ray.util.get_node_ip_address()
    yield Started(node)
    if order.fetch is None:
        if not order.log.parent.is_dir():
            yield "unfit", f"node {node} does not see {order.log.parent}: without shared storage, take --storage fetch"
            return
        yield from _run(order, order.job, order.log, {}, stop, _Nothing())
        return
    with _scratch() as (shared, own):
        job, environment, folder = _placed(order, shared, own)
        for piece in before:
            put(folder, _got(piece))
        if isinstance(job, TrainJob):
            _receive_data(job.data, data)
        log = own / "log"
        yield from _run(order, job, log, environment, stop, _Bringing(log, folder, order.fetch, job))


class _Nothing:
    """Shared storage: there is nothing to bring."""

    def news(self, code: int | None = None) -> Iterator[Message]:
        yield from ()


class _Bringing:
    """No shared storage: what the job printed and left goes to the sweep."""

    def __init__(self, log: Path, folder: Path, every: float, job: Job):
        self._log, self._every, self._job = log, every, job
        self._printed = 0
        self._folder = Sender(folder)
        self._next = time.monotonic() + every

    def news(self, code: int | None = None) -> Iterator[Message]:
        """What is new at intervals; all of it once there is an exit code."""
        if code is None and time.monotonic() < self._next:
            return
        content = self._log.read_bytes()[self._printed :]
        if content:
            self._printed += len(content)
            yield Printed(content)
        if code == 0 and isinstance(self._job, DataJob):
            made = datasets_root(self._job.root) / self._job.dataset_id
            for part in Sender(made).read():
                yield Made(part)
        else:
            for part in self._folder.read():
                yield Unfinished(part)
        self._next = time.monotonic() + self._every


def _run(
    order: Order,
    job: Job,
    log: Path,
    environment: dict[str, str],
    stop: Sequence[ObjectRef],
    bringing: _Nothing | _Bringing,
) -> Iterator[Message]:
    # Killed with this process, for good: the next attempt may begin at once, and must find nobody at work.
    variables = order.environment | environment
    process = job_process.start(job, order.threads, log, variables, orphaned=signal.SIGKILL)
    asked = False
    try:
        while process.poll() is None:
            if asked:
                time.sleep(_LOOK_EVERY)
            elif aside(lambda: ray.wait(list(stop), timeout=_LOOK_EVERY))[0]:
                process.terminate()
                asked = True
            yield from bringing.news()
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
    yield from bringing.news(process.returncode)
    yield Over(process.returncode)


@contextlib.contextmanager
def _scratch() -> Iterator[tuple[Path, Path]]:
    """A folder of this node for all jobs of the sweep, and one in it for this attempt."""
    shared = scratch_folder()
    shared.mkdir(mode=0o700, exist_ok=True)
    own = Path(tempfile.mkdtemp(dir=shared))
    try:
        yield shared, own
    finally:
        shutil.rmtree(own, ignore_errors=True)


def scratch_folder() -> Path:
    """Where this node keeps what it works with, if no storage is shared."""
    context = ray.get_runtime_context()
    return Path(tempfile.gettempdir(), f"om2p-{context.get_node_id()}-{context.get_job_id()}")


def _placed(order: Order, shared: Path, own: Path) -> tuple[Job, dict[str, str], Path]:
    """The job in this node's folders, its environment, and the folder from which an attempt goes on."""
    job = order.job
    if isinstance(job, DataJob):
        return replace(job, root=own / "datasets"), {"OM2P_HOME": str(own / "home")}, own / "home"
    assert isinstance(job, TrainJob)
    data = replace(job.data, root=shared / "datasets" / order.content_hash)
    folder = own / "run"
    if order.recipe:
        recipe = own / Path(job.algorithm).name
        recipe.write_text(order.recipe, encoding="utf-8")
        job = replace(job, algorithm=str(recipe))
    return replace(job, folder=folder, data=data), {}, folder


def _receive_data(data: DataJob, pieces: Sequence[ObjectRef]) -> None:
    """The data set, once a node."""
    root = datasets_root(data.root)
    root.mkdir(parents=True, exist_ok=True)
    final = root / data.dataset_id
    with locked(root, wait=True):
        if final.exists():
            return
        make_namespaces(root, parse_id(data.dataset_id))
        with replacing(final) as partial:
            for piece in pieces:
                put(partial, _got(piece))


def aside(call: Callable[[], T]) -> T:
    """What a call returns that waits for Ray.

    A task that waits in its main thread gives its CPUs to the next one meanwhile, and soon all jobs would run at once.
    """
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(call).result()


def _got(piece: ObjectRef) -> Piece:
    found = aside(lambda: ray.get(piece))
    assert isinstance(found, Piece)
    return found
