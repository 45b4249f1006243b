"""Collecting from anybody's environment with anybody's policy: seeded episodes, shards, several processes.

Every episode is a function of the seed and its own number, so it does not matter which process plays it or whether the
collection was interrupted. `python -m om2p_data.collection` is one of the processes.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.envs.registration import EnvSpec
from safetensors import SafetensorError
from safetensors.numpy import load_file
from safetensors.numpy import save as to_bytes
from tqdm import tqdm

from om2p_data import dataset
from om2p_data.collector import describe, write_collected
from om2p_data.episodes import Episodes
from om2p_data.errors import UserError
from om2p_data.playing import RANDOM, Player
from om2p_data.recording import EpisodeBuffer
from om2p_data.rollout import enough
from om2p_data.storage import locked, make_namespaces, parse_id, reason, write_whole

_STEPS_PER_SHARD = 2_000  # about: shards hold whole episodes, and as many as of the length of the first
_PLAN = "plan.json"


def collect(
    dataset_id: str,
    env: str,
    policy: str = RANDOM,
    *,
    transitions: int,
    seed: int = 0,
    max_steps: int | None = None,
    workers: int = 1,
    overwrite: bool = False,
    root: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> tuple[Path, Episodes]:
    """Play whole episodes of an environment with a policy and write them as a Minari data set.

    Interrupted, it leaves the finished shards, and the same call goes on from there.

    Args:
        dataset_id: `<namespace>/<task>/<tier>-v<N>`.
        env: `package.module:factory`, which called without arguments gives a PettingZoo environment.
        policy: `package.module:policy`, called as `policy(observations, rng)` with the observations of the agents that
            are there and a NumPy generator of the episode, gives their actions; a class is made first, and what it
            makes may have a method `reset()`, called before every episode. Or `random`.
        transitions: how many are wanted; the last episode is completed.
        seed: of environment and policy.
        max_steps: episodes are cut off after so many steps.
        workers: processes that play; the data do not depend on it.
        overwrite, root, progress: as in `dataset.write`.

    Returns:
        The data set's folder and its episodes.

    Raises:
        UserError: nothing at these names, an environment or policy that fails or breaks PettingZoo's rules, or what
            `dataset.write` refuses; the message says which episode and step.
    """
    if transitions < 1 or workers < 1:
        raise UserError(f"transitions and workers must be 1 or more, not {transitions} and {workers}")
    dataset.ensure_free(dataset_id, overwrite, root)
    parsed = parse_id(dataset_id)
    if not parsed.namespace:
        raise UserError(f"data set id {dataset_id!r} must read <namespace>/<task>/<tier>-v<N>")
    plan = {"env": env, "policy": policy, "seed": seed, "max_steps": max_steps}
    player = Player(env, policy, seed, max_steps)
    first = player.play(range(1))  # before anything is written: most mistakes show here
    plan["shard"] = max(1, min(_STEPS_PER_SHARD, transitions) // first.num_transitions)
    final = dataset.datasets_root(root) / dataset_id
    shards = final.with_name(f".{final.name}.collecting")
    try:
        make_namespaces(dataset.datasets_root(root), parsed)
        shards.mkdir(exist_ok=True)
        with locked(shards, wait=False):
            plan = _agreed(shards, plan)
            with _keeping(shards):
                episodes = _gather(shards, plan, player, transitions, workers, progress)
            summary, remade = f"{parsed.task} ({env})", _env_spec(parsed.task, env, max_steps)
            folder = write_collected(
                dataset_id,
                episodes,
                describe(dataset_id, player.spec, summary, max_steps, remade),
                policy=policy,
                seed=seed,
                collection={**plan, "transitions_requested": transitions},
                overwrite=overwrite,
                root=root,
                progress=progress,
            )
            shutil.rmtree(shards)
    except BlockingIOError as error:
        raise UserError(f"{dataset_id} is being collected by another process") from error
    except OSError as error:
        raise UserError(f"cannot collect in {shards}: {reason(error)}") from error
    return folder, episodes


def _gather(
    shards: Path, plan: dict[str, Any], player: Player, transitions: int, workers: int, progress: bool
) -> Episodes:
    """The first episodes that hold the wanted transitions, from shards that are there or are played now."""
    buffer, missing = EpisodeBuffer(transitions), transitions
    with tqdm(
        total=transitions, desc="collecting", unit="step", unit_scale=True, disable=None if progress else True
    ) as bar:
        for part in _shards(shards, plan, player, workers):
            if part.num_transitions > missing:
                part = part.select(np.arange(enough(part.lengths, missing)))
            buffer.add(part, 0)
            bar.update(part.num_transitions)
            missing -= part.num_transitions
            if missing <= 0:
                return buffer.episodes()
    raise AssertionError("shards never end")


def _shards(folder: Path, plan: dict[str, Any], player: Player, workers: int) -> Iterator[Episodes]:
    """All shards in order, without end."""
    index = 0
    if workers == 1:
        while True:
            yield _shard(folder, index) or _play_shard(folder, plan["shard"], index, player)
            index += 1
    processes = [_start(folder, plan) for _ in range(workers)]
    try:
        asked = 0
        while True:
            # Every process has a shard to play; the next in order is waited for.
            while asked < index + workers:
                if _shard(folder, asked) is None:
                    _say(processes[asked % workers], asked)
                asked += 1
            while (part := _shard(folder, index)) is None:
                _listen(processes[index % workers])
            yield part
            index += 1
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _shard(folder: Path, index: int) -> Episodes | None:
    path = _shard_path(folder, index)
    try:
        return Episodes.from_arrays(load_file(path)) if path.exists() else None
    except (SafetensorError, UserError) as error:
        raise UserError(f"{path} is damaged: delete it and give the same command again") from error


def _play_shard(folder: Path, size: int, index: int, player: Player) -> Episodes:
    """Play one shard of so many episodes and write it."""
    episodes = player.play(range(index * size, (index + 1) * size))
    # Not safetensors' own file writer: where the disk is full it raises no OSError.
    content = to_bytes(episodes.arrays())
    write_whole(_shard_path(folder, index), lambda path: path.write_bytes(content))
    return episodes


def _finished(folder: Path) -> bool:
    """Whether there is any shard."""
    return any(folder.glob("shard-*"))


def _shard_path(folder: Path, index: int) -> Path:
    return folder / f"shard-{index:06d}.safetensors"


def _agreed(shards: Path, plan: dict[str, Any]) -> dict[str, Any]:
    """The plan of the shards that are there, if it is this one but for their size; without any, this plan begins."""
    path = shards / _PLAN
    if not _finished(shards):
        write_whole(path, lambda temporary: temporary.write_text(json.dumps(plan), encoding="utf-8"))
        return plan
    try:
        found = dict(json.loads(path.read_text(encoding="utf-8")))
        size = int(found["shard"])
    except (OSError, ValueError, TypeError, LookupError) as error:
        raise UserError(f"{path} is missing or damaged: delete {shards}") from error
    wanted = plan | {"shard": size}
    for name, value in wanted.items():
        if found.get(name) != value:
            raise UserError(
                f"an interrupted collection with {name} = {found.get(name)!r} instead of {value!r} lies in "
                f"{shards}: finish it with its own settings, or delete that folder"
            )
    return wanted


@contextlib.contextmanager
def _keeping(shards: Path) -> Iterator[None]:
    """Where the block fails, finished shards stay and the error says so; without any, the folder goes."""
    try:
        yield
    except BaseException as error:
        if not _finished(shards):
            shutil.rmtree(shards, ignore_errors=True)
            raise
        kept = f"finished episodes are kept in {shards}, and the same command goes on from there"
        if isinstance(error, UserError):
            raise UserError(f"{error} ({kept})") from error
        if isinstance(error, KeyboardInterrupt):
            print(kept, file=sys.stderr)
        raise


def _env_spec(task: str, env: str, max_steps: int | None) -> EnvSpec:
    return EnvSpec(
        id=f"om2p/{task}-v0",
        entry_point="om2p_data.envs.adapters:FactoryTeam",
        kwargs={"factory": env, "max_steps": max_steps},
    )


def _start(folder: Path, plan: dict[str, Any]) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-m", "om2p_data.collection"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([path for path in sys.path if path] + [os.getcwd()])},
    )
    _say(process, {"folder": str(folder), "plan": plan})
    return process


def _say(process: subprocess.Popen, what: Any) -> None:
    assert process.stdin is not None
    process.stdin.write(json.dumps(what) + "\n")
    process.stdin.flush()


def _listen(process: subprocess.Popen) -> None:
    """Wait until a process has played a shard."""
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise UserError("a process that was collecting died")
    said = json.loads(line)
    if "error" in said:
        raise UserError(said["error"])


def _work() -> None:
    """What one of the processes does: play the shards that standard input names."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process is interrupted too, and ends the others
    answers, sys.stdout = sys.stdout, sys.stderr  # what the environment prints must not be taken for an answer
    told = json.loads(sys.stdin.readline())
    with contextlib.suppress(BrokenPipeError):  # the first process was killed
        try:
            size, folder = told["plan"].pop("shard"), Path(told["folder"])
            player = Player(**told["plan"])
            for line in sys.stdin:
                _play_shard(folder, size, json.loads(line), player)
                print(json.dumps({"played": json.loads(line)}), file=answers, flush=True)
        except (UserError, OSError) as error:
            print(
                json.dumps({"error": str(error) if isinstance(error, UserError) else reason(error)}),
                file=answers,
                flush=True,
            )


if __name__ == "__main__":
    _work()
