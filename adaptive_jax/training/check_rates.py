"""Whether a learning rate is far too high or too low, by runs with others."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .._core import hyper
from .._core.lifted import Lifted
from .._core.wrapper import walk
from ..transforms.parts import parts
from .check_trial import Run, Trial, level_of
from .state import TrainState

LOWER, HIGHER, HIGHEST = 0.1, 10.0, 30.0
"""By what the learning rate is multiplied, to see whether it is too high or too low."""

FAR = (100.0, *(10.0**i for i in range(3, 10)))
"""By what it is multiplied besides, where thirty times as much does not show it."""

SAME = 1e-3
"""So much of the loss is no change of it: roundings, where a rate moves next to nothing."""

CLEARLY = 0.1
"""So much of the loss is more than what a lucky batch makes of it."""

FURTHER = 3.0
"""How many times as far a rate ten times as high must get where the given one is too low."""


def of_rates(
    state: TrainState, trial: Trial, run: Run, losses: dict[float, float]
) -> Iterator[str]:
    """A learning rate that is ten times too high, or too low."""
    unmoved, lower = (trial.level(factor) for factor in (0.0, LOWER))
    own = level_of(run.losses)
    losses |= {0.0: unmoved, LOWER: lower, 1.0: own}
    if not math.isfinite(unmoved):
        return
    clearly = CLEARLY * abs(unmoved)
    rate = f"the learning rate {max(run.rates):.3g}" if run.rates else "this learning rate"
    steps = len(run.losses)
    if own - min(lower, unmoved) > clearly:
        if lower < unmoved:
            found, advice = f"with a tenth of it {lower:.3g}", "a tenth of it"
        else:
            found, advice = f"with a tenth of it {_shown(lower)} too", "a much lower one"
        yield (
            f"The learning rate is too high: with {rate} the loss is {_shown(own)} after {steps} steps, "
            f"{found}, and {unmoved:.3g} where nothing moves. Take {advice}: "
            "aj.find_learning_rate(state, step, batches) looks for one."
        )
        return
    to_peak = _to_peak(state, run)
    levels = {1.0: own} if to_peak == 1.0 else {1.0: trial.level(to_peak)}
    for factor in (HIGHER, HIGHEST):
        if not math.isfinite(levels[max(levels)]):
            return
        levels[factor] = trial.level(to_peak * factor)
    losses |= {to_peak * factor: level for factor, level in levels.items()}
    found = _first_far_better(levels, unmoved)
    if found is None and (run.rates or _has_one_rate(state.opt_state)):
        found = _from_far(levels, unmoved, lambda factor: trial.level(to_peak * factor))
    losses |= {to_peak * factor: level for factor, level in levels.items()}
    if found is None:
        return
    peak = " at its peak" if to_peak != 1.0 else ""
    own, higher, highest = levels[1.0], levels[HIGHER], levels[HIGHEST]
    if found == HIGHER:
        yield (
            f"The learning rate is too low{peak}: {rate} gets the loss in {steps} steps from "
            f"{unmoved:.3g} to {own:.3g}, ten times as much to {higher:.3g}, and thirty times to "
            f"{highest:.3g}. Take ten times as much: aj.find_learning_rate(state, step, batches) looks for "
            "one."
        )
        return
    hardly = "" if found == HIGHEST else f", and even thirty times as much to {highest:.3g}"
    yield (
        f"The learning rate is much too low{peak}: {rate} gets the loss in {steps} steps from "
        f"{unmoved:.3g} to {own:.3g}{hardly}; {found:.0f} times as much gets it to {levels[found]:.3g}. "
        "aj.find_learning_rate(state, step, batches) looks for one."
    )


def _first_far_better(levels: dict[float, float], unmoved: float) -> float | None:
    """Ten times as much, if that gets much further than the given rate, and thirty times further still."""
    own, higher, highest = levels[1.0], levels[HIGHER], levels[HIGHEST]
    is_better = own > higher > highest and _is_far_better(higher, own, unmoved)
    return HIGHER if is_better else None


def _from_far(
    levels: dict[float, float], unmoved: float, level: Callable[[float], float]
) -> float | None:
    """The smallest factor of thirty or more that gets much further, if all below get no less far.

    A rate is followed upward as long as more of it is no worse. Ten times as much of one that is right is
    worse, or not much better; and a run that has come to its end gets no further with any.
    """
    same = SAME * abs(unmoved)
    place = HIGHER
    if levels[HIGHER] > levels[1.0] + same:
        return None
    for factor in (HIGHEST, *FAR):
        if factor not in levels:
            levels[factor] = level(factor)
        if not levels[factor] <= levels[place] + same:
            return None
        if place == HIGHEST and _is_far_better(levels[HIGHEST], levels[1.0], unmoved):
            return HIGHEST  # More is better still: so it is not itself near the end.
        if factor > HIGHEST and _is_far_better(levels[factor], levels[1.0], unmoved):
            return factor
        place = factor
    return None


def _is_far_better(level: float, own: float, unmoved: float) -> bool:
    """Whether a loss is clearly lower, and several times as far from the unmoved one as the own."""
    return unmoved - level > max(FURTHER * (unmoved - own), CLEARLY * abs(unmoved))


def _to_peak(state: TrainState, run: Run) -> float:
    """By what the rates of the first steps are to be multiplied to come to the largest of later ones."""
    largest = 1.0
    for rule, _, _ in parts(state.tx, state.opt_state):
        name = rule.learning_rate_field
        value = None if name is None else getattr(rule, name, None)
        each = [_largest(x) for x in hyper.each_of(value) if x is not None]
        largest *= max(each, default=1.0)
    now = max(run.rates, default=0.0)
    # Rates that are known from elsewhere, such as a plateau's, have no later ones.
    return largest / now if now > 0 and largest > 2 * now else 1.0


def _largest(rate: Any) -> float:
    if not hyper.is_schedule(rate):
        return float(np.max(np.asarray(rate)))
    counts = np.unique(np.geomspace(1, 1e6, 100).astype(np.int32))
    return float(np.max(jax.vmap(lambda count: jnp.asarray(rate(count), jnp.float32))(counts)))


STEADY = (
    optax.EmptyState,
    optax.MaskedState,
    optax.ScaleByAdamState,
    optax.ScaleByAmsgradState,
    optax.ScaleByBeliefState,
    optax.ScaleByLionState,
    optax.ScaleByRmsState,
    optax.ScaleByRssState,
    optax.ScaleByRStdDevState,
    optax.TraceState,
)
"""States of optax's that belong to no schedule, and to nothing that finds a rate of its own."""


def _has_one_rate(opt_state: Any) -> bool:
    """Whether a rate that cannot be read is the same in all steps, by what optax's optimizer keeps."""
    is_state = lambda x: isinstance(x, tuple) and hasattr(x, "_fields")  # noqa: E731
    states = jax.tree.leaves(opt_state, is_leaf=is_state)
    return all(
        isinstance(each, STEADY)
        and (not isinstance(each, optax.MaskedState) or _has_one_rate(each.inner_state))
        for each in states
    )


def scales_by_rates(tx: Any) -> bool:
    """Whether updates that are ten times as large are those of a rate ten times as large."""
    rules = [rule for (data,) in walk(tx) if isinstance(data, Lifted) for rule in data.rules]
    return not any(rule.owns_rate for rule in rules)


def _shown(loss: float) -> str:
    return f"{loss:.3g}" if math.isfinite(loss) else "lost"
