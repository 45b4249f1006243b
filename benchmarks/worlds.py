"""Steps a second of every world, bare and with a team's networks in the loop, beside the packages others use.

One step is a joint step of all agents of one copy. All figures of a table come from one run, in turns.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import RESULTS
from tqdm import tqdm

from om2p_data.behavior.policy import TeamActor
from om2p_data.envs import TASKS, Family, Task, find, make, parallel_env
from om2p_data.measuring import QUIET_POOLS, ensure_environment, measure_rates, print_table, write_results

PACKAGES = ("om2p", "numpy", "numba", "torch", "mujoco", "gymnasium", "gymnasium-robotics", "pettingzoo", "mpe2")
COPIES = {Family.PARTICLE: (64, 1024, 4096), Family.LOCOMOTION: (64, 256, 1024)}
TEAMS = {"64x64": (64, 64), "4x512": (512, 512, 512, 512)}

Loop = Callable[[], int]


@dataclass(frozen=True)
class Case:
    """One line of the table: `copies` of `task` in `package`, stepped by `threads`, acted for by `team`."""

    task: str
    package: str
    team: str
    copies: int
    threads: int


# ----------------------------------------------------------------------------------------------------------- ours


def our_loop(case: Case) -> Loop:
    """Steps of one of our vector worlds, about a millisecond or one step a call."""
    task = find(case.task)
    env = make(case.task, case.copies, seed=0, threads=case.threads)
    steps = max(1, 2000 // case.copies) if task.family is Family.PARTICLE else 1
    obs = env.reset()
    rng = np.random.default_rng(0)
    random_actions = rng.uniform(-1, 1, (case.copies, task.num_agents, task.act_dim)).astype(np.float32)
    team = TeamActor(task.num_agents, task.obs_dim, task.act_dim, TEAMS[case.team]) if case.team in TEAMS else None

    def loop() -> int:
        nonlocal obs
        torch.set_num_threads(case.threads)
        for _ in range(steps):
            obs, *_ = env.step(random_actions if team is None else team.act(obs, rng))
        return steps * case.copies

    return loop


# ---------------------------------------------------------------------------------------------------------- peers


def parallel_loop(build: Callable, steps: int = 25) -> Loop:
    """One copy of a PettingZoo parallel environment under fixed random actions."""
    env = build()
    env.reset(seed=0)
    actions = {agent: env.action_space(agent).sample() for agent in env.agents}

    def loop() -> int:
        for _ in range(steps):
            if not env.agents:
                env.reset()
            env.step(actions)
        return steps

    return loop


def gymnasium_loop(build: Callable, steps: int = 25) -> Loop:
    """One copy of a Gymnasium environment under fixed random actions."""
    env = build()
    env.reset(seed=0)
    action = env.action_space.sample()

    def loop() -> int:
        for _ in range(steps):
            _, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                env.reset()
        return steps

    return loop


def ceiling_loop(scenario: str, copies: int, threads: int, steps: int = 5) -> Loop:
    """MuJoCo's own C threads with no Python between the steps and nothing read: what a closed loop can hope for."""
    import gymnasium
    import mujoco.batch

    env: Any = gymnasium.make(f"{scenario}-v5").unwrapped
    batch = mujoco.batch.Batch(env.model, copies, threads)
    batch.bind("ctrl")[:] = np.random.default_rng(0).uniform(-1, 1, (copies, env.model.nu))

    def loop() -> int:
        batch.step(nstep=env.frame_skip * steps)
        return steps * copies

    return loop


def peer_loops(task: Task) -> dict[str, Callable[[], Loop]]:
    """The nearest worlds that other packages offer; the first is what the ratios refer to."""
    if task.family is Family.LOCOMOTION:
        import gymnasium
        from gymnasium_robotics import mamujoco_v1

        split = task.name.rpartition("-")[2]
        own_joints = {"agent_obsk": 0, "global_categories": ()} if task.name == "halfcheetah-2x3" else {}
        return {
            "gymnasium-robotics": lambda: parallel_loop(
                partial(mamujoco_v1.parallel_env, task.scenario, split, **own_joints)
            ),
            "gymnasium": lambda: gymnasium_loop(partial(gymnasium.make, f"{task.scenario}-v5")),
        }
    from mpe2 import simple_spread_v3, simple_tag_v3, simple_world_comm_v3

    builds = {
        "simple_spread": lambda: simple_spread_v3.parallel_env(N=3, continuous_actions=True),
        "simple_tag": lambda: simple_tag_v3.parallel_env(num_good=1, num_adversaries=3, continuous_actions=True),
        "simple_world": lambda: simple_world_comm_v3.parallel_env(
            num_good=1, num_adversaries=3, continuous_actions=True
        ),
    }
    return {"mpe2": lambda: parallel_loop(builds[task.scenario])}


# ----------------------------------------------------------------------------------------------------------- main


def cases_of(task: Task, thread_counts: Sequence[int], teams: Sequence[str]) -> list[Case]:
    """Our lines of one task."""
    return [
        Case(task.alias, "om2p", team, copies, threads)
        for team in teams
        for copies in COPIES[task.family]
        for threads in thread_counts
    ]


def build_loops(cases: Sequence[Case]) -> dict[Case, Loop]:
    """One copy of each task of `cases` in the peers' packages and in ours, then `cases`."""
    loops: dict[Case, Loop] = {}
    # gymnasium's body files make MuJoCo warn and leave a log in the working directory.
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        warnings.simplefilter("ignore")
        for alias in dict.fromkeys(case.task for case in cases):
            for package, build in peer_loops(find(alias)).items():
                loops[Case(alias, package, "-", 1, 1)] = build()
            if find(alias).family is Family.LOCOMOTION:
                for threads in dict.fromkeys(case.threads for case in cases):
                    case = Case(alias, "mujoco, open loop in C", "-", 256, threads)
                    loops[case] = ceiling_loop(find(alias).scenario, case.copies, threads)
            loops[Case(alias, "om2p as PettingZoo", "-", 1, 1)] = parallel_loop(partial(parallel_env, alias))
    return loops | {case: our_loop(case) for case in cases}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    aliases = [task.alias for task in TASKS.values()]
    parser.add_argument("--worlds", nargs="+", choices=aliases, default=aliases, help="which worlds (default: all)")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2], help="thread counts (default: 1 2)")
    parser.add_argument("--wide", action="store_true", help="also with the papers' 4x512 networks")
    parser.add_argument("--repeats", type=int, default=7, help="measurements of each line (default: 7)")
    parser.add_argument("--seconds", type=float, default=0.25, help="length of one measurement (default: 0.25)")
    parser.add_argument("--output", type=Path, default=RESULTS / "worlds.json", help="result file")
    options = parser.parse_args()
    environment = ensure_environment(QUIET_POOLS)

    teams = ["-", "64x64", *(["4x512"] if options.wide else [])]
    cases = [case for alias in options.worlds for case in cases_of(find(alias), options.threads, teams)]
    loops = build_loops(cases)
    with tqdm(total=len(loops) * options.repeats, unit="run", leave=False) as progress:
        rates = measure_rates(loops, options.repeats, options.seconds, progress.update)

    reference = {alias: next(case for case in loops if case.task == alias) for alias in options.worlds}
    rows = [
        {
            "world": case.task,
            "package": case.package,
            "team": case.team,
            "copies": case.copies,
            "threads": case.threads,
            "steps/s": round(rate.median),
            "lowest": round(rate.low),
            "highest": round(rate.high),
            "steps/cpu s": round(rate.per_cpu_second),
            "ratio": round(rate.median / rates[reference[case.task]].median, 2),
            "cpu ratio": round(rate.per_cpu_second / rates[reference[case.task]].per_cpu_second, 2),
        }
        for alias in options.worlds
        for case, rate in rates.items()
        if case.task == alias
    ]
    print_table(rows)
    print("Medians of steps a second, and of steps a second of processor time; ratios to the first line of each world.")
    settings = {"repeats": options.repeats, "seconds": options.seconds, "environment": environment}
    write_results(options.output, rows, settings, *PACKAGES)


if __name__ == "__main__":
    main()
