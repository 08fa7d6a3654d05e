"""The gradients of many mini-steps in one step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from .. import maths
from .._core import arguments, errors, export, pytrees, states
from .._core.extra import FIRST_GRADIENT, in_place_of_first
from .._core.transformation import Transformation, member
from .._core.wrapper import Wrapper
from .extra_args import (
    ExtraMeans,
    asked_for,
    asks_for_gradient,
    averages_any,
    running_mean,
    zeros_like,
)
from .finite import all_finite, no_update


@export.state
class SkipState(NamedTuple):
    """How many mini-steps were left out because their gradients were not finite."""

    skipped: jax.Array


@export.state
class SkipAndMeansState(NamedTuple):
    """The same beside the means of extra arguments, for an optimizer that asks for such."""

    skipped: jax.Array
    extra_means: ExtraMeans


def _skip_state(skipped: jax.Array, extra_means: ExtraMeans | None) -> Any:
    """What the state has beside the means of the gradients."""
    if extra_means is None:
        return SkipState(skipped)
    return SkipAndMeansState(skipped, extra_means)


@dataclass(frozen=True)
class MultiSteps(Wrapper):
    """`multi_steps`, of its arguments."""

    inner: Any
    every_k_schedule: int | Callable[[jax.Array], Any]

    wraps = {"inner": "inner_opt_state"}
    state_type = optax.MultiStepsState
    label = "multi_steps"

    def init(self, params: Any) -> optax.MultiStepsState:
        return optax.MultiStepsState(
            mini_step=jnp.zeros((), jnp.int32),
            gradient_step=jnp.zeros((), jnp.int32),
            inner_opt_state=self.inner.init(params),
            acc_grads=zeros_like(params),
            skip_state=_skip_state(jnp.zeros((), jnp.int32), ExtraMeans.first(self.inner, params)),
        )

    def step(
        self, updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, optax.MultiStepsState]:
        k = self.every_k_schedule
        if callable(k):
            name = getattr(k, "__name__", repr(k))
            with errors.of_function(
                f"every_k_schedule={name} in multi_steps", "the count, or another number, which"
            ):
                k = k(state.gradient_step)
        k = jnp.asarray(k, jnp.int32)
        gradients = pytrees.Arrays("gradients", updates)
        old_means = gradients.same_shapes(
            "the state's acc_grads",
            state.acc_grads,
            " What makes one gradient of many, such as one per example, comes before: "
            "aj.chain(aggregate, aj.multi_steps(tx, k)).",
        )
        asked = asked_for(self.inner)
        of_extra = [extra_args[name] for name in asked if extra_args.get(name) is not None]
        finite = all_finite((updates, of_extra))
        taken: Any = optax.safe_increment(state.mini_step)

        def where_finite(new: Any, old: Any) -> Any:
            return jax.tree.map(lambda new, old: jnp.where(finite, new, old), new, old)

        unflatten = gradients.treedef.unflatten
        present = [gradient is not None for gradient in gradients.leaves]
        means = [
            where_finite(running_mean(mean, gradient, taken), mean) if has else mean
            for has, gradient, mean in zip(present, gradients.leaves, old_means, strict=True)
        ]
        extra_means = None
        if averages_any(self.inner):
            states.check_wrapper(state.skip_state, SkipAndMeansState)
            extra_means = state.skip_state.extra_means
        if extra_means is not None:
            new_means = extra_means.with_one_more(extra_args, gradients, taken)
            extra_means = where_finite(new_means, extra_means)

        def run(means: Any, extra_means: Any, inner_state: Any) -> Any:
            direction = unflatten(
                [mean if has else None for has, mean in zip(present, means, strict=True)]
            )
            given = extra_args
            if extra_means is not None:
                given = extra_means.handed_on(extra_args, gradients)
            if asks_for_gradient(self.inner):
                given = {**given, FIRST_GRADIENT: direction}
            with in_place_of_first(direction):
                new, inner_state = self.inner.update(direction, inner_state, params, **given)
            new = jax.tree.map(lambda x, like: maths.saturating_cast(x, like.dtype), new, updates)
            return new, inner_state, *jax.tree.map(jnp.zeros_like, (means, extra_means))

        def wait(means: Any, extra_means: Any, inner_state: Any) -> Any:
            return jax.tree.map(no_update, updates), inner_state, means, extra_means

        is_full = finite & (taken >= k)
        new, inner_state, means, extra_means = jax.lax.cond(
            is_full, run, wait, means, extra_means, state.inner_opt_state
        )
        return new, optax.MultiStepsState(
            mini_step=jnp.where(is_full, 0, jnp.where(finite, taken, state.mini_step)),
            gradient_step=jnp.where(
                is_full, optax.safe_increment(state.gradient_step), state.gradient_step
            ),
            inner_opt_state=inner_state,
            acc_grads=unflatten(means),
            skip_state=_skip_state(
                jnp.where(
                    finite, state.skip_state.skipped, optax.safe_increment(state.skip_state.skipped)
                ),
                extra_means,
            ),
        )


def multi_steps(
    inner: optax.GradientTransformation, every_k_schedule: int | Callable[[jax.Array], Any]
) -> Transformation:
    """Accumulates the gradients of k mini-steps, and runs the optimizer on their mean.

    The mean is kept in float32 at least, and handed on so: with k batches of equal size the step is
    that of the whole batch, to rounding. The optimizer runs once per group, not in every mini-step
    (under `vmap` in every one, as `lax.cond` does, whose result is then chosen); the updates of all
    other mini-steps are -0.0, which leaves the parameters as they are (but for subnormal ones on a CPU,
    as in `skip_nonfinite`). A mini-step whose gradients are not finite is left out, and the group waits
    for another one.

    Of the extra arguments that rules inside ask for, `value` and trees like the parameters are averaged
    too; of a tree `x` with a number `has_x` beside it, those mini-steps count that have it, and the
    group has it if one of them has. All others are those of the last mini-step, as is whatever goes to
    another library's transformations alone, which do not say what they take. They are checked like
    the gradients.

    Updates have the dtype of the gradients. `compensate`, whose updates are float32, goes around:
    `compensate(multi_steps(tx, k))`.

    Differs from `optax.MultiSteps`, which runs the optimizer in every mini-step and discards the
    result, rounds the mean to the dtype of the gradients, and, unless `should_skip_update_fn` says
    otherwise, lets one NaN into all later steps.

    Args:
      inner: the transformation that gets the means.
      every_k_schedule: k >= 1, or a function from the number of groups so far to k; what is less than
        1 counts as 1.

    Returns:
      The transformation. Its state is an `optax.MultiStepsState`; `skip_state.skipped` counts what
      was left out.

    Raises:
      TypeError, ValueError: for what is not a transformation, or a k that is no positive integer.

    Example:
      >>> import adaptive_jax as aj, jax.numpy as jnp
      >>> tx = aj.multi_steps(aj.sgd(1.0), 2)
      >>> state = tx.init(jnp.zeros(2))
      >>> for gradient in (jnp.array([1.0, 2.0]), jnp.array([3.0, 4.0])):
      ...     updates, state = tx.update(gradient, state)
      ...     print(updates)
      [-0. -0.]
      [-2. -3.]
    """
    inner = member(inner, "multi_steps")  # First: the two may have come in the other order.
    if not callable(every_k_schedule):
        every_k_schedule = arguments.whole("every_k_schedule", every_k_schedule, 1)
    return Transformation.of(MultiSteps(inner, every_k_schedule))
