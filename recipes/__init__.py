"""Recipes in TOML (installed as om2p_recipes): one file a task for data, one file an algorithm for training."""
