"""A few steps, on a copy, that show what commonly goes wrong in a training."""

from __future__ import annotations

import html
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import keystr, tree_leaves_with_path

from .._core import arguments, hyper
from .._core.lifted import Lifted
from .._core.wrapper import walk
from ..transforms.describe import describe
from .arrays import is_used_up
from .check_rates import LOWER, of_rates, scales_by_rates
from .check_trial import Run, Trial
from .checked_step import checked_step
from .epochs import iterator_of
from .state import TrainState

FEW = 0.2
"""The share of the elements that should have changed below which an array does not move."""


@dataclass(frozen=True, repr=False)
class TrainingCheck:
    """What `check_training` found; it prints as a list.

    findings: what is wrong, a sentence or two each, with what to do. Empty where nothing was found.
    losses: by what the learning rates were multiplied, and the mean loss of the last quarter of the
      steps; of 0, that of parameters that are not moved. Empty where rates were not compared.
    steps: how many steps were taken with each.
    """

    findings: tuple[str, ...]
    losses: dict[float, float]
    steps: int

    def __repr__(self) -> str:
        if not self.findings:
            return f"nothing found in {self.steps} steps"
        return "\n".join(f"{place}. {text}" for place, text in enumerate(self.findings, 1))

    def _repr_html_(self) -> str:
        if not self.findings:
            return f"<p>{self!r}</p>"
        return f"<ol>{''.join(f'<li>{html.escape(text)}</li>' for text in self.findings)}</ol>"


def check_training(
    state: TrainState,
    step: Callable[[TrainState, Any], tuple[TrainState, dict[str, Any]]],
    batches: Iterable[Any],
    *,
    steps: int = 30,
) -> TrainingCheck:
    """Takes a few steps on a copy of the state, and says what is wrong with the training.

    It looks for numbers that are not finite; arrays that get no gradient, and such as nothing moves
    although they get one; parameters of 16 bits or less whose updates are rounded away; a learning rate
    that is 0; a mask that leaves nothing to decay; and a learning rate that is ten times too high or too
    low, by runs with a tenth of it, ten times and thirty times as much, on the same batches, and more
    still where these hardly change the loss.

    The state is not used up. A copy of it is in memory for as long, and a float32 array for each of the
    parameters. What it knows of rates is what some steps show: it judges a new run, or one that still
    gets better. Where the rate rises at first, too low is said of its peak. Optimizers that find
    their own rate are not judged by it.

    Args:
      state: a new `TrainState`, or one of a run.
      step: what `train_step` returns, with the metric "loss", or a step around it.
      batches: one batch for each step; where there are fewer, they come again.
      steps: how many steps to take with each rate.

    Returns:
      A `TrainingCheck`: `findings` is empty where nothing was found.

    Raises:
      TypeError: for what is no state.
      ValueError: for a state that was used up by a step, without batches, and for a step that does not
        measure the loss.

    Example:
      >>> import adaptive_jax as aj, jax.numpy as jnp
      >>> step = aj.train_step(lambda params, batch: jnp.sum((params["w"] - batch) ** 2))
      >>> params = {"w": jnp.zeros(2), "b": jnp.zeros(2)}
      >>> state = aj.TrainState.create(params, aj.sgd(0.1))
      >>> print(aj.check_training(state, step, [jnp.ones(2)]))  # doctest: +NORMALIZE_WHITESPACE
      1. The array ['b'] gets no gradient: it was 0 in all 30 steps. Does the loss use it, and does no
      stop_gradient, no integer and no activation that is flat stand between? What is to stay as it is
      belongs to aj.partition, with the label of None.
    """
    steps = arguments.whole("steps", steps, 4)
    step = checked_step("check_training", state, step)
    if not isinstance(state, TrainState):
        raise TypeError(
            f"check_training takes a TrainState, got {state!r:.200} of type {type(state).__name__}: call "
            "check_training(state, step, batches), with TrainState.create(params, tx)."
        )
    if is_used_up(state):
        raise ValueError(
            "this state was used up by a step before, which wrote over its arrays: check the training "
            "first, which leaves the state as it is, or give the state that the step returned."
        )
    given = list(itertools.islice(iterator_of(batches), steps))
    if not given:
        raise ValueError("there are no batches: give one or more.")
    found = list(_of_what_is_given(state, given))
    if found:  # Nothing else can be told.
        return TrainingCheck(tuple(found), {}, 0)
    trial = Trial(state, step, list(itertools.islice(itertools.cycle(given), steps)))
    run = trial.first_run()
    lost, stuck = list(_of_numbers(run)), list(_of_rounding(state, run))
    others = [*_of_arrays(state, run), *stuck, *_of_decay(state)]
    losses: dict[float, float] = {}
    rates = []
    if run.rates and max(run.rates) == 0:
        rates.append(
            f"The learning rate is 0 in all {steps} steps from step {int(state.step) + 1} on: is a "
            "schedule at its end already, or does it begin with a long stretch of 0? Print it, "
            f"[schedule(i) for i in range({steps})]."
        )
    elif run.has_moved and not stuck and scales_by_rates(state.tx):
        rates += of_rates(state, trial, run, losses)
        if rates and math.isfinite(losses[LOWER]):
            lost = []  # The rate is why.
    found = [*lost, *rates, *others]
    return TrainingCheck(tuple(found), losses, steps)


def _of_what_is_given(state: TrainState, batches: Sequence[Any]) -> Iterator[str]:
    """Numbers that are not finite before the first step."""
    paths = [keystr(path) for path, x in _floats(state.params) if not _is_finite(x)]
    if paths:
        yield (
            f"{_arrays(paths)} {'is' if len(paths) == 1 else 'are'} not finite before the first step: look "
            "at how they are made, or at the checkpoint that they come from."
        )
    for place, batch in enumerate(batches):
        bad = [f"batch{keystr(path)}" for path, x in _floats(batch) if not _is_finite(x)]
        if bad:
            yield (
                f"{_listed(bad)} of step {place + 1} (batch {place}, counted from 0) "
                f"{'is' if len(bad) == 1 else 'are'} not finite: mend the data, or leave these rows out."
            )
            return


def _of_numbers(run: Run) -> Iterator[str]:
    """Numbers that were lost on the way."""
    steps = len(run.losses)
    names = run.seen.nonfinite.paths.names
    kinds = run.seen.nonfinite.kinds
    if kinds.any():
        gradients = [name for name, kind in zip(names, kinds, strict=True) if kind & 1]
        what = "gradient" if gradients else "update"
        bad = gradients or [name for name, kind in zip(names, kinds, strict=True) if kind]
        many = len(bad) > 1
        yield (
            f"In step {int(run.seen.first_nonfinite)} the {what}{'s' if many else ''} of {_listed(bad)} "
            f"{'are' if many else 'is'} not finite. Lower the learning rate, clip the gradients "
            "(aj.clip_by_global_norm), and look for logarithms, divisions and roots of 0 in the loss: "
            'jax.config.update("jax_debug_nans", True) stops where it happens.'
        )
    elif run.skipped > steps / 2:
        yield (
            f"{run.skipped} of {steps} steps were skipped, because a loss, a gradient or an update was "
            "not finite. Lower the learning rate, or the loss scale, and look at the loss with "
            'jax.config.update("jax_debug_nans", True).'
        )
    elif not np.isfinite(run.losses).all():
        yield (
            f"In step {int(np.argmin(np.isfinite(run.losses))) + 1} the loss is not finite. Lower the "
            "learning rate, and look for logarithms, divisions and roots of 0 in it."
        )


def _of_arrays(state: TrainState, run: Run) -> Iterator[str]:
    """Arrays without gradient, and such as nothing moves."""
    steps, names = len(run.losses), run.seen.nonfinite.paths.names
    if run.seen.nonfinite.kinds.any() or run.skipped > steps / 2:
        return
    frozen = {row.path for row in describe(state.tx, state.params).rows if row.rule is None}
    # Nor is there anything to move in an array without elements.
    frozen |= {keystr(path) for path, x in tree_leaves_with_path(state.params) if not jnp.size(x)}
    seen = list(zip(names, run.seen.has_gradient, run.seen.has_update, strict=True))
    dead = [name for name, gradient, _ in seen if not gradient and name not in frozen]
    if dead:
        gets, was = ("get", "they were") if len(dead) > 1 else ("gets", "it was")
        yield (
            f"{_arrays(dead)} {gets} no gradient: {was} 0 in all {steps} steps. Does the loss use "
            f"{'them' if len(dead) > 1 else 'it'}, and does no stop_gradient, no integer and no activation "
            "that is flat stand between? What is to stay as it is belongs to aj.partition, with the label "
            "of None."
        )
    still = [
        name for name, gradient, moved in seen if gradient and not moved and name not in frozen
    ]
    if not still or (run.rates and max(run.rates) == 0):
        return
    if not run.has_moved:
        yield (
            f"Nothing moves: all updates were 0 in {steps} steps, and gradients were not. Does the "
            "optimizer gather more mini-steps than that (aj.multi_steps), is a schedule at 0, or all of it "
            "masked? Take more steps=, or look at aj.describe(tx, params)."
        )
    else:
        yield (
            f"{_arrays(still)} {'get gradients' if len(still) > 1 else 'gets a gradient'}, and all updates "
            f"were 0 in {steps} steps: a mask, a clipping or a learning rate of 0 for "
            f"{'them' if len(still) > 1 else 'it'} stops them. aj.describe(tx, params) says which rule "
            "takes which array."
        )


def _of_rounding(state: TrainState, run: Run) -> Iterator[str]:
    """Parameters of few bits that are rounded back to where they were."""
    stuck, dtypes = [], []
    news, totals = jax.tree.leaves(run.after), jax.tree.leaves(run.seen.total)
    for (path, old), new, total in zip(_floats(state.params), news, totals, strict=True):
        if jnp.finfo(old.dtype).bits > 16:
            continue
        spacing = jnp.abs(old.astype(jnp.float32)) * float(jnp.finfo(old.dtype).eps)
        # As many would have changed, were they rounded up as often as their part of a spacing says.
        share = jnp.where(total == 0, 0.0, jnp.abs(total) / jnp.maximum(spacing, _TINY))
        expected = float(jnp.sum(jnp.minimum(1.0, share)))
        if expected >= _ENOUGH and int(jnp.sum(old != new)) < FEW * expected:
            stuck.append(keystr(path))
            dtypes.append(old.dtype.name)
    if stuck:
        yield (
            f"{_arrays(stuck)} of {' and '.join(dict.fromkeys(dtypes))} "
            f"{'do' if len(stuck) > 1 else 'does'} not move: the updates are smaller than half the "
            "distance between two numbers there, and are rounded away. Take "
            'train_step(…, rounding="stochastic"), which is its default, '
            "put the optimizer in aj.compensate, or keep the parameters in float32 "
            "with compute_dtype=jnp.bfloat16."
        )


_TINY = 1e-30
_ENOUGH = 10.0
"""So many elements that should have changed are no accident."""


def _of_decay(state: TrainState) -> Iterator[str]:
    """Weight decay whose mask selects nothing."""
    rules = [
        rule
        for (data,) in walk(state.tx)
        if isinstance(data, Lifted)
        for rule in data.rules
        if _decays(rule)
    ]
    rows = [row for row in describe(state.tx, state.params).rows if _decays(row.rule)]
    if rules and not any(row.selected for row in rows):
        yield (
            f"Nothing decays: weight_decay={hyper.show(_decay_of(rules[0]))} is for the arrays that its "
            "mask selects, and it selects none of them. A mask is True for what decays, such as "
            "lambda params: jax.tree.map(lambda x: x.ndim > 1, params)."
        )


def _decay_of(rule: Any) -> Any:
    return getattr(rule, "weight_decay", None)


def _decays(rule: Any) -> bool:
    """Whether a rule has a weight decay that is not 0."""
    each = [x for x in hyper.each_of(_decay_of(rule)) if x is not None]
    return any(hyper.is_schedule(x) or bool(np.any(np.asarray(x))) for x in each)


def _floats(tree: Any) -> list[tuple[Any, Any]]:
    """The floating and complex numbers, with their paths. A batch may have names in it, say."""
    return [
        (path, x)
        for path, x in tree_leaves_with_path(tree)
        if isinstance(x, (float, complex))
        or (
            isinstance(x, (jax.Array, np.ndarray, np.generic))
            and jnp.issubdtype(x.dtype, jnp.inexact)
        )
    ]


def _is_finite(x: Any) -> bool:
    return bool(jnp.all(jnp.isfinite(x)))


def _arrays(names: Sequence[str]) -> str:
    if len(names) == 1:
        return f"The array {names[0]}".strip()
    return f"The arrays {_listed(names)}"


def _listed(names: Sequence[str], most: int = 5) -> str:
    shown = [name or "the one array" for name in names[:most]]
    if len(names) > most:
        shown.append(f"{len(names) - most} more")
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"
