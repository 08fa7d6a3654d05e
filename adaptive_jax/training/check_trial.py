"""Runs of a few steps from copies of a state, with updates that are multiplied by a number."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._core.transformation import Transformation
from .rates import learning_rates
from .state import TrainState
from .watch import Watch, seen_at_first


@dataclass(frozen=True)
class Run:
    """What the steps with the given rates came to.

    rates: the learning rate of each step; empty where it is not known.
    losses: the loss of each step.
    seen: what the optimizer remembers of each array.
    after: the parameters after the last step.
    skipped: how many steps were skipped.
    """

    rates: list[float]
    losses: np.ndarray
    seen: Any
    after: Any
    skipped: int

    @property
    def has_moved(self) -> bool:
        """Whether an update was not 0."""
        return bool(np.any(self.seen.has_update))


class Trial:
    """Runs from copies of a state, with updates that are multiplied by a number: one program for all."""

    def __init__(self, state: TrainState, step: Any, batches: list[Any]) -> None:
        self._state, self._step, self._batches = state, step, batches

    def first_run(self) -> Run:
        """With the rates as they are."""
        state, rates = self._state, []

        def look(now: TrainState) -> None:
            inner = now.opt_state.inner_state
            known, unknown = learning_rates(state.tx, inner, inner)
            if unknown is None:
                rates.append(known["learning_rate"])

        last, losses = self._run(1.0, look)
        seen = last.opt_state._replace(inner_state=None)
        small = jax.device_get(seen._replace(total=None))
        return Run(
            [float(rate) for rate in jax.device_get(rates)],
            losses,
            small._replace(total=seen.total),
            last.params,
            0 if state.skipped is None else int(last.skipped) - int(state.skipped),
        )

    def level(self, factor: float) -> float:
        """What the loss comes to with rates that are multiplied by a number."""
        return level_of(self._run(factor, lambda state: None)[1])

    def _run(
        self, factor: float, look: Callable[[TrainState], Any]
    ) -> tuple[TrainState, np.ndarray]:
        """The last state, and the loss of each step."""
        watched = self._state.replace(
            tx=Transformation.of(Watch(self._state.tx, jnp.float32(factor))),
            opt_state=seen_at_first(self._state.params, self._state.opt_state),
        )
        state = jax.tree.map(lambda x: jnp.copy(x) if isinstance(x, jax.Array) else x, watched)
        losses = []
        for batch in self._batches:
            look(state)
            state, metrics = self._step(state, batch)
            if "loss" not in metrics:
                raise ValueError(
                    f"the step measures {', '.join(metrics) or 'nothing'}, and a training is judged by its "
                    '"loss": make it with train_step(loss_fn, metrics=("loss",)).'
                )
            losses.append(metrics["loss"])
        return state, np.array(jax.device_get(losses), np.float64)


def level_of(losses: np.ndarray) -> float:
    """The mean of the last quarter; inf where a loss was lost."""
    last = losses[-max(1, len(losses) // 4) :]
    return float(last.mean()) if np.isfinite(losses).all() else math.inf
