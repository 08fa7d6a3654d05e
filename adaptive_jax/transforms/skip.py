"""Steps that are skipped because they are not finite."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .._core import arguments, export
from .._core.transformation import Transformation
from .._core.wrapper import Wrapper
from .extra_args import asked_for
from .finite import all_finite, finite_after, no_update


@export.state
class SkipNonfiniteState(NamedTuple):
    """How many steps were skipped in a row and in all, and whether there were too many in a row."""

    consecutive: jax.Array
    total: jax.Array
    stopped: jax.Array
    inner_state: Any


@dataclass(frozen=True)
class SkipNonfinite(Wrapper):
    """`skip_nonfinite`, of its arguments."""

    inner: Any
    max_consecutive: int | None = None

    wraps = {"inner": "inner_state"}
    state_type = SkipNonfiniteState
    label = "skip_nonfinite"

    def init(self, params: Any) -> SkipNonfiniteState:
        # Three arrays, not one: a donated buffer cannot be donated twice.
        return SkipNonfiniteState(
            jnp.zeros((), jnp.int32),
            jnp.zeros((), jnp.int32),
            jnp.zeros((), jnp.bool_),
            self.inner.init(params),
        )

    def step(
        self, updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, SkipNonfiniteState]:
        old_inner = state.inner_state
        new_updates, new_inner = self.inner.update(updates, old_inner, params, **extra_args)
        asked = [extra_args[name] for name in asked_for(self.inner) if name in extra_args]
        finite = all_finite((updates, asked)) & finite_after(params, new_updates)
        accepted = finite & ~state.stopped
        consecutive = jnp.where(
            state.stopped, state.consecutive, jnp.where(finite, 0, state.consecutive + 1)
        )
        limit = self.max_consecutive
        stopped = state.stopped if limit is None else consecutive >= limit
        new_updates = jax.tree.map(lambda x: jnp.where(accepted, x, no_update(x)), new_updates)
        return new_updates, SkipNonfiniteState(
            consecutive.astype(jnp.int32),
            jnp.where(accepted, state.total, optax.safe_increment(state.total)),
            stopped,
            jax.tree.map(lambda new, old: jnp.where(accepted, new, old), new_inner, old_inner),
        )


def skip_nonfinite(
    inner: optax.GradientTransformation, max_consecutive: int | None = None
) -> Transformation:
    """Leaves parameters and state as they are where a gradient, or the update, is not finite.

    Nor is θ + u, in float32 at least, where `update` gets the parameters. (A parameter that is infinite
    already says nothing.) Extra arguments that rules inside ask for, such as `value`, are looked at too.

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
        max_consecutive = arguments.whole("max_consecutive", max_consecutive, 1)
    return Transformation.of(SkipNonfinite(inner, max_consecutive))


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
