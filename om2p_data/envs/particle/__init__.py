"""The three particle worlds as compiled batched loops."""

from om2p_data.envs.particle.env import SCENARIOS, ParticleEnv, replay
from om2p_data.envs.particle.prey import NetworkPrey, Prey, bundled_prey

__all__ = ["SCENARIOS", "NetworkPrey", "ParticleEnv", "Prey", "bundled_prey", "replay"]
