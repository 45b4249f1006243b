"""Other people's environments: recorded as they were played, refused where they break the rules."""

from __future__ import annotations

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
from om2p_cli import data as command_line

from om2p_data import collection, dataset, playing
from om2p_data.collector import Collector
from om2p_data.conversion import action_converter, observation_vector
from om2p_data.envs import parallel_env
from om2p_data.errors import UserError
from om2p_data.validation.findings import Severity
from om2p_data.validation.run import validate

from .games import Chooser, Harvest, Late

ID = "lab/harvest/random-v0"
GAMES = "tests.data.games"


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    return tmp_path / "datasets"


def collect(env: str, policy: str = "random", *, transitions: int = 200, **settings) -> str:
    """Collect from our games -> content hash."""
    named = policy if policy == "random" else f"{GAMES}:{policy}"
    collection.collect(ID, f"{GAMES}:{env}", named, transitions=transitions, progress=False, **settings)
    return dataset.load(ID).metadata["content_hash"]


def test_a_collector_records_what_it_sees() -> None:
    collector, policy, rng = Collector(Harvest()), Chooser(), np.random.default_rng(0)
    with pytest.raises(UserError, match="call reset"):
        collector.step({})
    lengths = []
    for seed in range(3):
        observations, _ = collector.reset(seed=seed)
        policy.reset()
        while collector.agents:
            observations, *_ = collector.step(policy({agent: observations[agent] for agent in collector.agents}, rng))
        lengths.append(collector.length)  # the environment's own
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
    assert (found.policies[0].name, found.environment.summary) == ("chooser", "harvest")
    assert "pettingzoo" in found.metadata["collection"]["packages"]


def test_an_episode_with_an_error_is_dropped() -> None:
    collector = Collector(parallel_env("cn"))
    collector.reset(seed=0)
    with pytest.raises(UserError, match="no episode was completed"):
        collector.write(ID)
    wrong = {agent: np.full(2, 1.5) for agent in collector.agents}
    with pytest.raises(UserError, match=r"step 1: action .* of agent 'agent_0' is outside"):
        collector.step(wrong)
    with pytest.raises(UserError, match="the episode is over"):
        collector.step(wrong)


def test_collected_data_are_a_function_of_the_seed_alone(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = collect("Harvest", "Chooser", seed=4)
    one = collect("Harvest", "Chooser", seed=3, overwrite=True)
    assert one != other
    monkeypatch.setattr(collection, "_STEPS_PER_SHARD", 40)
    assert collect("Harvest", "Chooser", seed=3, workers=2, overwrite=True) == one
    found = dataset.load(ID).episodes
    assert 200 <= found.num_transitions < 207
    assert len(set(found.seed)) == found.num_episodes
    with pytest.raises(UserError, match=r"^episode \d+, step 1: reward of agent 7 is nan"):
        # Its first episode is sound where the plan is made, and not where the others are played.
        collection.collect(ID, f"{GAMES}:Late", transitions=600, workers=2, overwrite=True, progress=False)
    assert dataset.load(ID).metadata["content_hash"] == one


def test_a_random_policy_keeps_to_the_mask_and_stock_minari_remakes_the_environment() -> None:
    collect("Harvest", seed=1)
    stock = minari.load_dataset(ID)
    assert set(np.concatenate([episode.actions["scout"][:2] for episode in stock])) == {1, 2}
    env, episode = stock.recover_environment(), stock[0]
    assert env.observation_space == stock.observation_space
    assert env.action_space == stock.action_space
    observations, _ = env.reset(seed=int(dataset.load(ID).episodes.seed[0]))
    np.testing.assert_array_equal(observations["agent_7"], episode.observations["agent_7"][0])
    for t in range(len(episode.rewards)):
        actions = {agent: episode.actions[agent][t] for agent in episode.actions}
        observations, reward, terminated, truncated, _ = env.step(actions)
        for agent, seen in observations.items():
            np.testing.assert_array_equal(seen, episode.observations[agent][t + 1])
        assert reward == pytest.approx(episode.rewards[t])
        assert (terminated, truncated) == (episode.terminations[t], episode.truncations[t])
    assert [finding for finding in validate(ID, full=True) if finding.severity is not Severity.OK] == []


def test_random_whole_numbers_reach_both_bounds() -> None:
    collect("Steps")
    data = dataset.load(ID).episodes
    values, counts = np.unique(data.actions[:, 1], return_counts=True)
    assert values.tolist() == [-1, 0, 1]
    assert counts.min() > 0.25 * counts.sum()


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


def test_turn_based_environments_are_made_parallel() -> None:
    collector = Collector(simple_speaker_listener_v4.env(max_cycles=4))
    observations, _ = collector.reset(seed=0)
    while collector.agents:
        observations, *_ = collector.step(dict.fromkeys(collector.agents, 0))
    collector.write(ID, progress=False)
    data = dataset.load(ID).episodes
    assert data.lengths.tolist() == [4]
    np.testing.assert_array_equal(data.obs[4, 1], observations["listener_0"])
    turns = simple_speaker_listener_v4.raw_env()
    turns.metadata = {**turns.metadata, "is_parallelizable": False}
    with pytest.raises(UserError, match="is turn-based and cannot be made parallel"):
        Collector(turns)


def test_endless_environments_are_cut_off() -> None:
    collect("endless", max_steps=12)
    data = dataset.load(ID).episodes
    assert set(data.lengths) == {12}
    assert data.truncated[11, 1:].all()
    assert not data.terminated[:, 1:].any()
    env = minari.load_dataset(ID).recover_environment()
    env.reset(seed=0)
    ends = [env.step(env.action_space.sample())[3] for _ in range(12)]
    assert ends == [False] * 11 + [True]


@pytest.mark.parametrize(
    ("env", "policy", "message"),
    [
        ("Harvset", "random", r"--env tests\.data\.games:Harvset cannot be imported: AttributeError"),
        ("nothing", "random", "object is no PettingZoo parallel environment"),
        ("Harvest", "not_a_policy", "is int, which cannot be called"),
        ("Eye", "random", r"'scout' observes images \(8, 8, 3\)"),
        ("Many", "random", "'scout' acts in MultiDiscrete: only Box and Discrete"),
        ("Unbounded", "random", "a random policy needs bounds"),
        ("Harvest", "too_far", r"episode 0, step 1: action array\(\[3., 3.\]\) of agent 'big/tractor' is outside"),
        ("Harvest", "silent", "step 1: actions hold nothing for agent 'scout'"),
        ("Harvest", "crash", r"the policy failed: ZeroDivisionError: .*games.py, line \d+"),
        ("raises", "random", r"step\(\) failed: RuntimeError: out of fuel .*games.py, line \d+"),
        ("four", "random", r"step\(\) of the environment must return .* \(five\)"),
        ("nan", "random", "step 1: reward of agent 7 is nan"),
        ("reward", "random", "step 1: reward of agent 7 is 1e.39, no finite"),
        ("missing", "random", "step 1: observations hold nothing for agent 'big/tractor'"),
        ("shape", "random", r"step 1: observation of agent 'big/tractor' has shape \(4,\), not \(5,\)"),
        ("infinite", "random", "step 1: observation of agent 'big/tractor' holds NaN or infinity"),
        ("typed", "random", "step 1: observation of agent 'scout' holds values that are no int8"),
        ("mask", "random", "step 1: observation of agent 'scout' holds no 'action_mask'"),
        ("words", "random", "step 1: observation of agent 7 is no array of numbers"),
        ("vanish", "random", "step 1: agent 7 vanished without being terminated"),
        ("stays", "random", "step 2: agent 'scout' has ended, but is still among"),
        ("joins", "random", "step 1: agent 'newcomer' joined"),
        ("endless", "random", "episode 0, it has not ended after 50 steps: --max-steps"),
    ],
)
def test_what_breaks_the_rules_is_one_line(
    env: str, policy: str, message: str, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(playing, "NEVER", 50)
    with pytest.raises(UserError, match=message) as caught:
        collect(env, policy)
    assert "\n" not in str(caught.value)
    assert not list(root.rglob("*"))  # it shows before anything is written


@pytest.mark.parametrize("name", ["games", "nowhere.at.all:x"])
def test_names_without_anything(name: str) -> None:
    with pytest.raises(UserError, match=f"--env (takes package.module:name, not '{name}'|{name} cannot be imported)"):
        collection.collect(ID, name, transitions=1)


@pytest.mark.parametrize(
    ("space", "value", "vector"),
    [
        (spaces.Discrete(3, start=2), 4, [0, 0, 1]),
        (spaces.Tuple([spaces.Discrete(2), spaces.MultiBinary(2)]), (0, np.array([1, 0], np.int8)), [1, 0, 1, 0]),
        (spaces.Box(0, 9, (2,), np.int32), [3.0, 4.0], [3, 4]),
        (spaces.Discrete(3), -1, "is -1, outside its space"),  # Gymnasium's flattening counts from the end
        (spaces.Box(0, 9, (2,), np.int32), [3.0, 4.5], "holds values that are no int32"),
        (spaces.Box(0, 255, (2,), np.uint8), [3, 300], "holds values that are no uint8"),
        (spaces.Box(0, 1, (2,)), [[0.5], [0.5, 0.5]], "its rows differ in length"),
        (spaces.Box(0, 1, (2,), np.float64), [0, 1e39], "holds NaN or infinity"),
        (spaces.Tuple([spaces.Discrete(2)]), (0, 0), "is no tuple of 1"),
        (spaces.Dict(a=spaces.Discrete(2)), 0, "is int, not a dictionary"),
    ],
)
def test_observations_of_many_spaces(space: spaces.Space, value: object, vector: list[float] | str) -> None:
    if isinstance(vector, str):
        with pytest.raises(UserError, match=vector):
            observation_vector(space, value)
    else:
        assert observation_vector(space, value).tolist() == vector


def test_actions_at_their_bounds() -> None:
    far = action_converter(spaces.Box(-1e6, 123_456.789, (1,), np.float64))
    assert far(np.array([123_456.789])) is not None  # float32 rounds it up
    assert far(np.array([123_459.0])) is None
    one = action_converter(spaces.Box(-1, 1, (2,)))
    assert one(np.array([1 + 1e-7, -1])) is not None
    for wrong in ([1.01, 0], [np.nan, 0], [0, 0, 0], ["a", "b"], None):
        assert one(wrong) is None
    free = action_converter(spaces.Box(-np.inf, np.inf, (1,)))
    assert free([-1e30]) is not None
    assert free([np.inf]) is None
    choice = action_converter(spaces.Discrete(3))
    assert choice(np.int8(2)) is not None
    for wrong in (3, -1, 0.0, "left"):
        assert choice(wrong) is None


def test_what_is_finished_is_kept(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collection, "_STEPS_PER_SHARD", 40)
    monkeypatch.setattr(Late, "episodes", 0)
    with pytest.raises(
        UserError, match=r"step 1: reward of agent 7 is nan, .* \(finished episodes are kept in .*collecting"
    ):
        collect("Late", transitions=400)
    kept = {path: path.stat().st_mtime_ns for path in root.rglob("shard-*")}
    assert len(kept) > 3
    with pytest.raises(UserError, match="an interrupted collection with seed = 0 instead of 5"):
        collect("Late", transitions=400, seed=5)
    assert {path: path.stat().st_mtime_ns for path in root.rglob("shard-*")} == kept
    min(kept).write_bytes(b"half a shard")
    with pytest.raises(UserError, match=r"shard-000000.safetensors is damaged: delete it"):
        collect("Late", transitions=400)
    min(kept).unlink()
    gone_on = collect("Late", transitions=400)
    assert not list(root.rglob(".*"))
    assert collect("Harvest", transitions=400, overwrite=True) == gone_on


def test_a_killed_collection_goes_on(root: Path) -> None:
    # Small shards, so that there are several to be killed between.
    start = "from om2p_data import collection; collection._STEPS_PER_SHARD = 100; "
    start += "from om2p_cli.data import main; main()"
    command = [sys.executable, "-c", start, "collect", "--env", f"{GAMES}:slow", "--policy", f"{GAMES}:Chooser"]
    child = subprocess.Popen([*command, "--id", ID, "--transitions", "800", "--quiet"], cwd=Path(__file__).parents[2])
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
    assert 1 <= len(list(shards.glob("shard-*"))) < 8
    gone_on = collect("slow", "Chooser", transitions=800)
    assert collect("Harvest", "Chooser", transitions=800, overwrite=True) == gone_on


def test_the_command_finds_modules_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "my_game_here.py").write_text(
        "from om2p_data.envs import parallel_env\nmake = lambda: parallel_env('cn')"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])  # as it is for an installed program
    arguments = ["collect", "--env", "my_game_here:make", "--id", ID, "--transitions", "60", "--quiet"]
    monkeypatch.setattr(sys, "argv", ["om2p-data", *arguments])
    with pytest.raises(SystemExit) as ended:
        command_line.main()
    assert ended.value.code == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert first.startswith(f"{ID}: 75 transitions in 3 episodes, return ")
    with pytest.raises(SystemExit) as ended:
        command_line.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: data set {ID} exists already")
