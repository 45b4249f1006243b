"""Offline multi-agent learning from Minari data sets: OM2P and its baselines."""
