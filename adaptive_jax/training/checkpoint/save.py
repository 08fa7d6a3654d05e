"""Saving a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .checkpoints import Checkpoints
from .folder import check_order, orbax_checkpoint


def save_checkpoint(
    directory: str | Path, state: Any, *, step: int | None = None, keep: int | None = None
) -> None:
    """Saves a `TrainState`, or any other pytree of arrays and numbers, in a folder of its step.

    Whole or not at all: a process that is killed while it saves leaves the older checkpoints as they
    are. What is saved are arrays and numbers, hyperparameters among them. Functions, such as schedules,
    are code, and come from `restore_checkpoint`'s argument; what made them is written down, so that
    other ones are noticed.

    Args:
      directory: the folder of the run; it is made. The checkpoint is in its subfolder `step`.
      state: what to save.
      step: the number of the step; None for that of a `TrainState`.
      keep: how many of the newest checkpoints to keep; None for all.

    Raises:
      ImportError: without Orbax.
      ValueError: for a step that is missing, or that has been saved already, and what is no number.

    Example:
      >>> import adaptive_jax as aj, jax, jax.numpy as jnp, tempfile
      >>> state = aj.TrainState.create({"w": jnp.ones(3)}, aj.adam(1e-3))
      >>> with tempfile.TemporaryDirectory() as directory:
      ...     aj.save_checkpoint(directory, state)
      ...     again = aj.restore_checkpoint(directory, state)
      >>> print(again.params["w"], again.tx)
      [1. 1. 1.] adam(learning_rate=0.001, b1=0.9, b2=0.999, eps=1e-08, eps_root=0.0)
    """
    orbax_checkpoint()
    check_order("save_checkpoint", directory)
    with Checkpoints(directory, keep=keep, background=False) as checkpoints:
        checkpoints.save(state, step=step)
