"""Behaviour teams that choose: their learner against a float64 reference, their noise, and every tier of their data."""

from __future__ import annotations

import minari
import numpy as np
import pytest
import torch
from gymnasium.spaces import Discrete

from om2p_data import dataset, generation, tiers
from om2p_data.behavior import runs
from om2p_data.behavior.policy import RandomChoices, TeamActor, with_noise
from om2p_data.behavior.ppo import Categorical
from om2p_data.envs.registry import find
from om2p_data.errors import UserError
from om2p_data.recipe import parse_overrides
from om2p_data.tiers import Tier

CND = find("cnd")
pytestmark = pytest.mark.usefixtures("one_thread")


def test_probability_entropy_and_their_gradients_equal_a_reference() -> None:
    rng = np.random.default_rng(0)
    logits, choices = rng.normal(size=(2, 6, 5)), rng.integers(5, size=(2, 6))
    out = torch.tensor(logits, dtype=torch.float32, requires_grad=True)
    actions = torch.from_numpy(np.eye(5, dtype=np.float32)[choices])
    probability = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    distribution = Categorical()
    found = distribution.log_probability(out, actions)
    taken = np.take_along_axis(probability, choices[..., None], -1)[..., 0]
    np.testing.assert_allclose(found.detach(), np.log(taken), rtol=1e-5)
    entropy = distribution.entropy(out)
    np.testing.assert_allclose(entropy.detach(), -(probability * np.log(probability)).sum(-1).mean(-1), rtol=1e-5)
    (gradient,) = torch.autograd.grad(found.sum(), out, retain_graph=True)
    np.testing.assert_allclose(gradient, np.eye(5)[choices] - probability, atol=1e-6)  # of log softmax
    (gradient,) = torch.autograd.grad(entropy.sum(), out)
    surprise = np.log(probability) - (probability * np.log(probability)).sum(-1, keepdims=True)
    np.testing.assert_allclose(gradient, -probability * surprise / 6, atol=1e-6)


def test_samples_have_the_networks_probabilities() -> None:
    out = torch.tensor([[0.0, 1.0, -1.0]]).expand(2, 40_000, 3)
    drawn = Categorical().sample(out, torch.Generator().manual_seed(0))
    assert (drawn.sum(-1) == 1).all()
    torch.testing.assert_close(drawn.mean(1), out[:, 0].softmax(-1), rtol=0, atol=0.012)


def test_a_team_takes_its_likeliest_choice() -> None:
    actor = TeamActor(3, 18, 5, [8], torch.Generator().manual_seed(0), discrete=True)
    obs = np.random.default_rng(0).normal(size=(50, 3, 18)).astype(np.float32)
    actions = actor.act(obs, np.random.default_rng(0))
    logits = actor.net(torch.from_numpy(obs).transpose(0, 1)).transpose(0, 1).detach().numpy()
    np.testing.assert_array_equal(actions, np.eye(5, dtype=np.float32)[logits.argmax(-1)])


def test_collection_noise_is_a_share_of_uniform_choices() -> None:
    class Still:
        def act(self, obs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
            return np.broadcast_to(np.eye(5, dtype=np.float32)[0], (len(obs), 3, 5))

    policy = with_noise(Still(), CND, 0.3)
    assert isinstance(policy, RandomChoices)
    actions = policy.act(np.zeros((50_000, 3, 18), np.float32), np.random.default_rng(0))
    expected = [0.7 + 0.3 / 5, *[0.3 / 5] * 4]
    np.testing.assert_allclose(actions.mean((0, 1)), expected, atol=0.004)


def test_td3_refuses_choices() -> None:
    config = tiers.load_recipe(find("cn"), None).behavior
    with pytest.raises(UserError, match=r"has discrete actions, which TD3 cannot learn: give behavior.ppo"):
        runs.start(CND, config, 0)


@pytest.mark.parametrize(
    ("name", "noise", "says"),
    [
        ("cnd", 0.5, f"is for continuous actions, and {CND.name} has discrete actions: leave it out"),
        ("hc", None, "is for continuous actions, and halfcheetah-2x3 has continuous actions: give it"),
    ],
)
def test_initial_noise_is_where_there_is_noise(name: str, noise: float | None, says: str) -> None:
    config = tiers.load_recipe(find(name), None).behavior
    assert config.ppo is not None
    wrong = config.model_copy(update={"ppo": config.ppo.model_copy(update={"initial_noise": noise})})
    with pytest.raises(UserError, match=f"behavior.ppo.initial_noise {says}"):
        runs.start(find(name), wrong, 0)


@pytest.mark.parametrize("tier", [tier for tier in Tier if tier is not Tier.MEDIUM_REPLAY])
def test_every_tier_is_generated_and_holds_integers(tier: Tier, tmp_path) -> None:
    generation.generate(CND, tier, tiers.load_recipe(CND, None), transitions=500, root=tmp_path, progress=False)
    data = dataset.load(f"om2p/{CND.name}/{tier.value}-v0", tmp_path)
    assert data.environment.spec.discrete == (True,) * 3
    assert (data.episodes.actions.sum(-1) == 1).all()


def test_the_replay_tier_is_what_the_learner_chose(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OM2P_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "sets"))
    small = ["behavior.levels.medium=165", "behavior.levels.expert=400", "behavior.num_envs=16"]
    small += ["behavior.evaluation_episodes=100", "behavior.judging_episodes=100"]
    config = tiers.load_recipe(CND, None, parse_overrides(small))
    generation.generate(CND, Tier.MEDIUM_REPLAY, config, root=tmp_path / "sets", progress=False)
    stock = minari.load_dataset(f"om2p/{CND.name}/medium-replay-v0")
    assert isinstance(stock.action_space["agent_0"], Discrete)
    assert np.issubdtype(stock[0].actions["agent_0"].dtype, np.integer)
