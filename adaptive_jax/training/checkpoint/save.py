"""Saving a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..._core import arguments
from .. import versions
from ..origin import of
from .entries import check_at_hand, entries_of, is_number, kind_of, plain
from .folder import check_order, opened, orbax_checkpoint, remember


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
    orbax = orbax_checkpoint()
    check_order("save_checkpoint", directory)
    if step is None:
        if not hasattr(state, "step"):
            raise ValueError("step is missing: only a TrainState knows its own.")
        step = state.step
        if np.ndim(state.step):
            raise ValueError(
                "step is missing: the state is one of many runs, whose steps are "
                f"{state.step!r:.80}. Give one, step=…."
            )
    step = arguments.whole("step", step, 0)
    keep = None if keep is None else arguments.whole("keep", keep, 1)
    entries = entries_of(state)
    check_at_hand(entries)
    origin = of(state)
    layout = {
        "entries": {name: kind_of(leaf) for name, leaf in entries.items()},
        "numbers": {name: leaf for name, leaf in entries.items() if is_number(leaf)},
        "rules": [rule["rule"] for rule in origin["rules"]],
        "origin": origin,
        "version": versions.LAYOUT,
    }
    # Orbax saves no arrays without elements, and needs none.
    arrays = {name: plain(leaf) for name, leaf in entries.items() if np.size(leaf)}
    with opened(orbax, directory, keep) as manager:
        steps = manager.all_steps()
        if step in steps:
            raise ValueError(
                f"{Path(directory) / str(step)} is there already: it is not overwritten. Give another "
                "step, or each run a folder of its own."
            )
        newer = sorted(each for each in steps if each > step)
        if keep is not None and len(newer) >= keep:
            raise ValueError(
                f"{directory} has the later steps {newer}, and keep={keep} would delete step {step} at "
                "once. Are they of another run? Give each run a folder of its own."
            )
        manager.save(
            step,
            args=orbax.args.Composite(
                state=orbax.args.StandardSave(arrays), layout=orbax.args.JsonSave(layout)
            ),
        )
    remember(Path(directory) / str(step))
