"""Saving a run while it goes on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..._core import arguments
from .. import versions
from ..agreement import together
from ..origin import of
from .clock import Clock
from .entries import check_at_hand, entries_of, is_number, kind_of, plain
from .folder import check_order, opened, orbax_checkpoint, remember, was_restored
from .memories import ITEM, memories_of, restored


class Checkpoints:
    """Where and how often `fit` saves a run: `fit(…, checkpoints=aj.Checkpoints(directory, every=1000))`.

    Each checkpoint is whole or not at all, as `save_checkpoint` makes it, and is written in the background
    while the next steps are taken. `fit` saves at the end as well, also where Ctrl-C or a cluster that
    takes a machine away ends it, and where an error does, in the batches, the callback or an evaluation,
    or `sys.exit`: that state is whole, and the newest. Not saved are a state that is lost, as after a
    step that failed while it ran; one that a `skip_nonfinite` has stopped, which could not go on; that of
    a second Ctrl-C, which does not wait; and, of several processes, that of an error, which the others
    may not have reached. `restore_checkpoint` goes on with the newest. Several processes save
    together, each its part, in a folder that all of them see.

    In a loop of one's own: `with aj.Checkpoints(directory) as checkpoints:`, and `checkpoints.save(state)`.

    Args:
      directory: the folder of the run; it is made. A checkpoint is in its subfolder `step`.
      every: after how many steps to save, counted by the state's `step`; None for no number.
      minutes: after how many minutes to save. By the clock of process 0, at the same step in all; None
        for no time.
      keep: how many of the newest checkpoints to keep; None for all.
      background: False to wait for each one to be written.

    Raises:
      ImportError: without Orbax.
      TypeError: for what is no path.
      ValueError: for numbers that are none.

    Example:
      >>> import adaptive_jax as aj, jax.numpy as jnp, tempfile
      >>> step = aj.train_step(lambda params, batch: (params - batch) ** 2)
      >>> start = aj.TrainState.create(jnp.array(0.0), aj.sgd(0.25))
      >>> with tempfile.TemporaryDirectory() as directory:
      ...     checkpoints = aj.Checkpoints(directory, every=2)
      ...     state, _ = aj.fit(start, step, [1.0, 1.0, 1.0], checkpoints=checkpoints)
      ...     again = aj.restore_checkpoint(directory, state, step=2)
      >>> print(state.params, again.params)
      0.875 0.75
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        every: int | None = None,
        minutes: float | None = None,
        keep: int | None = None,
        background: bool = True,
    ) -> None:
        self._orbax = orbax_checkpoint()
        check_order("Checkpoints", directory)
        self.directory = Path(directory).expanduser()
        self.every = None if every is None else arguments.whole("every", every, 1)
        if minutes is not None:
            arguments.number("minutes", minutes, 0)
        self.minutes = minutes
        self.keep = None if keep is None else arguments.whole("keep", keep, 1)
        self.background = background
        self._manager: Any = None
        self._last: int | None = None
        self._clock = Clock(minutes)

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, error: object, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        given = f"every={self.every}, minutes={self.minutes}, keep={self.keep}"
        return f"Checkpoints({str(self.directory)!r}, {given}, background={self.background})"

    def save(self, state: Any, *, step: int | None = None, callbacks: Sequence[Any] = ()) -> None:
        """Saves a `TrainState`, or any other pytree of arrays and numbers.

        The arrays are copied before it returns; a step may write over them. What went wrong with the
        checkpoint before is raised now.

        Args:
          state: what to save.
          step: the number of the step; None for that of a `TrainState`.
          callbacks: each an `aj.Callback`, whose `to_save()` is saved too.

        Raises:
          ValueError: for a step that is missing, or that has been saved already, and what is no number.
          TypeError: for what a callback wants to be saved, and cannot be.
        """
        with together("save_checkpoint"):
            step = _step_of(state) if step is None else arguments.whole("step", step, 0)
            entries = entries_of(state)
            check_at_hand(entries)
            self._check_number(step)
            memories, arrays_of_callbacks = memories_of(callbacks)
        manager = self._opened()
        self.wait()
        made_by = of(state)
        layout = {
            "entries": {name: kind_of(leaf) for name, leaf in entries.items()},
            "numbers": {name: leaf for name, leaf in entries.items() if is_number(leaf)},
            "rules": [rule["rule"] for rule in made_by["rules"]],
            "origin": made_by,
            "version": versions.LAYOUT,
            **({"callbacks": memories} if memories else {}),
        }
        # Orbax saves no arrays without elements, and needs none.
        arrays = {name: plain(leaf) for name, leaf in entries.items() if np.size(leaf)}
        args = self._orbax.args
        items = {"state": args.StandardSave(arrays), "layout": args.JsonSave(layout)}
        if arrays_of_callbacks:
            items[ITEM] = args.StandardSave(arrays_of_callbacks)
        manager.save(step, args=args.Composite(**items))
        self._last = step
        if not self.background:
            self.wait()

    def wait(self) -> None:
        """Waits until what was saved is written. What went wrong in the background is raised."""
        if self._manager is None:
            return
        self._manager.wait_until_finished()
        self._manager.check_for_errors()
        if self._last is not None:
            remember(self.directory / str(self._last))

    def close(self) -> None:
        """Waits, and lets go of the folder. It may be saved to again."""
        if self._manager is not None:
            self.wait()
            self._manager.close()
            self._manager = None

    def is_due(self, step: int) -> bool:
        """Whether a loop is to save after this step, which the clock decides for all processes alike."""
        by_clock = self._clock.is_due()
        return by_clock or (self.every is not None and step % self.every == 0)

    def has(self, step: int) -> bool:
        """Whether there is a checkpoint of a step, one that is being written included."""
        return step in self._steps()

    def start(self, step: int) -> None:
        """Begins with a loop that goes on from a step, which may have been saved, but no later one.

        Raises:
          ValueError: for later ones, which would be those of another run.
        """
        with together("fit"):
            if newer := sorted(each for each in self._steps() if each > step):
                raise ValueError(
                    f"{self.directory} has the later steps {newer}, and the state is of step {step}. Go on "
                    "from the newest, aj.restore_checkpoint(directory, state), or give each run a folder "
                    "of its own."
                )
        self._clock.start()

    def memories(self, step: int) -> Mapping[str, Any]:
        """What the callbacks remembered at a step that the state was restored of, by their names.

        Nothing where this process saved that step itself: its callbacks are as they are.
        """
        if not was_restored(self.directory / str(step)):
            return {}
        args = self._orbax.args
        manager = self._opened()
        layout = manager.restore(step, args=args.Composite(layout=args.JsonRestore()))["layout"]
        return restored(self._orbax, manager, step, layout.get("callbacks", {}))

    def _opened(self) -> Any:
        if self._manager is None:
            self._manager = opened(
                self._orbax, self.directory, self.keep, in_background=self.background
            )
        return self._manager

    def _steps(self) -> list[int]:
        """Those that are there, without a look at Orbax, which asks the other processes."""
        if self._manager is not None:
            return list(self._manager.all_steps())
        if not self.directory.is_dir():
            return []
        return list(self._orbax.utils.checkpoint_steps(self.directory.absolute()))

    def _check_number(self, step: int) -> None:
        steps = self._steps()
        if step in steps:
            raise ValueError(
                f"{self.directory / str(step)} is there already: it is not overwritten. Give another "
                "step, or each run a folder of its own."
            )
        newer = sorted(each for each in steps if each > step)
        if self.keep is not None and len(newer) >= self.keep:
            raise ValueError(
                f"{self.directory} has the later steps {newer}, and keep={self.keep} would delete step "
                f"{step} at once. Are they of another run? Give each run a folder of its own."
            )


def _step_of(state: Any) -> int:
    """The number of a state's step."""
    if not hasattr(state, "step"):
        raise ValueError("step is missing: only a TrainState knows its own.")
    if np.ndim(state.step):
        raise ValueError(
            f"step is missing: the state is one of many runs, whose steps are {state.step!r:.80}. Give "
            "one, step=…."
        )
    return arguments.whole("step", state.step, 0)
