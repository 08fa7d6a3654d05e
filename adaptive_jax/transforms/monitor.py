"""Measurements of the updates that pass by."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import Partial

from .._core import export, pytrees
from .._core.states import check_wrapper
from .._core.transformation import Transformation, member


@export.node
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


@export.node
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
    check_wrapper(state, optax.MonitorState)
    updates = pytrees.gradients(updates)
    measured, states = {}, []
    for name, each, old in zip(wrapper.names, wrapper.measures, state.measure_states, strict=True):
        value, new = each.update(updates, old, params, **extra_args)
        # In the dtypes of the start, whatever that of the gradients.
        measured[name] = jax.tree.map(
            lambda x, like: jnp.asarray(x, like.dtype), value, state.measurements[name]
        )
        states.append(new)
    return updates, optax.MonitorState(measured, tuple(states))
