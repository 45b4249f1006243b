"""Other people's environments: recorded as they were played, refused where they break the rules."""

from __future__ import annotations

import functools
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import minari
import numpy as np
import pytest
from gymnasium import spaces
from mpe2 import simple_speaker_listener_v4
from pettingzoo import ParallelEnv

from om2p_data import collection, dataset
from om2p_data.collector import Collector
from om2p_data.envs import parallel_env
from om2p_data.errors import UserError

ID = "lab/harvest/random-v0"
# A module of somebody else: a scout (discrete, leaves early), a tractor (continuous) and agent number 7.
GAMES = """
import time
import numpy as np
from gymnasium import spaces
from pettingzoo import ParallelEnv

class Harvest(ParallelEnv):
    metadata = {"name": "harvest"}
    def __init__(self, broken=None, endless=False, slow=0.0):
        self.possible_agents = ["scout", "big/tractor", 7]
        self.broken, self.endless, self.slow = broken, endless, slow
    def observation_space(self, agent):
        if agent == "scout":
            return spaces.Dict({"observation": spaces.Box(-9, 9, (2,)), "action_mask": spaces.Box(0, 1, (4,), np.int8)})
        return spaces.Box(-np.inf, np.inf, (3, 1) if agent == 7 else (5,))
    def action_space(self, agent):
        if agent == "scout":
            return spaces.Discrete(4, start=-1)
        return spaces.Box(-2.0, 1.0, (1,) if agent == 7 else (2,), np.float64)
    def see(self):
        every = {
            "scout": {"observation": self.rng.random(2), "action_mask": np.array([0, 1, 1, 0], np.int8)},
            "big/tractor": np.full(5, self.t),
            7: self.rng.random((3, 1)),
        }
        return {agent: every[agent] for agent in self.here}
    def reset(self, seed=None, options=None):
        self.rng = np.random.default_rng(seed)
        self.t, self.length = 0, 4 + int(self.rng.integers(3))
        self.agents = self.here = list(self.possible_agents)
        return self.see(), {agent: {} for agent in self.agents}
    def state(self):
        return np.array([self.t, self.length, 0.5])
    def step(self, actions):
        time.sleep(self.slow)
        assert set(actions) == set(self.agents)
        self.here = list(self.agents)
        self.t += 1
        if self.broken == "raise" and self.t == 2:
            raise RuntimeError("out of fuel")
        over = not self.endless and self.t == self.length
        terminations = {agent: over for agent in self.here}
        if self.t == 2 and "scout" in terminations:
            terminations["scout"] = True
        rewards = {agent: float(self.t) for agent in self.here}
        seen = self.see()
        self.agents = [agent for agent in self.here if not terminations[agent]]
        if self.broken == "nan":
            rewards[7] = float("nan")
        if self.broken == "missing":
            del seen["big/tractor"]
        if self.broken == "shape":
            seen["big/tractor"] = np.zeros(4)
        if self.broken == "infinite":
            seen["big/tractor"] = np.full(5, np.inf)
        if self.broken == "vanish":
            self.agents = [agent for agent in self.agents if agent != 7]
        if self.broken == "four":
            return seen, rewards, terminations, {}
        return seen, rewards, terminations, {agent: False for agent in self.here}, {agent: {} for agent in self.here}

class Crowd(Harvest):
    def step(self, actions):
        answer = super().step(actions)
        self.agents = [*self.agents, "newcomer"]
        return answer

class Eye(Harvest):
    def observation_space(self, agent):
        return spaces.Box(0, 255, (8, 8, 3), np.uint8)

class Free(Harvest):
    def action_space(self, agent):
        return spaces.Box(-np.inf, np.inf, (1,))

class Chooser:
    def reset(self):
        self.calls = 0
    def __call__(self, observations, rng):
        self.calls += 1
        actions = {"scout": 1, "big/tractor": np.array([self.calls / 10, -1.5]), 7: rng.uniform(-2, 1, 1)}
        return {agent: actions[agent] for agent in observations}

def too_far(observations, rng):
    return {agent: 2 if agent == "scout" else np.full(1 if agent == 7 else 2, 3.0) for agent in observations}

def silent(observations, rng):
    return {}

def crash(observations, rng):
    return 1 / 0

not_a_policy = 3
slow = lambda: Harvest(slow=0.01)
raising, nan, missing, shape, infinite, vanish, four = (
    (lambda name=name: Harvest(broken=name))
    for name in ("raise", "nan", "missing", "shape", "infinite", "vanish", "four")
)
endless = lambda: Harvest(endless=True)
nothing = lambda: object()
"""


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "somebodys_games.py").write_text(GAMES)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    sys.modules.pop("somebodys_games", None)
    return tmp_path / "datasets"


collect = functools.partial(collection.collect, ID, transitions=200, progress=False)


def test_a_collector_records_what_it_sees() -> None:
    from somebodys_games import Chooser, Harvest  # pyright: ignore[reportMissingImports]

    collector, policy, rng = Collector(Harvest()), Chooser(), np.random.default_rng(0)
    with pytest.raises(UserError, match="call reset"):
        collector.step({})
    lengths = []
    for seed in range(3):
        observations, _ = collector.reset(seed=seed)
        policy.reset()
        while collector.agents:
            observations, *_ = collector.step(policy({agent: observations[agent] for agent in collector.agents}, rng))
        lengths.append(collector.env.length)  # pyright: ignore[reportAttributeAccessIssue]
    collector.reset(seed=9)  # an episode that does not end is dropped
    collector.step({"scout": 0, "big/tractor": np.zeros(2), 7: np.zeros(1)})
    collector.write(ID, policy="chooser", progress=False)
    found = dataset.load(ID)
    spec, data = found.environment.spec, found.episodes
    assert spec.agents == ("scout", "big_tractor", "agent_7")
    assert (spec.obs_dims, spec.act_dims, spec.discrete) == ((6, 5, 3), (4, 2, 1), (True, False, False))
    assert data.lengths.tolist() == lengths
    assert data.seed.tolist() == [0, 1, 2]
    first = slice(0, lengths[0])
    assert data.actions[0, 0].tolist() == [0, 0, 1, 0]  # 1 of a space that starts at -1
    np.testing.assert_allclose(data.actions[first, 1, 0], np.arange(1, lengths[0] + 1) / 10, rtol=1e-6)
    assert data.obs[: lengths[0] + 1, 1, 0].tolist() == list(range(lengths[0] + 1))
    assert data.terminated[first, 0].nonzero()[0].tolist() == [1]
    assert not data.actions[2 : lengths[0], 0].any()
    assert data.obs[2, 0].any()  # the final observation of whoever leaves
    assert not data.obs[3, 0].any()
    assert data.rewards[first, 2].tolist() == list(range(1, lengths[0] + 1))
    assert data.rewards[2, 0] == 0
    assert data.state is not None
    assert data.state[: lengths[0] + 1, 0].tolist() == list(range(lengths[0] + 1))


def test_collected_data_are_a_function_of_the_seed_alone(root: Path) -> None:
    def hash_of(**settings) -> str:
        collect("somebodys_games:Harvest", "somebodys_games:Chooser", overwrite=True, **settings)
        return dataset.load(ID).metadata["content_hash"]

    one = hash_of(seed=3)
    assert hash_of(seed=3, workers=2) == one
    assert hash_of(seed=4) != one
    found = dataset.load(ID).episodes
    assert 200 <= found.num_transitions < 207
    assert len(set(found.seed)) == found.num_episodes
    assert not list(root.rglob(".*collecting*"))


def test_a_random_policy_keeps_to_the_mask_and_stock_minari_remakes_the_environment() -> None:
    collect("somebodys_games:Harvest", seed=1)
    stock = minari.load_dataset(ID)
    episode = stock[0]
    present = len(episode.actions["scout"][:2])
    assert set(np.concatenate([stock[i].actions["scout"][:present] for i in range(20)])) == {1, 2}
    env = stock.recover_environment()
    observations, _ = env.reset(seed=int(dataset.load(ID).episodes.seed[0]))
    np.testing.assert_array_equal(observations["agent_7"], episode.observations["agent_7"][0])
    assert env.observation_space == stock.observation_space
    for t in range(len(episode.rewards)):
        actions = {agent: episode.actions[agent][t] for agent in episode.actions}
        observations, reward, terminated, truncated, _ = env.step(actions)
        np.testing.assert_array_equal(observations["scout"], episode.observations["scout"][t + 1])
        assert reward == pytest.approx(episode.rewards[t])
        assert (terminated, truncated) == (episode.terminations[t], episode.truncations[t])


def test_public_environments() -> None:
    speaker = Collector(simple_speaker_listener_v4.parallel_env(max_cycles=5))
    ours = Collector(parallel_env("cn"))
    for collector, name in ((speaker, "speak"), (ours, "spread")):
        for seed in range(2):
            collector.reset(seed=seed)
            while collector.agents:
                collector.step({agent: collector.action_space(agent).sample() for agent in collector.agents})
        collector.write(f"lab/{name}/random-v0", progress=False)
    spoken, spread = dataset.load("lab/speak/random-v0"), dataset.load("lab/spread/random-v0")
    assert spoken.environment.spec.obs_dims == (3, 11)
    assert spoken.environment.spec.discrete == (True, True)
    assert spoken.episodes.lengths.tolist() == [5, 5]
    assert spoken.episodes.truncated[4].all()
    assert spread.episodes.lengths.tolist() == [25, 25]
    assert spread.environment.spec.state_dim == 18


def test_endless_environments_are_cut_off() -> None:
    collect("somebodys_games:endless", max_steps=12)
    data = dataset.load(ID).episodes
    assert set(data.lengths) == {12}
    assert data.truncated[11, 1:].all()
    assert not data.terminated[:, 1:].any()


@pytest.mark.parametrize(
    ("env", "policy", "message"),
    [
        ("somebodys_games", "random", "--env takes package.module:name, not 'somebodys_games'"),
        ("nowhere.at.all:x", "random", "--env nowhere.at.all:x cannot be imported: ModuleNotFoundError"),
        ("somebodys_games:Harvset", "random", "cannot be imported: AttributeError"),
        ("somebodys_games:nothing", "random", "object is no PettingZoo parallel environment"),
        ("somebodys_games:Harvest", "somebodys_games:not_a_policy", "is int, which cannot be called"),
        ("somebodys_games:Eye", "random", r"'scout' observes images \(8, 8, 3\)"),
        ("somebodys_games:Free", "random", "a random policy needs bounds"),
        (
            "somebodys_games:Harvest",
            "somebodys_games:too_far",
            r"episode 0, step 1: action array\(\[3., 3.\]\) of agent",
        ),
        ("somebodys_games:Harvest", "somebodys_games:silent", "step 1: actions hold nothing for agent 'scout'"),
        ("somebodys_games:Harvest", "somebodys_games:crash", r"the policy failed: ZeroDivisionError: .*line \d+"),
        ("somebodys_games:raising", "random", r"step\(\) failed: RuntimeError: out of fuel .*line \d+"),
        ("somebodys_games:nan", "random", "step 1: reward of agent 7 is nan"),
        ("somebodys_games:missing", "random", "step 1: observations hold nothing for agent 'big/tractor'"),
        ("somebodys_games:shape", "random", "step 1: observation of agent 'big/tractor' has 4 entries, not 5"),
        ("somebodys_games:infinite", "random", "step 1: observation of agent 'big/tractor' holds NaN or infinity"),
        ("somebodys_games:vanish", "random", "step 1: agent 7 vanished without being terminated"),
        ("somebodys_games:four", "random", r"step\(\) of the environment must return .* \(five\)"),
        ("somebodys_games:Crowd", "random", "step 1: agent 'newcomer' joined"),
    ],
)
def test_what_breaks_the_rules_is_one_line(env: str, policy: str, message: str, root: Path) -> None:
    with pytest.raises(UserError, match=message) as caught:
        collect(env, policy)
    assert "\n" not in str(caught.value)
    assert not list(root.rglob("*.hdf5"))


def test_what_a_process_finds_is_one_line_too() -> None:
    with pytest.raises(UserError, match=r"episode \d+, step 1: reward of agent 7 is nan") as caught:
        collect("somebodys_games:nan", workers=2)
    assert "\n" not in str(caught.value)


def test_a_killed_collection_goes_on(root: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-c",
        "from om2p_cli.data import main; main()",
        "collect",
        "--env",
        "somebodys_games:slow",
    ]
    command += ["--policy", "somebodys_games:Chooser", "--id", ID, "--transitions", "400", "--quiet"]
    child = subprocess.Popen(command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path)})
    shards = root / "lab" / "harvest" / ".random-v0.collecting"
    try:
        deadline = time.monotonic() + 60
        while not list(shards.glob("shard-*")):
            assert child.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert dataset.list_datasets() == []
    kept = {path: path.stat().st_mtime_ns for path in shards.glob("shard-*")}
    with pytest.raises(UserError, match="an interrupted collection with seed = 0 instead of 5"):
        collection.collect(
            ID, "somebodys_games:slow", "somebodys_games:Chooser", transitions=400, seed=5, progress=False
        )
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    subprocess.run(command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path)}, check=True)
    whole = dataset.load(ID).metadata["content_hash"]
    shutil.rmtree(root)
    collection.collect(ID, "somebodys_games:slow", "somebodys_games:Chooser", transitions=400, progress=False)
    assert dataset.load(ID).metadata["content_hash"] == whole


def test_nothing_to_write() -> None:
    collector = Collector(parallel_env("cn"))
    collector.reset(seed=0)
    with pytest.raises(UserError, match="no episode was completed"):
        collector.write(ID)


def test_spaces_that_cannot_be_stored() -> None:
    class Many(ParallelEnv):
        possible_agents = ["aa"]  # noqa: RUF012
        agents = ["aa"]  # noqa: RUF012
        metadata = {"name": "many"}  # noqa: RUF012

        def observation_space(self, agent):
            return spaces.Box(0, 1, (2,))

        def action_space(self, agent):
            return spaces.MultiDiscrete([2, 3])

        def reset(self, seed=None, options=None):
            return {"aa": np.zeros(2)}, {"aa": {}}

    with pytest.raises(UserError, match="'aa' acts in MultiDiscrete: only Box and Discrete"):
        Collector(Many()).reset(seed=0)
