"""A training step as the user gives it, and what it must return."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from .returned import outlined
from .state import TrainState
from .step import TrainStep


def checked_step(caller: str, state: Any, step: Any) -> Callable[[Any, Any], tuple[Any, Any]]:
    """The step; one that `train_step` did not make is looked at when it is called.

    caller: the function that was given it.
    """
    if isinstance(state, TrainStep) or isinstance(step, TrainState):
        raise TypeError(
            f"state={state!r:.80} and step={step!r:.80} are in the wrong order: call "
            f"{caller}(state, step, batches)."
        )
    if not callable(step):
        raise TypeError(
            f"step={step!r:.200} must be a function of a state and a batch, such as aj.train_step "
            f"returns: call {caller}(state, step, batches)."
        )
    if isinstance(step, TrainStep):
        return step
    name = getattr(step, "__name__", f"{step!r:.80}")
    advice = (
        "It must return the new state and a dict of metrics. If it is a loss function, make a step of "
        "it: aj.train_step(loss_fn)."
    )

    def checked(old: Any, batch: Any) -> tuple[Any, Any]:
        try:
            result: Any = step(old, batch)
        except Exception as error:
            # As Python and JAX name a type, where a loss takes the state for the parameters.
            if not re.search(r"'(adaptive_jax\.[\w.]*)?TrainState'", str(error)):
                raise
            raise TypeError(
                f"step={name} was called with the state and a batch, and failed: "
                f"{type(error).__name__}: {error}. {advice}"
            ) from error
        is_pair = isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], Mapping)
        if not is_pair or (isinstance(old, TrainState) and not isinstance(result[0], TrainState)):
            raise TypeError(f"step={name} returned {outlined(result)}. {advice}")
        return result

    return checked
