"""The three particle worlds as compiled batched loops."""

from om2p_data.envs.particle.env import SCENARIOS, ParticleEnv, replay
from om2p_data.envs.particle.prey import Prey, ScriptedPrey

__all__ = ["SCENARIOS", "ParticleEnv", "Prey", "ScriptedPrey", "replay"]
