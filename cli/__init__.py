"""Command lines of om2p-data and om2p-train (installed as om2p_cli)."""
