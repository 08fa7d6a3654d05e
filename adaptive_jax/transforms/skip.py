"""Steps that are skipped because they are not finite."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import tree_leaves_with_path

from .._core import arguments, export
from .._core.transformation import Transformation
from .._core.wrapper import Wrapper
from .extra_args import asked_for
from .finite import all_finite, every, finite_after_by_path, finite_by_path, no_update


@dataclass(frozen=True, eq=False)
class Paths:
    """Names that are no part of what a state is: all are equal, and a state has any of them."""

    names: tuple[str, ...]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Paths)

    def __hash__(self) -> int:
        return 0


@export.node
@functools.partial(jax.tree_util.register_dataclass, data_fields=["kinds"], meta_fields=["paths"])
@dataclass(frozen=True)
class Nonfinite:
    """What was not finite in a step.

    kinds: one uint8 for each array and extra argument: 1 for a gradient, or the argument, 2 for an update
      or the parameter after it, 3 for both.
    paths: those of the arrays, and the names of the arguments.
    """

    kinds: jax.Array
    paths: Paths


@export.state
class SkipNonfiniteState(NamedTuple):
    """How many steps were skipped in a row and in all, and whether there were too many in a row.

    updates: how many steps there were, until it stopped.
    nonfinite: what was not finite in the first step of the last row of those that were skipped.
    The last two are None in a state of version 0.1.0.
    """

    consecutive: jax.Array
    total: jax.Array
    stopped: jax.Array
    inner_state: Any
    updates: Any = None
    nonfinite: Any = None


@dataclass(frozen=True)
class SkipNonfinite(Wrapper):
    """`skip_nonfinite`, of its arguments."""

    inner: Any
    max_consecutive: int | None = None

    wraps = {"inner": "inner_state"}
    state_type = SkipNonfiniteState
    label = "skip_nonfinite"

    def init(self, params: Any) -> SkipNonfiniteState:
        # An array for each, not one for all: a donated buffer cannot be donated twice.
        paths = [jax.tree_util.keystr(path) for path, _ in tree_leaves_with_path(params)]
        paths += map(_of_argument, asked_for(self.inner))
        return SkipNonfiniteState(
            jnp.zeros((), jnp.int32),
            jnp.zeros((), jnp.int32),
            jnp.zeros((), jnp.bool_),
            self.inner.init(params),
            jnp.zeros((), jnp.int32),
            Nonfinite(jnp.zeros(len(paths), jnp.uint8), Paths(tuple(paths))),
        )

    def step(
        self, updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, SkipNonfiniteState]:
        old_inner = state.inner_state
        new_updates, new_inner = self.inner.update(updates, old_inner, params, **extra_args)
        given = finite_by_path(updates) | {
            _of_argument(name): all_finite(extra_args[name])
            for name in asked_for(self.inner)
            if name in extra_args
        }
        made = finite_after_by_path(params, new_updates)
        finite = every((*given.values(), *made.values()))
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
            *_after(state, finite, given, made),
        )


def _of_argument(name: str) -> str:
    return f"the argument {name}"


def _after(
    state: SkipNonfiniteState, finite: Any, given: dict[str, Any], made: dict[str, Any]
) -> tuple[Any, Any]:
    """The number of updates, and what was not finite; as a state of 0.1.0 has it, nothing."""
    if state.nonfinite is None:
        return None, None
    updates = jnp.where(state.stopped, state.updates, optax.safe_increment(state.updates))
    old: Nonfinite = state.nonfinite
    if not old.paths.names:
        return updates, old
    fine = jnp.ones((), jnp.bool_)
    of_gradients, of_updates = (
        jnp.stack([~each.get(name, fine) for name in old.paths.names]).astype(jnp.uint8)
        for each in (given, made)
    )
    kinds = of_gradients | (of_updates << 1)
    is_first = ~finite & (state.consecutive == 0) & ~state.stopped
    return updates, Nonfinite(jnp.where(is_first, kinds, old.kinds), old.paths)


def skip_nonfinite(
    inner: optax.GradientTransformation, max_consecutive: int | None = None
) -> Transformation:
    """Leaves parameters and state as they are where a gradient, or the update, is not finite.

    Nor is θ + u, in float32 at least, where `update` gets the parameters. (A parameter that is infinite
    already says nothing.) Extra arguments that rules inside ask for, such as `value`, are looked at too.

    A skipped step changes no bit of the parameters: its update is -0.0, and x + -0.0 is x. (But XLA:CPU
    adds subnormal numbers, below 1.2e-38 in float32, as if they were 0, and so they become 0 there;
    `train_step(…, skip_nonfinite=True)` adds nothing, and keeps them too.) It changes no bit of the
    inner state either, its counters included. The counts of skipped steps are in the state, and of the
    last row of them in which step it began, and with which arrays; nothing leaves the device.

    Differs from `optax.apply_if_finite`: the update itself is checked as well, and what it makes of the
    parameters, and a run that fails too often in a row is stopped rather than let through.

    Args:
      inner: the transformation whose steps may be skipped, a whole chain usually.
      max_consecutive: after so many skipped steps in a row the run is stopped: every further step is
        skipped too, `aj.fit` ends, and `raise_if_stopped` raises. None to go on for ever.

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


def skips_in(tree: Any) -> Iterator[SkipNonfiniteState]:
    """The state of each `skip_nonfinite` in a tree, of those inside others too."""
    is_skip = lambda x: isinstance(x, SkipNonfiniteState)  # noqa: E731
    for state in filter(is_skip, jax.tree.leaves(tree, is_leaf=is_skip)):
        yield state
        yield from skips_in(state.inner_state)


def raise_if_stopped(opt_state: Any) -> None:
    """Raises a FloatingPointError if a `skip_nonfinite` somewhere in the state has stopped the run.

    It waits for the state to be computed: call it once in a while, outside of `jit`. `aj.fit` does so
    itself, without waiting.

    Args:
      opt_state: the state of an optimizer, or a `TrainState`, at any depth of which there may be a
        `skip_nonfinite`. Where there is none, nothing has stopped and nothing is raised.

    Raises:
      FloatingPointError: with the number of skipped steps, the step in which it began, counted by the
        updates of `skip_nonfinite`, and the arrays that were not finite in it.

    Example:
      >>> import adaptive_jax as aj, jax.numpy as jnp
      >>> tx = aj.skip_nonfinite(aj.sgd(0.1), max_consecutive=1)
      >>> _, state = tx.update(jnp.nan * jnp.ones(2), tx.init(jnp.ones(2)))
      >>> aj.raise_if_stopped(state)
      Traceback (most recent call last):
      ...
      FloatingPointError: 1 steps in a row were skipped because a gradient or an update was not...
    """
    for state in skips_in(opt_state):
        if np.any(state.stopped):
            which = int(np.argmax(state.stopped))  # Of many runs at once, the first.
            count, total = (np.ravel(x)[which] for x in (state.consecutive, state.total))
            raise FloatingPointError(
                f"{count} steps in a row were skipped because a gradient or an update was not finite, "
                f"{total} in all. {_told(state, which)}The parameters are those before them. Lower the "
                "learning rate, clip the gradients, or look at the data. It stays stopped: go on from a "
                "checkpoint, or with tx.init(params) for the optimizer's state."
            )


_MOST = 5
"""So many arrays are named."""


def _told(state: SkipNonfiniteState, which: int) -> str:
    """In which step it began, and with which arrays."""
    if state.nonfinite is None:
        return ""
    first = int(np.ravel(state.updates)[which]) - int(np.ravel(state.consecutive)[which]) + 1
    names = state.nonfinite.paths.names
    kinds = np.reshape(state.nonfinite.kinds, (-1, len(names)))[which] if names else []
    of_gradients = [name for name, kind in zip(names, kinds, strict=True) if kind & 1]
    of_updates = [name for name, kind in zip(names, kinds, strict=True) if kind == 2]
    # What is made of gradients that are not finite says nothing new.
    what = _listed("gradient", of_gradients) or _listed("update", of_updates)
    run = f"Of run {which}: " if np.ndim(state.stopped) else ""
    return f"{run}It began in step {first}, where {what} not finite. "


def _listed(kind: str, names: list[str]) -> str:
    """The arrays and arguments, with their verb; nothing of none."""
    if not names:
        return ""
    shown = [
        name if name.startswith(_of_argument("")) else f"the {kind}{name and f' at {name}'}"
        for name in names[:_MOST]
    ]
    if len(names) > _MOST:
        shown.append(f"{len(names) - _MOST} more")
    text = shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"
    return f"{text} {'was' if len(names) == 1 else 'were'}"
