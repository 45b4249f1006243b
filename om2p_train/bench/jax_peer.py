"""OM2P in JAX, one agent after the other, each update one compiled function. A baseline of speed, equal in mathematics.

JAX is no requirement of this package: where it is missing, the benchmark goes without this row.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from om2p_train.bench.plain import Setting

Tree = Any


def initial(setting: Setting, seed: int) -> Tree:
    """Weights, targets and optimiser state of one agent."""
    inputs = setting.obs_dim + setting.act_dim
    keys = jax.random.split(jax.random.key(seed), 3)
    actor = _layers(keys[0], [inputs + 2, *setting.hidden, setting.act_dim], norm=False)
    critics = [_layers(key, [inputs, *setting.hidden, 1], norm=True) for key in keys[1:]]
    nets = {"actor": actor, "critics": critics}
    zeros = jax.tree.map(jnp.zeros_like, nets)
    return {
        "nets": nets,
        "targets": jax.tree.map(jnp.copy, nets),
        "first": zeros,
        "second": jax.tree.map(jnp.copy, zeros),
        "count": jnp.zeros((), jnp.int32),
    }


def _layers(key: Tree, sizes: list[int], *, norm: bool) -> Tree:
    layers = []
    for number, (size, width) in enumerate(itertools.pairwise(sizes)):
        bound = size**-0.5
        weight, bias = jax.random.split(jax.random.fold_in(key, number))
        layer = {
            "weight": jax.random.uniform(weight, (size, width), jnp.float32, -bound, bound),
            "bias": jax.random.uniform(bias, (width,), jnp.float32, -bound, bound),
        }
        if norm and number < len(sizes) - 2:
            layer |= {"scale": jnp.ones(width), "shift": jnp.zeros(width)}
        layers.append(layer)
    return layers


def _mlp(layers: Tree, x: jax.Array) -> jax.Array:
    for layer in layers[:-1]:
        x = jax.nn.gelu(x @ layer["weight"] + layer["bias"], approximate=False)
        if "scale" in layer:
            mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
            x = (x - mean) * jax.lax.rsqrt(variance + 1e-5) * layer["scale"] + layer["shift"]
    return x @ layers[-1]["weight"] + layers[-1]["bias"]


def _act(actor: Tree, obs: jax.Array, eps: jax.Array) -> jax.Array:
    zero = jnp.zeros_like(obs[:, :1])
    return jnp.clip(eps + _mlp(actor, jnp.concatenate([obs, eps, zero, zero + 1.0], -1)), -1.0, 1.0)


def _values(critics: Tree, obs: jax.Array, actions: jax.Array) -> jax.Array:
    x = jnp.concatenate([obs, actions], -1)
    return jnp.stack([_mlp(critic, x)[:, 0] for critic in critics])


def _critic_loss(critics: Tree, targets: Tree, setting: Setting, batch: Tree, noise: Tree) -> jax.Array:
    next_actions = _act(targets["actor"], batch["next_obs"], noise["eps_next"])
    next_value = _values(targets["critics"], batch["next_obs"], next_actions).mean(0)
    target = jax.lax.stop_gradient(batch["rewards"] + setting.gamma * batch["mask"] * next_value)
    return ((_values(critics, batch["obs"], batch["actions"]) - target) ** 2).mean(-1).sum()


def _actor_loss(actor: Tree, critics: Tree, setting: Setting, batch: Tree, noise: Tree) -> jax.Array:
    obs, eps = batch["obs"], noise["eps"]
    r, t = noise["times"][:, :1], noise["times"][:, 1:]
    velocity = batch["actions"] - eps
    a_r = eps + r * velocity

    def u(a: jax.Array, r: jax.Array) -> jax.Array:
        return _mlp(actor, jnp.concatenate([obs, a, r, t], -1))

    if setting.exact:
        mean_velocity, du_dr = jax.jvp(u, (a_r, r), (velocity, jnp.ones_like(r)))
        target = velocity - (r - t) * du_dr
    else:
        mean_velocity, target = u(a_r, r), velocity
    square = ((mean_velocity - jax.lax.stop_gradient(target)) ** 2).sum(-1)
    behavior = (square * jax.lax.stop_gradient(square + 1e-3) ** -setting.adaptive_power).mean()
    actions = _act(actor, obs, noise["eps_policy"])
    value, slope = jax.value_and_grad(lambda a: _values(critics, obs, a).mean())(jax.lax.stop_gradient(actions))
    pull = setting.eta * (slope / jnp.sqrt(len(slope) * (slope**2).sum()) * actions).sum()
    return (
        behavior - pull - jax.lax.stop_gradient(setting.eta * value - pull)
    )  # its value is eta Q, its gradient the pull


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def update(setting: Setting, state: Tree, batch: Tree, noise: Tree) -> tuple[Tree, Tree]:
    """One update of one agent: the new state and both losses."""
    nets, targets = state["nets"], state["targets"]
    count = state["count"] + 1
    critic_loss, gradient = jax.value_and_grad(_critic_loss)(nets["critics"], targets, setting, batch, noise)
    critics, first_c, second_c = _adam(setting, count, nets, state, "critics", gradient)
    actor_loss, gradient = jax.value_and_grad(_actor_loss)(nets["actor"], critics, setting, batch, noise)
    actor, first_a, second_a = _adam(setting, count, nets, state, "actor", gradient)
    nets = {"actor": actor, "critics": critics}
    targets = jax.tree.map(lambda slow, fast: slow + setting.rho * (fast - slow), targets, nets)
    return {
        "nets": nets,
        "targets": targets,
        "first": {"actor": first_a, "critics": first_c},
        "second": {"actor": second_a, "critics": second_c},
        "count": count,
    }, (critic_loss, actor_loss)


def _adam(setting: Setting, count: Tree, nets: Tree, state: Tree, name: str, gradient: Tree) -> tuple[Tree, Tree, Tree]:
    first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, state["first"][name], gradient)
    second = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, state["second"][name], gradient)
    correction, size = jnp.sqrt(1.0 - 0.999**count), setting.learning_rate / (1.0 - 0.9**count)

    def step(weight: jax.Array, m: jax.Array, v: jax.Array) -> jax.Array:
        return weight - size * m / (jnp.sqrt(v) / correction + 1e-8)

    return jax.tree.map(step, nets[name], first, second), first, second


@functools.partial(jax.jit, static_argnums=(0, 1))
def _draw(setting: Setting, index: int, data: Tree, key: Tree) -> tuple[Tree, Tree]:
    """Batch and noise of one agent; all agents of a team see the same rows for the same key."""
    size = setting.batch_size
    rows = jax.random.randint(key, (size,), 0, len(data["rewards"]))
    names = ("eps", "eps_policy", "eps_next")
    keys = jax.random.split(jax.random.fold_in(key, index), len(names) + 2)
    noise = {name: jax.random.normal(k, (size, setting.act_dim)) for name, k in zip(names, keys, strict=False)}
    times = jnp.sort(jax.random.uniform(keys[-2], (size, 2)), -1)
    together = jax.random.uniform(keys[-1], (size,)) < setting.equal_share
    noise["times"] = times.at[:, 0].set(jnp.where(together, times[:, 1], times[:, 0]))
    return {name: values[rows, index] for name, values in data.items()}, noise


class JaxTeam:
    """All agents, one after the other.

    Args:
        setting: sizes and options.
        data: obs and next_obs [M, N, O], actions [M, N, A], rewards and mask [M, N].
    """

    def __init__(self, setting: Setting, data: Mapping[str, np.ndarray]):
        self.setting = setting
        self._data = {name: jnp.asarray(values) for name, values in data.items()}
        self._states = [initial(setting, index) for index in range(setting.agents)]
        self._key = jax.random.key(0)

    def update(self) -> Tree:
        """One update of every agent."""
        self._key, key = jax.random.split(self._key)
        losses = None
        with jax.default_matmul_precision("highest"):  # on a GPU JAX takes TF32 unasked
            for index in range(self.setting.agents):
                batch, noise = _draw(self.setting, index, self._data, key)
                self._states[index], losses = update(self.setting, self._states[index], batch, noise)
        return losses

    def wait(self) -> None:
        """Return when all that was asked for is done."""
        jax.block_until_ready(self._states)
