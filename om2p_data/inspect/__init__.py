"""Looking at teams and their data: moving pictures, statistics, figures, reports."""

from om2p_data.inspect.pictures import play, save_gif

__all__ = ["play", "save_gif"]
