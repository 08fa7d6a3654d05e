"""Whether a training step updates its arrays tile by tile, and what is said where it cannot."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import jax

from .._core import pytrees
from .._core.transformation import data_of
from .._core.wrapper import Wrapper
from ..transforms import precision
from .settings import Settings
from .state import TrainState


def check_tiles(tiles: Any) -> None:
    """Raises a TypeError for what does not say whether to use tiles."""
    if tiles is None or isinstance(tiles, bool) or hasattr(tiles, "rows_of_a_tile"):
        return
    raise TypeError(
        f"tiles={tiles!r:.100} must be True, False, or None for tiles where they have been run on such a "
        "device."
    )


def platform_of(array: Any, tiles: Any) -> str:
    """For which platform, as JAX names it, kernels for tiles are to be; "" where there are to be none.

    Where nobody says whether to use tiles, they are used where they have been run: on one GPU of NVIDIA's.

    array: of the training state.
    """
    if tiles is False:
        return ""
    devices = getattr(getattr(array, "sharding", None), "device_set", None)
    if not devices:  # Of a tracer, or a number of NumPy.
        return "" if tiles is None else jax.default_backend()
    device = next(iter(devices))
    if tiles is not None:
        return device.platform
    have_run = len(devices) == 1 and device.platform == "gpu" and "NVIDIA" in device.device_kind
    return device.platform if have_run else ""


def backend_of(settings: Settings, platform: str, state: TrainState) -> Any:
    """What compiles kernels for the tiles of a step; None for whole arrays.

    Warns, once, where tiles are asked for and cannot be.

    platform: as `platform_of` gives it.
    """
    if not platform:
        return None
    if (reason := _why_not(settings, state)) is None:
        if hasattr(settings.tiles, "rows_of_a_tile"):  # For tests, and to compile ahead of time.
            return settings.tiles
        from .._core.tiles.backends import backend_for

        if (backend := backend_for(platform)) is not None:
            return dataclasses.replace(backend, tells=settings.tiles is not None)
        reason = f"there are no kernels for the platform {platform!r}, only for GPUs and TPUs"
    if settings.tiles is not None and "tiles" not in settings.told:
        settings.told.append("tiles")
        warnings.warn(
            f"tiles={settings.tiles!r} has no effect, whole arrays are updated: {reason}.",
            stacklevel=2,
        )
    return None


def _why_not(settings: Settings, state: TrainState) -> str | None:
    """What of a step needs all updates before any of them is added."""
    if settings.skips(state):
        what = "skip_nonfinite=True" if settings.skip_nonfinite else "a LossScale"
        return f"with {what} all updates are looked at before any is added"
    needed = [
        each for each in ("update_norm", "update_ratio", "nonfinite") if each in settings.metrics
    ]
    if needed:
        return f"the metric {needed[0]!r} is one of all updates"
    last = data_of(state.tx)
    while isinstance(last, Wrapper) and hasattr(last, "update_and_add"):
        last = data_of(last.wrapped()[-1])
    if not hasattr(last, "update_and_add"):
        return (
            f"{state.tx!r:.200} does not end with an optimizer of this library, alone, in a chain or in "
            "compensate: these add their updates"
        )
    for path, param in jax.tree_util.tree_leaves_with_path(state.params):
        if precision.is_coarse(getattr(param, "dtype", None) or float):
            name = jax.tree_util.keystr(path) or "the root"
            return f"the parameter at {name} is {pytrees.describe(param)}, of 8 bits or less"
    return None
