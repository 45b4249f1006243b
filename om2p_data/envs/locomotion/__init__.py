"""Locomotion worlds: one MuJoCo body whose joints are shared out among agents, many copies stepped together.

The tasks are those of Gymnasium-Robotics' MAMuJoCo (`mamujoco_v1`), step for step, on the body models of the installed
gymnasium package.
"""

from om2p_data.envs.locomotion.env import LocomotionEnv, replay

__all__ = ["LocomotionEnv", "replay"]
