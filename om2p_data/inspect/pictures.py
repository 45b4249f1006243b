"""Episodes as moving pictures: played, and written as GIF or MP4."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType

import numpy as np
from PIL import Image

from om2p_data.envs import parallel_env
from om2p_data.errors import UserError, unknown

FRAMES_PER_SECOND = 10

Act = Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]


def play(name: str, act: Act, *, seed: int, max_steps: int | None = None) -> tuple[list[np.ndarray], float]:
    """Play one episode of a task and draw it.

    Args:
        name: task.
        act: observations by agent -> actions by agent.
        seed: of the world.
        max_steps: stop after this many steps; by default the episode is played to its end.

    Returns:
        Pictures uint8 [height, width, 3], the start included, and the team return of the steps played.
    """
    env = parallel_env(name, render_mode="rgb_array")
    try:
        obs, _ = env.reset(seed=seed)
        frames = [_picture(env.render())]
        team_return = 0.0
        while env.agents and (max_steps is None or len(frames) <= max_steps):
            obs, rewards, *_ = env.step(dict(act(obs)))
            team_return += float(np.mean(list(rewards.values())))
            frames.append(_picture(env.render()))
    finally:
        env.close()
    return frames, team_return


def save_gif(frames: list[np.ndarray], path: Path, fps: int = FRAMES_PER_SECOND) -> None:
    """Write pictures as an endless GIF; all frames share one palette, so that nothing flickers.

    Raises:
        UserError: the file cannot be written.
    """
    palette = Image.fromarray(np.concatenate(frames[:: max(1, len(frames) // 8)])).quantize(256)
    images = [Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        images[0].save(
            path, format="GIF", save_all=True, append_images=images[1:], duration=1000 // fps, loop=0, optimize=False
        )
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


def writer_of(path: Path) -> Callable[[list[np.ndarray], Path, int], None]:
    """What writes pictures to a file of that name, `(frames, path, frames per second)`.

    Raises:
        UserError: the name ends neither in .gif nor in .mp4, or there is nothing to write MP4 with.
    """
    writers = {".gif": save_gif, ".mp4": save_mp4}
    try:
        found = writers[path.suffix.lower()]
    except KeyError:
        raise unknown("picture format", path.suffix, writers) from None
    if found is save_mp4:
        _ffmpeg()
    return found


def save_mp4(frames: list[np.ndarray], path: Path, fps: int = FRAMES_PER_SECOND) -> None:
    """Write pictures as an H.264 video, which needs ffmpeg.

    Raises:
        UserError: there is no ffmpeg, or the file cannot be written.
    """
    ffmpeg = _ffmpeg()
    height, width = frames[0].shape[:2]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("ab").close()  # a folder that cannot be written is said in one line here, by ffmpeg in many
        # Even sizes are all that the usual colour format asks for.
        writer = ffmpeg.write_frames(str(path), (width, height), fps=fps, macro_block_size=2, ffmpeg_log_level="error")
        writer.send(None)
        for frame in frames:
            writer.send(np.ascontiguousarray(frame))
        writer.close()
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


def _ffmpeg() -> ModuleType:
    try:
        import imageio_ffmpeg

        imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError):
        raise UserError(
            "MP4 needs ffmpeg, which pip install imageio-ffmpeg brings; GIF needs nothing: end the name in .gif"
        ) from None
    return imageio_ffmpeg


def _picture(frame: np.ndarray | None) -> np.ndarray:
    if frame is None:
        raise UserError("the environment was made without render_mode='rgb_array'")
    return frame
