"""Worlds by name: batched (`make`) and as PettingZoo parallel environments (`parallel_env`)."""
