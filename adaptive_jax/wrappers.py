"""What stands around an optimizer, or beside it in a chain: skipping, accumulating, measuring.

Each is a pytree like the optimizer in it, and works under `jit`, `scan`, `vmap` and inside a chain.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import Partial

from . import _check, _export, maths, precision
from ._transform import Transformation, member


@_export.state
class SkipNonfiniteState(NamedTuple):
    """How many steps were skipped in a row and in all, and whether there were too many in a row."""

    consecutive: jax.Array
    total: jax.Array
    stopped: jax.Array
    inner_state: Any


@_export.node
@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["inner"], meta_fields=["max_consecutive"]
)
@dataclass(frozen=True, repr=False)
class SkipNonfinite:
    """The arguments of `skip_nonfinite`."""

    inner: Any
    max_consecutive: int | None

    def __repr__(self) -> str:
        limit = "" if self.max_consecutive is None else f", max_consecutive={self.max_consecutive}"
        return f"skip_nonfinite({self.inner!r}{limit})"


def skip_nonfinite(
    inner: optax.GradientTransformation, max_consecutive: int | None = None
) -> Transformation:
    """Leaves parameters and state as they are where a gradient, or the update, is not finite.

    Nor is θ + u, in float32 at least, where `update` gets the parameters. (A parameter that is infinite
    already says nothing.)

    A skipped step changes no bit of the parameters: its update is -0.0, and x + -0.0 is x. (But XLA:CPU
    adds subnormal numbers, below 1.2e-38 in float32, as if they were 0, and so they become 0 there;
    `train_step(…, skip_nonfinite=True)` adds nothing, and keeps them too.) It changes no bit of the
    inner state either, its counters included. The counts of skipped steps are in the state, and nothing
    leaves the device.

    Differs from `optax.apply_if_finite`: the update itself is checked as well, and what it makes of the
    parameters, and a run that fails too often in a row is stopped rather than let through.

    Args:
      inner: the transformation whose steps may be skipped, a whole chain usually.
      max_consecutive: after so many skipped steps in a row the run is stopped: every further step is
        skipped too, and `raise_if_stopped` raises. None to go on for ever.

    Returns:
      The transformation. Its state is a `SkipNonfiniteState`.

    Raises:
      TypeError, ValueError: for what is not a transformation, or no number of steps.

    Example:
      >>> import adaptive_jax as aj, jax.numpy as jnp
      >>> tx = aj.skip_nonfinite(aj.adam(1e-3), max_consecutive=10)
      >>> params = {"w": jnp.ones(2)}
      >>> updates, state = tx.update({"w": jnp.array([1.0, jnp.nan])}, tx.init(params), params)
      >>> print(updates["w"], state.total, state.inner_state[0].count)
      [-0. -0.] 1 0
    """
    if max_consecutive is not None:
        max_consecutive = _check.whole("max_consecutive", max_consecutive, 1)
    wrapper = SkipNonfinite(member(inner, "skip_nonfinite"), max_consecutive)
    return Transformation(Partial(_skip_init, wrapper), Partial(_skip_update, wrapper))


def _skip_init(wrapper: SkipNonfinite, params: Any) -> SkipNonfiniteState:
    # Three arrays, not one: a donated buffer cannot be donated twice.
    return SkipNonfiniteState(
        jnp.zeros((), jnp.int32),
        jnp.zeros((), jnp.int32),
        jnp.zeros((), jnp.bool_),
        wrapper.inner.init(params),
    )


def _skip_update(
    wrapper: SkipNonfinite,
    updates: Any,
    state: Any,
    params: Any = None,
    **extra_args: Any,
) -> tuple[Any, SkipNonfiniteState]:
    _check.wrapper_state(state, SkipNonfiniteState)
    updates = _check.gradients(updates)
    new_updates, new_inner = wrapper.inner.update(updates, state.inner_state, params, **extra_args)
    finite = all_finite(updates) & finite_after(params, new_updates)
    accepted = finite & ~state.stopped
    consecutive = jnp.where(
        state.stopped, state.consecutive, jnp.where(finite, 0, state.consecutive + 1)
    )
    limit = wrapper.max_consecutive
    stopped = state.stopped if limit is None else consecutive >= limit
    return jax.tree.map(
        lambda x: jnp.where(accepted, x, _no_update(x)), new_updates
    ), SkipNonfiniteState(
        consecutive.astype(jnp.int32),
        jnp.where(accepted, state.total, optax.safe_increment(state.total)),
        stopped,
        jax.tree.map(lambda new, old: jnp.where(accepted, new, old), new_inner, state.inner_state),
    )


def raise_if_stopped(opt_state: Any) -> None:
    """Raises a FloatingPointError if a `skip_nonfinite` somewhere in the state has stopped the run.

    It waits for the state to be computed: call it once in a while, outside of `jit`.

    Args:
      opt_state: the state of an optimizer, at any depth of which there may be a `skip_nonfinite`.

    Raises:
      FloatingPointError: with the number of skipped steps.

    Example:
      >>> import adaptive_jax as aj, jax.numpy as jnp
      >>> tx = aj.skip_nonfinite(aj.sgd(0.1), max_consecutive=1)
      >>> _, state = tx.update(jnp.nan * jnp.ones(2), tx.init(jnp.ones(2)))
      >>> aj.raise_if_stopped(state)
      Traceback (most recent call last):
      ...
      FloatingPointError: 1 steps in a row were skipped because a gradient or an update was not...
    """
    is_skip = lambda x: isinstance(x, SkipNonfiniteState)  # noqa: E731
    for state in filter(is_skip, jax.tree.leaves(opt_state, is_leaf=is_skip)):
        if np.any(state.stopped):
            raise FloatingPointError(
                f"{np.max(state.consecutive)} steps in a row were skipped because a gradient or an "
                f"update was not finite, {np.max(state.total)} in all. The parameters are those before "
                "them. Lower the learning rate, clip the gradients, or look at the data."
            )


@_export.node
@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["inner"], meta_fields=["every_k_schedule"]
)
@dataclass(frozen=True, repr=False)
class MultiSteps:
    """The arguments of `multi_steps`."""

    inner: Any
    every_k_schedule: int | Callable[[jax.Array], Any]

    def __repr__(self) -> str:
        schedule = self.every_k_schedule
        return f"multi_steps({self.inner!r}, {getattr(schedule, '__name__', schedule)})"


@_export.state
class SkipState(NamedTuple):
    """How many mini-steps were left out because their gradients were not finite."""

    skipped: jax.Array


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
    inner = member(inner, "multi_steps")
    if not callable(every_k_schedule):
        every_k_schedule = _check.whole("every_k_schedule", every_k_schedule, 1)
    wrapper = MultiSteps(inner, every_k_schedule)
    return Transformation(Partial(_multi_init, wrapper), Partial(_multi_update, wrapper))


def _multi_init(wrapper: MultiSteps, params: Any) -> optax.MultiStepsState:
    return optax.MultiStepsState(
        mini_step=jnp.zeros((), jnp.int32),
        gradient_step=jnp.zeros((), jnp.int32),
        inner_opt_state=wrapper.inner.init(params),
        acc_grads=jax.tree.map(
            lambda x: jnp.zeros_like(x, maths.compute_dtype(jnp.result_type(x))), params
        ),
        skip_state=SkipState(jnp.zeros((), jnp.int32)),
    )


def _multi_update(
    wrapper: MultiSteps,
    updates: Any,
    state: Any,
    params: Any = None,
    **extra_args: Any,
) -> tuple[Any, optax.MultiStepsState]:
    _check.wrapper_state(state, optax.MultiStepsState)
    updates = _check.gradients(updates)
    k = wrapper.every_k_schedule
    if callable(k):
        name = getattr(k, "__name__", repr(k))
        with _check.of_function(
            f"every_k_schedule={name} in multi_steps", "the count, or another number, which"
        ):
            k = k(state.gradient_step)
    k = jnp.asarray(k, jnp.int32)
    gradients = _check.Arrays("gradients", updates)
    old_means = gradients.same_shapes(
        "the state's acc_grads",
        state.acc_grads,
        " What makes one gradient of many, such as one per example, comes before: "
        "aj.chain(aggregate, aj.multi_steps(tx, k)).",
    )
    finite = all_finite(updates)
    taken: Any = optax.safe_increment(state.mini_step)

    def averaged(mean: jax.Array, gradient: jax.Array) -> jax.Array:
        gradient = jax.lax.convert_element_type(gradient, mean.dtype)
        # A running mean, no part of which is larger than the largest gradient.
        new = (mean - maths.quotient(mean, taken)) + maths.quotient(gradient, taken)
        return jnp.where(finite, new, mean)

    unflatten = gradients.treedef.unflatten
    present = [gradient is not None for gradient in gradients.leaves]
    means = [
        averaged(mean, gradient) if has else mean
        for has, gradient, mean in zip(present, gradients.leaves, old_means, strict=True)
    ]

    def step(means: Any, inner_state: Any) -> Any:
        direction = unflatten(
            [mean if has else None for has, mean in zip(present, means, strict=True)]
        )
        new, inner_state = wrapper.inner.update(direction, inner_state, params, **extra_args)
        new = jax.tree.map(lambda x, like: maths.saturating_cast(x, like.dtype), new, updates)
        return new, inner_state, jax.tree.map(jnp.zeros_like, means)

    def wait(means: Any, inner_state: Any) -> Any:
        return jax.tree.map(_no_update, updates), inner_state, means

    is_full = finite & (taken >= k)
    new, inner_state, means = jax.lax.cond(is_full, step, wait, means, state.inner_opt_state)
    return new, optax.MultiStepsState(
        mini_step=jnp.where(is_full, 0, jnp.where(finite, taken, state.mini_step)),
        gradient_step=jnp.where(
            is_full, optax.safe_increment(state.gradient_step), state.gradient_step
        ),
        inner_opt_state=inner_state,
        acc_grads=unflatten(means),
        skip_state=SkipState(
            jnp.where(
                finite, state.skip_state.skipped, optax.safe_increment(state.skip_state.skipped)
            )
        ),
    )


@_export.node
@jax.tree_util.register_static
@dataclass(frozen=True)
class Measure:
    """A function of the updates as a transformation, equal to any other one of the same function."""

    function: Callable[[Any], Any]

    def init(self, params: Any) -> Any:
        """No state."""
        del params
        return optax.EmptyState()

    def update(self, updates: Any, state: Any, *args: Any, **extra_args: Any) -> Any:
        """The measurement in the place of the updates."""
        del args, extra_args
        return self.function(updates), state


@_export.node
@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["measures"], meta_fields=["names"]
)
@dataclass(frozen=True, repr=False)
class Monitor:
    """The argument of `monitor`: names, and transformations that measure."""

    names: tuple[str, ...]
    measures: tuple[Any, ...]

    def __repr__(self) -> str:
        return f"monitor({', '.join(self.names)})"


def monitor(measures: Mapping[str, Any]) -> Transformation:
    """Measures the updates that pass by, at any place in a chain, and leaves them as they are.

    Differs from `optax.monitor`: the state has its whole structure from the start, with zeros before
    the first update, so that it goes through `lax.scan` and compiles once.

    Args:
      measures: from names to functions of the updates that return arrays, such as `aj.global_norm`, or
        to transformations whose updates are the measurement, such as `optax.measure_with_ema`.

    Returns:
      The transformation. Its state is an `optax.MonitorState`; `optax.tree.get(state, name)` finds a
      measurement.

    Raises:
      TypeError: for a measure that is neither.

    Example:
      >>> import adaptive_jax as aj, jax.numpy as jnp, optax
      >>> tx = aj.chain(aj.monitor({"norm": aj.global_norm}), aj.sgd(0.1))
      >>> _, state = tx.update(jnp.array([3.0, 4.0]), tx.init(jnp.zeros(2)))
      >>> print(f"{optax.tree.get(state, 'norm'):.1f}")
      5.0
    """
    if not isinstance(measures, Mapping):
        raise TypeError(
            f"measures={measures!r:.80} must be a mapping from names to functions of the updates, such as "
            '{"norm": aj.global_norm}.'
        )
    wrapper = Monitor(tuple(measures), tuple(_measure(*each) for each in measures.items()))
    return Transformation(Partial(_monitor_init, wrapper), Partial(_monitor_update, wrapper))


def _measure(name: str, measure: Any) -> Any:
    if isinstance(measure, optax.GradientTransformation):
        return member(measure, "monitor")
    if not callable(measure):
        raise TypeError(f"measures[{name!r}]={measure!r} is no function of the updates.")
    return Measure(measure)


def _monitor_init(wrapper: Monitor, params: Any) -> Any:
    states = tuple(measure.init(params) for measure in wrapper.measures)
    measured = {
        name: jax.eval_shape(lambda each=each, state=state: each.update(params, state, params)[0])
        for name, each, state in zip(wrapper.names, wrapper.measures, states, strict=True)
    }
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), measured)
    return optax.MonitorState(zeros, states)


def _monitor_update(
    wrapper: Monitor, updates: Any, state: Any, params: Any = None, **extra_args: Any
) -> tuple[Any, Any]:
    _check.wrapper_state(state, optax.MonitorState)
    updates = _check.gradients(updates)
    measured, states = {}, []
    for name, each, old in zip(wrapper.names, wrapper.measures, state.measure_states, strict=True):
        value, new = each.update(updates, old, params, **extra_args)
        # In the dtypes of the start, whatever that of the gradients.
        measured[name] = jax.tree.map(
            lambda x, like: jnp.asarray(x, like.dtype), value, state.measurements[name]
        )
        states.append(new)
    return updates, optax.MonitorState(measured, tuple(states))


def all_finite(tree: Any) -> jax.Array:
    """Whether no number in the tree is infinite or NaN, shape ()."""
    leaves = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]
    return functools.reduce(jnp.logical_and, leaves, jnp.ones((), jnp.bool_))


def finite_after(params: Any, updates: Any) -> jax.Array:
    """Whether no update is infinite or NaN, nor makes a parameter so that was not, shape ().

    params may be None: then it is about the updates alone.
    """
    if params is None:
        return all_finite(updates)
    leaves, treedef = jax.tree.flatten(updates, is_leaf=lambda x: x is None)
    finite = [
        precision.is_finite_after(old, update)
        for old, update in zip(treedef.flatten_up_to(params), leaves, strict=True)
        if update is not None
    ]
    return functools.reduce(jnp.logical_and, finite, jnp.ones((), jnp.bool_))


def _no_update(x: jax.Array) -> jax.Array:
    """-0.0: added to any number, 0.0 and -0.0 among them, it leaves every bit as it is."""
    return jnp.full_like(x, -0.0)
