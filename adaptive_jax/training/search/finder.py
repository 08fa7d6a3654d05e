"""The learning rate to start with: short runs from one state, with many rates at once."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..._core import arguments
from ..arrays import is_used_up
from ..processes import apart, on_this_host
from ..rates import rate_setter
from ..state import TrainState
from . import runs
from .sweeps import sweep


def find_learning_rate(
    state: TrainState,
    step: Callable[[TrainState, Any], tuple[TrainState, dict[str, Any]]],
    batches: Iterable[Any],
    *,
    steps: int | None = None,
    rates: Any = None,
    evaluate: Callable[[Any], Any] | None = None,
    batch_size: int | None = None,
    memory: float | None = None,
    progress: bool | None = None,
) -> LearningRates:
    """Trains from this state with every learning rate, for a few steps, and suggests one of them.

        η = the rate with the lowest loss at the end, and at most half of the lowest one above that fails

    A rate fails where the loss is lost, or is above that of the parameters that are not moved at all. Half
    of it is what a quadratic loss is quickest with: from 2/λ on it diverges, at 1/λ it is there in one
    step along its steepest axis. `aj.sharpness` measures λ.

    All rates are one compiled call, as in `sweep`, from the same state and on the same batches, so that
    they differ in nothing else; other than in a run whose rate grows, none starts from what a smaller one
    has reached. The state is not used up. A few steps favour rates that get down quickly: after some
    hundred, or with a schedule that ends at 0, a rate two or three times as large may do better, and
    where gradients are noise for the most part, a smaller one.

    Smith 2017, https://arxiv.org/abs/1506.01186, where one run goes through all rates.

    Args:
      state: what to start from: a new `TrainState`, or one of a run. A schedule in its optimizer gives way
        to each rate, for all steps: what is found is the peak for it. Where arrays have different rates,
        they keep their proportions, and the largest one is set. It may be divided over devices, also of
        several processes; each run is on one device, which must have room for the whole of it.
      step: what `train_step` returns.
      batches: one batch for each step: 20 to 100. The same one many times is a loss without noise.
      steps: how many of the batches to take; None for all.
      rates: the learning rates to try, above 0; None for 29 from 1e-6 to 10, four to a decade.
      evaluate: a function of the parameters, such as the loss of held-out data: what is judged is its
        value after the last step, at the parameters to evaluate with. None to judge the losses of the
        last quarter of the steps.
      batch_size: how many runs at a time; None for as many as `memory` holds.
      memory: bytes per device to stay within; None for three quarters of what is free.
      progress: True for a progress bar, False for none; None for one where tqdm is installed and the
        output is a terminal.

    Returns:
      `LearningRates`: `.suggestion`, `.reason`, `.plot()`, and all losses.

    Raises:
      TypeError: for what is no state.
      ValueError: for a state that was used up by a step, an optimizer without a learning rate that can be
        set, rates that are not above 0, fewer than two batches, and a step that does not measure the loss.

    Example:
      >>> import adaptive_jax as aj, jax.numpy as jnp
      >>> step = aj.train_step(lambda w, batch: jnp.sum(jnp.array([1.0, 10.0]) * w**2) / 2)
      >>> state = aj.TrainState.create(jnp.ones(2), aj.sgd(1.0))
      >>> found = aj.find_learning_rate(state, step, [0.0] * 20, rates=[0.01, 0.03, 0.1, 0.3])
      >>> found.suggestion
      0.1
      >>> print(found.reason)  # doctest: +NORMALIZE_WHITESPACE
      Of the 4 rates, the loss after 20 steps is lowest with 0.1: 0.0145, and 5.5 without a step. From 0.3
      on it is higher than that, or lost.
    """
    _check_state(state)
    every = list(itertools.islice(batches, _count(steps)))
    if len(every) < 2 or (steps is not None and len(every) < steps):
        raise ValueError(
            f"the batches ended after {len(every)}, and steps={steps}: give as many as there are to be "
            "steps, and two or more. A loss is measured before its step, so that of the first one is the "
            "same with every rate."
        )
    leaves, treedef = jax.tree.flatten(every)
    every = treedef.unflatten(on_this_host(leaves))
    tried, state = _checked_rates(rates), apart(state)
    set_rate = rate_setter(state.tx, state.opt_state)

    def start(learning_rate: Any) -> TrainState:
        return state.replace(tx=set_rate(learning_rate))

    last = max(1, len(every) // 4)
    result = sweep(
        start,
        step=step,
        batches=every,
        evaluate=evaluate,
        objective=runs.EVALUATION if evaluate else _LossAtTheEnd(last),
        batch_size=batch_size,
        memory=memory,
        progress=progress,
        learning_rate=np.concatenate([[0.0], tried]),  # Of 0: what no step at all comes to.
    )
    objective = result.objective[:, 0].astype(np.float64)
    curves = result.outputs.get("loss")
    losses = np.full((len(tried) + 1, 0), np.nan) if curves is None else curves[:, 0]
    name = "evaluation" if evaluate else "loss"
    return LearningRates(tried, losses[1:], objective[1:], float(objective[0]), len(every), name)


@dataclass(frozen=True, repr=False, eq=False)
class LearningRates:
    """What `find_learning_rate` returns: the learning rates, what each came to, and which to take.

    rates: the learning rates that were tried, ascending, of shape (rates,).
    losses: the loss before each step, of shape (rates, steps).
    objective: what the rates are judged by, of shape (rates,): the mean loss of the last quarter of the
      steps, or the evaluation after the last one. NaN or inf where it was lost.
    unmoved: the same on the same batches for parameters that do not move.
    steps: how many steps were taken.
    name: what the objective is called.
    """

    rates: np.ndarray
    losses: np.ndarray
    objective: np.ndarray
    unmoved: float
    steps: int
    name: str = "loss"

    @property
    def failed(self) -> np.ndarray:
        """Of each rate, whether the loss was lost on the way or ended above that of unmoved parameters."""
        lost = ~np.isfinite(self.objective) | ~np.isfinite(self.losses).all(axis=1)
        return lost | ~(np.where(lost, np.inf, self.objective) <= self.unmoved)

    @property
    def limit(self) -> float | None:
        """The lowest rate above the best one that fails; None where none does."""
        best = self._best()
        above = self.rates[best:][self.failed[best:]]
        return float(above[0]) if len(above) else None

    @property
    def suggestion(self) -> float:
        """The learning rate to take.

        Raises:
          ValueError: if no rate lowers the loss.
        """
        return float(self.rates[self._suggested()])

    def _best(self) -> int:
        found = np.where(self.failed, np.inf, self.objective)
        best = int(np.argmin(found))
        if not found[best] < self.unmoved:
            raise ValueError(
                f"none of the {len(self.rates)} learning rates from {self.rates[0]:.3g} to "
                f"{self.rates[-1]:.3g} lowers the {self.name} in {self.steps} steps, which is "
                f"{self.unmoved:.3g} without a step, and {found[best]:.3g} at best. Is it a minimum "
                "already, are there gradients at all, is the loss the same for all parameters?"
            )
        return best

    def _suggested(self) -> int:
        best, limit = self._best(), self.limit
        if limit is None:
            return best
        below = np.flatnonzero((self.rates <= limit / 2) & ~self.failed)
        # Rates that lie far apart may have none below half of the limit that does anything.
        below = below[self.objective[below] < self.unmoved]
        return best if not len(below) else min(best, int(below[-1]))

    @property
    def reason(self) -> str:
        """Why it is this one, in a sentence or two."""
        best, chosen, limit = self._best(), self._suggested(), self.limit
        text = (
            f"Of the {len(self.rates)} rates, the {self.name} after {self.steps} steps is lowest with "
            f"{self.rates[best]:.3g}: {self.objective[best]:.3g}, and {self.unmoved:.3g} without a step."
        )
        if limit is not None:
            text += f" From {limit:.3g} on it is higher than that, or lost."
        elif best == len(self.rates) - 1:
            text += " It is the highest that was tried: try higher ones."
        if best == 0:
            text += " It is the lowest that was tried: try lower ones."
        if chosen != best:
            text += (
                f" {self.rates[chosen]:.3g} is the largest rate up to half of that, and comes to "
                f"{self.objective[chosen]:.3g}."
            )
        return text

    def __repr__(self) -> str:
        try:
            return f"learning rate {self.suggestion:.3g}. {self.reason}"
        except ValueError as error:
            return f"no learning rate: {error}"

    def plot(self, *, sharpness: Any = None, ax: Any = None) -> Any:
        """The loss that each rate comes to, with what it is without a step, and the suggestion.

        sharpness: what `aj.sharpness` returned: the step size that it allows is marked as well.
        ax: matplotlib's Axes to draw into; None for new ones.

        Returns the Axes.
        """
        from ... import plotting

        if sharpness is not None and not hasattr(sharpness, "largest_learning_rate"):
            raise TypeError(f"sharpness={sharpness!r:.80} must be what aj.sharpness returned.")
        return plotting.learning_rates(
            self.rates,
            np.where(self.failed & ~np.isfinite(self.objective), np.inf, self.objective),
            unmoved=self.unmoved,
            suggestion=None if not np.any(self._lowers()) else self.suggestion,
            largest=None if sharpness is None else sharpness.largest_learning_rate,
            name=self.name,
            ax=ax,
        )

    def _lowers(self) -> np.ndarray:
        return ~self.failed & (self.objective < self.unmoved)


class _LossAtTheEnd:
    """The mean loss of the last steps, of what a run measures."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def __call__(self, metrics: Any) -> Any:
        if "loss" not in metrics:
            raise ValueError(
                f"the step measures {', '.join(metrics) or 'nothing'}, and a learning rate is judged by "
                'its "loss": make it with train_step(loss_fn, metrics=("loss",)), or give evaluate=.'
            )
        return jnp.mean(metrics["loss"][-self.steps :])


def _check_state(state: Any) -> None:
    if not isinstance(state, TrainState):
        raise TypeError(
            f"find_learning_rate takes a TrainState, got {state!r:.200} of type {type(state).__name__}: "
            "call find_learning_rate(state, step, batches), with TrainState.create(params, tx)."
        )
    if is_used_up(state):
        raise ValueError(
            "this state was used up by a step before, which wrote over its arrays: find a learning rate "
            "first, which leaves the state as it is, or give the state that the step returned."
        )


def _count(steps: Any) -> int | None:
    return None if steps is None else arguments.whole("steps", steps, 2)


def _checked_rates(rates: Any) -> np.ndarray:
    """The rates, ascending, each once."""
    if rates is None:
        return np.geomspace(1e-6, 10.0, 29)
    try:
        found = np.unique(np.asarray(rates, np.float64))
    except (TypeError, ValueError):
        found = np.zeros(0)
    if np.ndim(rates) != 1 or not len(found) or not (np.isfinite(found) & (found > 0)).all():
        raise ValueError(
            f"rates={rates!r:.200} must be learning rates above 0, one or more of them: "
            "jnp.geomspace(1e-4, 1, 20)."
        )
    return found
