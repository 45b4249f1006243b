"""The three particle worlds as compiled batched loops."""

from om2p_data.envs.particle.env import SCENARIOS, ParticleEnv, observed_states, replay
from om2p_data.envs.particle.prey import NetworkPrey, Prey, bundled_prey

__all__ = ["SCENARIOS", "NetworkPrey", "ParticleEnv", "Prey", "bundled_prey", "observed_states", "replay"]
