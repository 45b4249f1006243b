"""The benchmark's peers of OM2P compute what OM2P computes: losses and weights after several updates."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from om2p_train.batches import Transitions
from om2p_train.bench.plain import PlainAgent, PlainTeam, Setting
from om2p_train.streams import SAMPLING, SeedStreams

from .learners import make_learner

UPDATES = 5


def setting(exact: bool) -> Setting:
    return Setting(
        agents=2,
        obs_dim=5,
        act_dim=2,
        hidden=(16, 16),
        batch_size=8,
        exact=exact,
        gamma=0.97,
        eta=0.5,
        rho=0.1,
        learning_rate=1e-3,
        adaptive_power=0.5,
        equal_share=0.25,
    )


def recipe_of(setting: Setting) -> list[str]:
    return [
        f"options.gamma={setting.gamma}",
        f"options.eta={setting.eta}",
        f"options.derivative={'exact' if setting.exact else 'zero'}",
        f"options.adaptive_power={setting.adaptive_power}",
        f"optimizer.rho={setting.rho}",
        f"optimizer.learning_rate={setting.learning_rate}",
    ]


def affine(net) -> list:
    return [*net.hidden_layers, net.output_layer]


def layers_of(net, k: int) -> list[dict[str, np.ndarray]]:
    """Network k of a stack as the JAX peer holds it; copies, since JAX may take the memory for its own."""
    layers = [{"weight": one.weight[k], "bias": one.bias[k, 0]} for one in affine(net)]
    for layer, norm in zip(layers, net.norms or [], strict=False):
        layer |= {"scale": norm.weight[k, 0], "shift": norm.bias[k, 0]}
    return [{name: value.detach().numpy().copy() for name, value in layer.items()} for layer in layers]


def fill(sequential: torch.nn.Sequential, net, k: int) -> None:
    linear = [module for module in sequential if isinstance(module, torch.nn.Linear)]
    norms = [module for module in sequential if isinstance(module, torch.nn.LayerNorm)]
    for module, layer in zip(linear, affine(net), strict=True):
        module.weight.data.copy_(layer.weight[k].T)
        module.bias.data.copy_(layer.bias[k, 0])
    for module, norm in zip(norms, net.norms or [], strict=True):
        module.weight.data.copy_(norm.weight[k, 0])
        module.bias.data.copy_(norm.bias[k, 0])


def plain_agent(algorithm, setting: Setting, k: int) -> PlainAgent:
    agent = PlainAgent(setting)
    for plain, stacked in ((agent.actor, algorithm.actor), (agent.actor_target, algorithm.actor_target)):
        fill(plain.net, stacked.net, k)
    for plain, stacked in ((agent.critics, algorithm.critic), (agent.critic_targets, algorithm.critic_target)):
        for twin in range(2):
            fill(plain[twin].net, stacked.net, 2 * k + twin)
    return agent


def drawn(algorithm, dataset, updates: int):
    """Batches and noise as the learner will draw them."""
    data, streams = Transitions(dataset), SeedStreams([0], SAMPLING)
    for _ in range(updates):
        yield data.sample(streams, 8)._asdict(), algorithm.draw(streams, 8)


def of_agent(tensors, k: int) -> dict[str, torch.Tensor]:
    return {name: value[k] for name, value in tensors.items() if name != "rows"}


@pytest.mark.parametrize("exact", [True, False])
def test_the_plain_loop_is_the_same_update(exact, random_dataset):
    sizes = setting(exact)
    algorithm, learner = make_learner("om2p", random_dataset, [0], *recipe_of(sizes))
    agents = [plain_agent(algorithm, sizes, k) for k in range(2)]
    for batch, noise in drawn(algorithm, random_dataset, UPDATES):
        losses = learner.update()
        for k, agent in enumerate(agents):
            critic_loss, actor_loss = agent.update(of_agent(batch, k), of_agent(noise, k))
            assert losses["critic_loss"][k].item() == pytest.approx(critic_loss.item(), rel=1e-5)
            assert losses["actor_loss"][k].item() == pytest.approx(actor_loss.item(), rel=1e-4, abs=1e-6)
    for k, agent in enumerate(agents):
        after = plain_agent(algorithm, sizes, k)
        for module in ("actor", "critics", "actor_target", "critic_targets"):
            expected, found = (getattr(one, module).state_dict() for one in (agent, after))
            for name in expected:
                torch.testing.assert_close(found[name], expected[name], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("exact", [True, False])
def test_jax_is_the_same_update(exact, random_dataset):
    pytest.importorskip("jax")
    import jax
    import jax.numpy as jnp

    from om2p_train.bench import jax_peer

    sizes = setting(exact)
    algorithm, learner = make_learner("om2p", random_dataset, [0], *recipe_of(sizes))

    def nets(actor, critic, k):
        return {"actor": layers_of(actor.net, k), "critics": [layers_of(critic.net, 2 * k + twin) for twin in range(2)]}

    states = []
    for k in range(2):
        state = jax_peer.initial(sizes, 0)
        now = nets(algorithm.actor, algorithm.critic, k)
        slow = nets(algorithm.actor_target, algorithm.critic_target, k)
        states.append(state | jax.tree.map(jnp.asarray, {"nets": now, "targets": slow}))
    for batch, noise in drawn(algorithm, random_dataset, UPDATES):
        losses = learner.update()
        for k in range(2):
            arrays = (
                {name: jnp.asarray(value.numpy()) for name, value in of_agent(one, k).items()} for one in (batch, noise)
            )
            states[k], (critic_loss, actor_loss) = jax_peer.update(sizes, states[k], *arrays)
            assert losses["critic_loss"][k].item() == pytest.approx(float(critic_loss), rel=1e-5)
            assert losses["actor_loss"][k].item() == pytest.approx(float(actor_loss), rel=1e-4, abs=1e-6)
    for k, state in enumerate(states):
        for name, (actor, critic) in {
            "nets": (algorithm.actor, algorithm.critic),
            "targets": (algorithm.actor_target, algorithm.critic_target),
        }.items():
            for found, expected in zip(
                jax.tree.leaves(state[name]), jax.tree.leaves(nets(actor, critic, k)), strict=True
            ):
                np.testing.assert_allclose(found, expected, atol=2e-5, rtol=1e-4)


def test_a_team_draws_and_learns():
    sizes = setting(exact=True)
    generator = torch.Generator().manual_seed(0)
    lead = (100, 2)
    data = {
        name: torch.rand(*lead, *size, generator=generator)
        for name, size in {"obs": (5,), "next_obs": (5,), "actions": (2,), "rewards": (), "mask": ()}.items()
    }
    torch.manual_seed(0)
    team = PlainTeam(sizes, data)
    losses = [sum(float(critic) for critic, _ in team.update()) for _ in range(200)]
    late, early = np.mean(losses[-20:]), np.mean(losses[:20])
    assert late < early
