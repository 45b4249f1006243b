"""Offline multi-agent learning from Minari data sets: OM2P and its baselines."""

from om2p_train.policy import TeamPolicy, load_policy

__all__ = ["TeamPolicy", "load_policy"]
