"""The three particle worlds as compiled batched loops."""

from om2p_data.envs.particle.env import SCENARIOS, ParticleEnv, observed_states, replay
from om2p_data.envs.particle.moves import DiscreteParticleEnv, moved
from om2p_data.envs.particle.prey import NetworkPrey, Prey, bundled_prey

__all__ = [
    "SCENARIOS",
    "DiscreteParticleEnv",
    "NetworkPrey",
    "ParticleEnv",
    "Prey",
    "bundled_prey",
    "moved",
    "observed_states",
    "replay",
]
