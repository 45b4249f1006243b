"""Worlds, behaviour policies and Minari data sets for offline multi-agent reinforcement learning."""

__version__ = "0.1.0"
