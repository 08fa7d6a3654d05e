"""Measurements of the updates that pass by."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

from .._core import export
from .._core.transformation import Transformation, member
from .._core.wrapper import Wrapper


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


@dataclass(frozen=True)
class Monitor(Wrapper):
    """`monitor`, of its argument: names, and transformations that measure.

    It wraps none of these: what they make of the updates is no update.
    """

    names: tuple[str, ...]
    measures: tuple[Any, ...]

    data_fields = ("measures",)
    state_type = optax.MonitorState

    def init(self, params: Any) -> Any:
        states = tuple(measure.init(params) for measure in self.measures)
        measured = {
            name: jax.eval_shape(
                lambda each=each, state=state: each.update(params, state, params)[0]
            )
            for name, each, state in zip(self.names, self.measures, states, strict=True)
        }
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), measured)
        return optax.MonitorState(zeros, states)

    def step(
        self, updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, Any]:
        measured, states = {}, []
        for name, each, old in zip(self.names, self.measures, state.measure_states, strict=True):
            value, new = each.update(updates, old, params, **extra_args)
            # In the dtypes of the start, whatever that of the gradients.
            measured[name] = jax.tree.map(
                lambda x, like: jnp.asarray(x, like.dtype), value, state.measurements[name]
            )
            states.append(new)
        return updates, optax.MonitorState(measured, tuple(states))

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
    made = tuple(_measure(*each) for each in measures.items())
    return Transformation.of(Monitor(tuple(measures), made))


def _measure(name: str, measure: Any) -> Any:
    if isinstance(measure, optax.GradientTransformation):
        return member(measure, "monitor")
    if not callable(measure):
        raise TypeError(f"measures[{name!r}]={measure!r} is no function of the updates.")
    return Measure(measure)
