"""Behaviour training: memory, learner and loop against slow references and problems whose answer is known."""

from __future__ import annotations

import csv
import dataclasses
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from om2p_data import tiers
from om2p_data.behavior import training
from om2p_data.behavior.policy import GaussianNoise, TeamActor, UniformPolicy, load_actor
from om2p_data.behavior.replay import Batch, Replay
from om2p_data.behavior.td3 import TD3
from om2p_data.behavior.training import EXPERT, MEDIUM
from om2p_data.envs import make
from om2p_data.envs.registry import find
from om2p_data.errors import UserError
from om2p_data.recipe import merge
from om2p_data.rollout import team_returns
from om2p_data.tiers import DataRecipe

from .conftest import TINY

pytestmark = pytest.mark.usefixtures("one_thread")
CN = find("cn")
TOY = dataclasses.replace(CN, obs_dim=5, state_dim=4)  # 3 agents, 2 actions
PROBE = dataclasses.replace(CN, obs_dim=1, state_dim=1, act_dim=1)


# Memory


class Row(NamedTuple):
    """One step of all worlds, as `Replay.add` takes it."""

    obs: np.ndarray
    state: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    next_obs: np.ndarray
    next_state: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray


def marked_rows(steps: int, worlds: int, seed: int) -> list[Row]:
    """Random rewards and ends; every observation, state and action says its step, world and agent."""
    rng = np.random.default_rng(seed)
    rows = []
    for t in range(steps):
        place = np.zeros((worlds, 3, 5), np.float32)
        place[..., 0] = t
        place[..., 1] = np.arange(worlds)[:, None]
        place[..., 2] = np.arange(3)
        after = place.copy()
        after[..., 3] = 1  # what the step led to, as against a first observation
        over = np.repeat(rng.random((worlds, 1)) < 0.2, 3, 1)
        terminated = over & (rng.random((worlds, 1)) < 0.5)
        rows.append(
            Row(
                obs=place,
                state=place[:, 0, :4],
                actions=place[..., :2],
                rewards=rng.standard_normal((worlds, 3)).astype(np.float32),
                next_obs=after,
                next_state=after[:, 0, :4],
                terminated=terminated,
                truncated=over & ~terminated,
            )
        )
    return rows


def filled(rows: list[Row], capacity: int, seed: int = 0) -> Replay:
    memory = Replay(TOY, len(rows[0].obs), capacity, seed)
    for row in rows:
        memory.add(*row)
    return memory


def n_step_reference(rows: list[Row], t: int, world: int, n_step: int, gamma: float) -> tuple[float, float, int]:
    """Reward, discount and last step of one transition, one step after the other."""
    reward = 0.0
    for k in range(n_step):
        row = rows[t + k]
        reward += gamma**k * float(row.rewards[world].mean())
        if row.terminated[world].any():
            return reward, 0.0, t + k
        if row.truncated[world].any():
            return reward, gamma ** (k + 1), t + k
    return reward, gamma**n_step, t + n_step - 1


@pytest.mark.parametrize("n_step", [1, 3, 5])
@pytest.mark.parametrize(("steps", "capacity"), [(20, 30), (30, 30), (71, 30)])
def test_n_step_batches_equal_a_step_by_step_reference(n_step: int, steps: int, capacity: int) -> None:
    rows = marked_rows(steps, worlds=6, seed=steps)
    memory = filled(rows, capacity)
    assert len(memory) == min(steps, capacity)
    batch = memory.sample(4_000, n_step, gamma=0.9)
    assert [tuple(x.shape) for x in batch] == [
        (3, 4000, 5), (4000, 4), (3, 4000, 2), (4000,), (3, 4000, 5), (4000, 4), (4000,)
    ]  # fmt: skip
    assert {x.dtype for x in batch} == {torch.float32}
    discounts = set()
    for i in range(4_000):
        t, world = int(batch.state[i, 0]), int(batch.state[i, 1])
        reward, discount, last = n_step_reference(rows, t, world, n_step, 0.9)
        assert batch.reward[i].item() == pytest.approx(reward, abs=1e-5)
        assert batch.discount[i].item() == pytest.approx(discount, abs=1e-6)
        assert batch.obs[:, i].tolist() == rows[t].obs[world].tolist()
        assert batch.actions[:, i].tolist() == rows[t].actions[world].tolist()
        assert batch.next_obs[:, i].tolist() == rows[last].next_obs[world].tolist()
        assert batch.next_state[i].tolist() == rows[last].next_state[world].tolist()
        discounts.add(round(discount, 6))
    assert discounts == {0.0, *(round(0.9 ** (k + 1), 6) for k in range(n_step))}
    # Every step that n - 1 others follow is drawn, and about equally often.
    drawn, counts = np.unique(batch.state[:, 0].numpy(), return_counts=True)
    assert drawn.tolist() == list(range(max(0, steps - capacity), steps - n_step + 1))
    assert counts.min() > 0.6 * counts.mean()
    assert set(batch.state[:, 1].tolist()) == set(range(6))


def test_batches_repeat_with_the_seed() -> None:
    rows = marked_rows(20, worlds=3, seed=0)
    one, same, other = (filled(rows, 30, seed).sample(50, 3, 0.9) for seed in (1, 1, 2))
    assert torch.equal(one.state, same.state)
    assert not torch.equal(one.state, other.state)


@pytest.mark.parametrize(("steps", "capacity"), [(30, 40), (40, 40), (41, 40), (95, 40)])
def test_memory_hands_out_whole_episodes_only(steps: int, capacity: int) -> None:
    """An overwritten memory cannot know whether its first episodes are whole, and leaves them out."""
    rows = marked_rows(steps, worlds=4, seed=steps)
    found = filled(rows, capacity).episodes(seed=3)
    oldest = max(0, steps - capacity)
    expected = []  # world, first and last step
    for world in range(4):
        ends = [t for t, row in enumerate(rows) if row.terminated[world, 0] or row.truncated[world, 0]]
        starts = [0, *(end + 1 for end in ends)]
        inside = [(world, start, end) for start, end in zip(starts, ends, strict=False) if start >= oldest]
        expected += [episode for episode in inside if oldest == 0 or episode[1] > oldest]
    expected.sort(key=lambda episode: (episode[2], episode[0]))
    assert len(expected) > 5
    places = [
        (int(found.obs[row, 0, 1]), int(found.obs[row, 0, 0]), int(found.obs[row + length - 1, 0, 0]))
        for row, length in zip(found.episode_start, found.lengths, strict=True)
    ]
    assert places == expected
    step, world = found.actions[:, 0, 0].astype(int), found.actions[:, 0, 1].astype(int)
    np.testing.assert_array_equal(
        found.rewards, np.stack([rows[t].rewards[e] for t, e in zip(step, world, strict=True)])
    )
    np.testing.assert_array_equal(found.terminated, [rows[t].terminated[e] for t, e in zip(step, world, strict=True)])
    last = np.cumsum(found.lengths) - 1
    np.testing.assert_array_equal(
        found.obs[found.obs_index[last] + 1][:, 0, [0, 1, 3]], [[t, e, 1] for e, _, t in expected]
    )
    assert set(found.seed) == {3}


# Learner

SETTINGS = {
    "hidden": (16, 12),
    "learning_rate": 1e-2,
    "tau": 0.2,
    "policy_delay": 2,
    "smoothing": 0.0,
    "smoothing_clip": 0.0,
    "saturation_cost": 0.1,
    "reward_scale": 0.5,
    "seed": 0,
}


def random_batch(size: int, seed: int, dtype: torch.dtype = torch.float32) -> Batch:
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=dtype) * 2 - 1

    discount = 0.9 * (uniform(size) > 0).to(dtype)
    return Batch(
        uniform(3, size, 5), uniform(size, 4), uniform(3, size, 2), uniform(size),
        uniform(3, size, 5), uniform(size, 4), discount,
    )  # fmt: skip


@pytest.fixture
def float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


class PlainTD3:
    """TD3 once more, with one torch network an agent and a critic, and nothing stacked."""

    def __init__(self, learner: TD3):
        self.actors = [self._copy(learner.actor.net, n) for n in range(3)]
        self.critics = [self._copy(learner.critic.net, k) for k in range(2)]
        self.actor_targets = [self._copy(learner.actor.net, n) for n in range(3)]
        self.critic_targets = [self._copy(learner.critic.net, k) for k in range(2)]
        rate = SETTINGS["learning_rate"]
        self._actor_steps = [torch.optim.Adam(actor.parameters(), rate) for actor in self.actors]
        self._critic_steps = [torch.optim.Adam(critic.parameters(), rate) for critic in self.critics]
        self._updates = 0

    @staticmethod
    def _copy(net: nn.Module, index: int) -> nn.Sequential:
        modules: list[nn.Module] = []
        for layer in [*net.hidden_layers, net.output_layer]:  # pyright: ignore
            linear = nn.Linear(*layer.weight.shape[1:])
            linear.weight.data.copy_(layer.weight[index].T)
            linear.bias.data.copy_(layer.bias[index, 0])
            modules += [linear, nn.ReLU()]
        return nn.Sequential(*modules[:-1])

    def update(self, batch: Batch) -> None:
        with torch.no_grad():
            next_actions = [torch.tanh(actor(o)) for actor, o in zip(self.actor_targets, batch.next_obs, strict=True)]
            next_values = [net(torch.cat([batch.next_state, *next_actions], 1))[:, 0] for net in self.critic_targets]
            target = SETTINGS["reward_scale"] * batch.reward + batch.discount * torch.minimum(*next_values)
        for critic, step in zip(self.critics, self._critic_steps, strict=True):
            value = critic(torch.cat([batch.state, *batch.actions], 1))[:, 0]
            step.zero_grad()
            ((value - target) ** 2).mean().backward()
            step.step()
        self._updates += 1
        if self._updates % SETTINGS["policy_delay"] == 0:
            self._improve(batch)
            self._follow()

    def _improve(self, batch: Batch) -> None:
        logits = [actor(obs) for actor, obs in zip(self.actors, batch.obs, strict=True)]
        value = self.critics[0](torch.cat([batch.state, *map(torch.tanh, logits)], 1)).mean()
        cost = SETTINGS["saturation_cost"] * torch.stack(logits).square().mean()
        for step in self._actor_steps:
            step.zero_grad()
        (cost - value).backward()
        for step in self._actor_steps:
            step.step()

    def _follow(self) -> None:
        tau = SETTINGS["tau"]
        pairs = [
            *zip(self.actor_targets, self.actors, strict=True),
            *zip(self.critic_targets, self.critics, strict=True),
        ]
        for target, source in pairs:
            for old, new in zip(target.parameters(), source.parameters(), strict=True):
                old.data = (1 - tau) * old.data + tau * new.data


@pytest.mark.usefixtures("float64")
def test_updates_equal_plain_td3() -> None:
    """Seven updates: critics, delayed actors and every target average must agree for the last ones to do so."""
    learner = TD3(TOY, **SETTINGS)
    reference = PlainTD3(learner)
    probe = random_batch(20, 99, torch.float64)
    before = learner.actor(probe.obs).detach()
    for seed in range(7):
        batch = random_batch(32, seed, torch.float64)
        learner.update(batch)
        reference.update(batch)
    values = [critic(torch.cat([probe.state, *probe.actions], 1))[:, 0] for critic in reference.critics]
    torch.testing.assert_close(learner.critic(probe.state, probe.actions), torch.stack(values))
    actions = [torch.tanh(actor(obs)) for actor, obs in zip(reference.actors, probe.obs, strict=True)]
    torch.testing.assert_close(learner.actor(probe.obs), torch.stack(actions))
    assert (learner.actor(probe.obs) - before).abs().max() > 0.01


def test_target_noise_is_clipped() -> None:
    def values_after_updates(**changes: float) -> Tensor:
        learner = TD3(TOY, **(SETTINGS | changes))
        for seed in range(5):
            learner.update(random_batch(32, seed))
        return learner.critic(*random_batch(8, 99)[1:3]).detach()

    without = values_after_updates()
    assert torch.equal(values_after_updates(smoothing=5.0, smoothing_clip=0.0), without)
    noisy = values_after_updates(smoothing=0.2, smoothing_clip=0.5)
    assert not torch.allclose(noisy, without, atol=1e-4)
    assert torch.equal(values_after_updates(smoothing=0.2, smoothing_clip=0.5), noisy)
    assert not torch.equal(values_after_updates(smoothing=0.2, smoothing_clip=0.5, seed=1), noisy)


def test_an_actor_sees_and_learns_from_its_own_observation_only() -> None:
    actor = TD3(TOY, **SETTINGS).actor
    obs = random_batch(10, 0).obs
    actor(obs)[1].square().sum().backward()
    for name, parameter in actor.named_parameters():
        assert parameter.grad is not None
        assert [bool(part.any()) for part in parameter.grad] == [False, True, False], name
    changed = obs.clone()
    changed[1] += 1
    moved = (actor(changed) != actor(obs)).flatten(1).any(1)
    assert moved.tolist() == [False, True, False]


def test_a_stacked_team_equals_its_actors_run_one_by_one() -> None:
    team = TD3(TOY, **SETTINGS).actor
    obs = random_batch(10, 0).obs
    for n in range(3):
        single = TeamActor(1, 5, 2, SETTINGS["hidden"])
        single.load_state_dict({name: value[n : n + 1] for name, value in team.state_dict().items()})
        torch.testing.assert_close(single(obs[n : n + 1])[0], team(obs)[n])


@pytest.mark.parametrize(("end", "value"), [("truncated", 2.0), ("terminated", 1.0)])
def test_critic_finds_the_value_of_a_constant_reward(end: str, value: float) -> None:
    """Reward 1 in episodes of one step: 1 / (1 - 0.5) where a clock cuts them, 1 where they terminate."""
    rng = np.random.default_rng(0)
    memory = Replay(PROBE, 4, 400, seed=0)
    flags = {"terminated": np.zeros((4, 3), bool), "truncated": np.zeros((4, 3), bool), end: np.ones((4, 3), bool)}

    def random(*shape: int) -> np.ndarray:
        return rng.uniform(-1, 1, (4, *shape)).astype(np.float32)

    for _ in range(400):
        rewards = np.ones((4, 3), np.float32)
        memory.add(random(3, 1), random(1), random(3, 1), rewards, random(3, 1), random(1), **flags)
    learner = TD3(PROBE, **(SETTINGS | {"reward_scale": 1.0, "saturation_cost": 0.0}))
    for _ in range(300):
        learner.update(memory.sample(64, 3, 0.5))
    batch = memory.sample(200, 1, 0.5)
    values = learner.critic(batch.state, batch.actions)
    assert values.mean().item() == pytest.approx(value, abs=0.15)
    assert (values - value).abs().max() < 0.4


def test_actors_find_the_best_actions_of_a_known_reward() -> None:
    """One-step episodes with reward -sum_n |a_n - c_n|: agent n must act c_n whatever it sees."""
    best = torch.tensor([0.3, -0.5, 0.6])[:, None, None]
    learner = TD3(PROBE, **(SETTINGS | {"saturation_cost": 0.0, "reward_scale": 1.0, "hidden": (64,)}))
    generator = torch.Generator().manual_seed(0)
    for _ in range(600):
        obs, actions = (2 * torch.rand((2, 3, 256, 1), generator=generator) - 1).unbind()
        reward = -(actions - best).abs().sum((0, 2))
        learner.update(Batch(obs, obs[0], actions, reward, obs, obs[0], torch.zeros(256)))
    obs = torch.linspace(-1, 1, 21).expand(3, 21)[..., None]
    assert (learner.actor(obs) - best).abs().max() < 0.15


# Policies


@pytest.fixture
def saved(tmp_path: Path) -> tuple[TeamActor, Path]:
    actor = TeamActor(3, 18, 2, (8,), torch.Generator().manual_seed(0))
    path = tmp_path / "policy.safetensors"
    actor.save(path, CN, {"level": "medium", "return_mean": 1.5})
    return actor, path


def test_a_policy_comes_back_from_its_file(saved: tuple[TeamActor, Path]) -> None:
    actor, path = saved
    found, card = load_actor(path, CN)
    obs = np.random.default_rng(0).standard_normal((7, 3, 18), dtype=np.float32)
    rng = np.random.default_rng(0)
    actions = found.act(obs, rng)
    np.testing.assert_array_equal(actions, actor.act(obs, rng), strict=True)
    assert (actions.shape, actions.dtype) == ((7, 3, 2), np.float32)
    np.testing.assert_allclose(actions[2, 1], actor(torch.from_numpy(obs[2])[:, None])[1, 0].detach(), atol=1e-6)
    assert card == {
        "task": "cooperative-navigation",
        "hidden": [8],
        "hash": actor.content_hash(),
        "level": "medium",
        "return_mean": 1.5,
    }


def rewrite(path: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    with safe_open(path, framework="pt") as file:
        card = file.metadata()
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata=card)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "cannot read the policy .*No such file"),
        (lambda path: path.write_bytes(path.read_bytes()[:-10]), "cannot read the policy"),
        (lambda path: path.write_bytes(b""), "cannot read the policy"),
        (lambda path: save_file({"a": torch.zeros(1)}, path), "cannot read the policy"),
        (lambda path: save_file({"a": torch.zeros(1)}, path, metadata={"card": "{}"}), "cannot read the policy"),
        (
            lambda path: rewrite(path, lambda w: w.pop("net.output_layer.bias")),
            r"cannot read the policy .*output_layer\.bias",
        ),
        (
            lambda path: rewrite(path, lambda w: w["net.output_layer.bias"].add_(1e-3)),
            "do not match their recorded hash: the file is damaged",
        ),
    ],
)
def test_a_damaged_policy_is_named_in_one_line(saved: tuple[TeamActor, Path], damage, message: str) -> None:
    _, path = saved
    damage(path)
    with pytest.raises(UserError, match=message) as caught:
        load_actor(path, CN)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_policy_of_another_task_is_refused(saved: tuple[TeamActor, Path]) -> None:
    with pytest.raises(UserError, match=r"holds a policy for cooperative-navigation, not for world$"):
        load_actor(saved[1], find("world"))


def test_noise_has_its_size_and_stays_in_bounds() -> None:
    class Still:
        def act(self, obs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
            return np.full((len(obs), 3, 2), 0.9, np.float32)

    rng = np.random.default_rng(0)
    actions = GaussianNoise(Still(), 0.2).act(np.zeros((50_000, 3, 18), np.float32), rng)
    assert (actions.dtype, actions.max()) == (np.float32, 1.0)
    free = actions[actions < 0.9]  # the lower half, which no bound cuts
    assert len(free) / actions.size == pytest.approx(0.5, abs=0.01)
    assert np.sqrt(np.mean((free - 0.9) ** 2)) == pytest.approx(0.2, rel=0.02)
    assert (actions == 1.0).mean() == pytest.approx(0.3085, abs=0.01)  # P(N > 0.5)


def test_uniform_policy() -> None:
    actions = UniformPolicy(CN).act(np.zeros((50_000, 3, 18), np.float32), np.random.default_rng(0))
    assert (actions.shape, actions.dtype) == ((50_000, 3, 2), np.float32)
    assert (actions.min() >= -1, actions.max() <= 1) == (True, True)
    np.testing.assert_allclose(np.quantile(actions, [0.1, 0.5, 0.9]), [-0.8, 0, 0.8], atol=0.02)


# The loop


def read_log(folder: Path) -> list[dict[str, str]]:
    with (folder / "expert-log.csv").open() as file:
        return list(csv.DictReader(file))


def test_training_keeps_what_crosses_a_level(home: Path, tiny: DataRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny.behavior
    expert = training.obtain(CN, EXPERT, config, seed=0, progress=False)
    folder = training.run_folder(CN, config, seed=0)
    assert folder.is_relative_to(home)
    assert {path.name for path in folder.iterdir()} == {
        "medium.safetensors",
        "expert.safetensors",
        "medium-replay.safetensors",
        "expert-log.csv",
    }

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("what is there must not be trained again")

    monkeypatch.setattr(training, "train", forbidden)
    medium = training.obtain(CN, MEDIUM, config, seed=0, progress=False)
    again = training.obtain(CN, EXPERT, config, seed=0, progress=False)
    assert again.card == expert.card
    assert again.actor.content_hash() == expert.actor.content_hash() == expert.card["hash"]
    log = read_log(folder)
    by_level = {MEDIUM: medium, EXPERT: again}
    for level, milestone in by_level.items():
        crossing = next(row for row in log if float(row["return_mean"]) >= getattr(config.levels, level))
        card = milestone.card
        assert (card["level"], card["seed"], card["algorithm"]) == (level, 0, "matd3")
        assert card["recipe"] == config.model_dump(mode="json")
        assert card["updates"] == int(crossing["updates"])
        assert card["return_mean"] == float(crossing["return_mean"])
    assert medium.card["updates"] < again.card["updates"]
    assert medium.card["hash"] != again.card["hash"]
    assert [int(row["updates"]) for row in log] == list(range(50, again.card["updates"] + 1, 50))
    with pytest.raises(AssertionError, match="trained again"):
        training.obtain(CN, EXPERT, config, seed=1, progress=False)
    other = config.model_copy(update={"gamma": 0.8})
    assert training.run_folder(CN, other, seed=0) != folder


def test_levels_are_judged_by_the_policy_that_is_kept(home: Path, tiny: DataRecipe) -> None:
    """The recorded return, on other starts and with other noise, is what the kept policy scores."""
    milestone = training.obtain(CN, EXPERT, tiny.behavior, seed=0, progress=False)
    policy = GaussianNoise(milestone.actor, tiny.behavior.collection_noise)
    returns = team_returns(policy, make("cn", 2_000), seed=12345)
    error = milestone.card["return_std"] / np.sqrt(100)  # of the 100 episodes that judged it
    assert abs(returns.mean() - milestone.card["return_mean"]) < 4 * error
    assert abs(returns.mean() - team_returns(UniformPolicy(CN), make("cn", 2_000), seed=1).mean()) > 2 * error


def test_the_same_seed_gives_the_same_weights_and_another_does_not(
    home: Path, tiny: DataRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = training.obtain(CN, EXPERT, tiny.behavior, seed=0, progress=False)
    first_replay, _ = training.obtain_replay(CN, tiny.behavior, seed=0, progress=False)
    monkeypatch.setenv("OM2P_HOME", str(tmp_path))
    again = training.obtain(CN, MEDIUM, tiny.behavior, seed=0, progress=False)
    again_replay, _ = training.obtain_replay(CN, tiny.behavior, seed=0, progress=False)
    assert not (training.run_folder(CN, tiny.behavior, seed=0) / "expert.safetensors").exists()
    monkeypatch.setenv("OM2P_HOME", str(home))
    medium = training.obtain(CN, MEDIUM, tiny.behavior, seed=0, progress=False)
    assert again.card["hash"] == medium.card["hash"] != first.card["hash"]
    assert again_replay.content_hash() == first_replay.content_hash()
    monkeypatch.setenv("OM2P_HOME", str(tmp_path))
    assert training.obtain(CN, MEDIUM, tiny.behavior, seed=1, progress=False).card["hash"] != medium.card["hash"]


@pytest.mark.parametrize(
    ("levels", "missed"), [({"medium": 1e6}, "medium"), ({"medium": -1e6, "expert": 1e6}, "expert")]
)
def test_a_level_out_of_reach_names_the_keys(
    levels: dict[str, float], missed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OM2P_HOME", str(tmp_path))
    settings = merge(TINY, {"behavior": {"max_steps": 3_000, "evaluate_every": 5, "levels": levels}})
    config = tiers.load_recipe(CN, None, settings).behavior
    message = rf"best return of \d+\.\d, below the {missed} level .*: raise behavior\.max_steps or lower "
    message += rf"behavior\.levels\.{missed} in the data recipe$"
    with pytest.raises(UserError, match=message) as caught:
        training.obtain(CN, EXPERT, config, seed=0, progress=False)
    assert "\n" not in str(caught.value)
    kept = {path.name for path in training.run_folder(CN, config, seed=0).iterdir()}
    assert kept == ({"medium.safetensors", "medium-replay.safetensors"} if missed == "expert" else set())


def test_no_level_is_crossed_before_an_episode_has_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OM2P_HOME", str(tmp_path))
    changes = {"warmup_steps": 0, "evaluate_every": 5, "levels": {"medium": -1e6}}
    config = tiers.load_recipe(CN, None, merge(TINY, {"behavior": changes})).behavior
    replay, milestone = training.obtain_replay(CN, config, seed=0, progress=False)
    assert milestone.card["env_steps"] >= 25 * 32
    assert replay.num_episodes == 32


def test_a_memory_too_small_for_whole_episodes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OM2P_HOME", str(tmp_path))
    config = tiers.load_recipe(CN, None, merge(TINY, {"behavior": {"replay_size": 1_500}})).behavior
    with pytest.raises(UserError, match=r"^behavior\.replay_size = 1500 is too small .*, take 1600$"):
        training.train(CN, config, seed=0, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_runs_that_cannot_be_kept_or_read(tmp_path: Path, tiny: DataRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("OM2P_HOME", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"^cannot write behaviour policies to .*: Not a directory$"):
        training.obtain(CN, MEDIUM, tiny.behavior, seed=0, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(b"no"),
        lambda path: save_file({"a": torch.zeros(1)}, path),
    ],
)
def test_a_damaged_replay_is_named(
    damage, home: Path, tiny: DataRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training.obtain(CN, EXPERT, tiny.behavior, seed=0, progress=False)
    shutil.copytree(home, tmp_path / "home")
    monkeypatch.setenv("OM2P_HOME", str(tmp_path / "home"))
    path = training.run_folder(CN, tiny.behavior, seed=0) / "medium-replay.safetensors"
    damage(path)
    with pytest.raises(
        UserError, match=f"cannot read the replay memory {re.escape(str(path))}: .*train anew$"
    ) as caught:
        training.obtain_replay(CN, tiny.behavior, seed=0, progress=False)
    assert "\n" not in str(caught.value)
