"""Many optimizers on the same parameters at once: grafted, or blended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from .. import maths
from .._core import export, hyper
from .._core.transformation import Foreign, Transformation, data_of, member
from .._core.wrapper import Wrapper, evaluating, walk
from .compensate import Compensate


@export.state
class GraftState(NamedTuple):
    """The states of the optimizer that gives the direction, and of that which gives the size."""

    direction_state: Any
    size_state: Any


@dataclass(frozen=True)
class Graft(Wrapper):
    """`graft`, of its arguments."""

    direction: Any
    size: Any

    wraps = {"direction": "direction_state", "size": "size_state"}
    state_type = GraftState
    label = "graft"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_members(self)

    def init(self, params: Any) -> GraftState:
        return GraftState(self.direction.init(params), self.size.init(params))

    def step(
        self, updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, GraftState]:
        wide = _wide(updates, self.wrapped())
        direction, direction_state = self.direction.update(
            wide, state.direction_state, params, **extra_args
        )
        size, size_state = self.size.update(wide, state.size_state, params, **extra_args)
        new = jax.tree.map(_grafted, direction, size, updates)
        return new, GraftState(direction_state, size_state)


def _grafted(direction: jax.Array, size: jax.Array, gradient: jax.Array) -> jax.Array:
    """The direction of one array, as long as the other one."""
    if not gradient.size:
        return gradient
    direction, size = maths.precise(direction), maths.precise(size)
    length = maths.norm(direction)
    length = jnp.where(length < jnp.finfo(length.dtype).tiny, jnp.ones_like(length), length)
    new = maths.scaled(maths.quotient(direction, length), maths.norm(size))
    # What is not finite in the size stays visible where the direction is 0.
    return maths.saturating_cast(new + 0 * size, gradient.dtype)


@export.state
class BlendState(NamedTuple):
    """How many steps there were, and the states of all by their names."""

    count: jax.Array
    inner_states: dict[str, Any]


@dataclass(frozen=True)
class Blend(Wrapper):
    """`blend`, of its argument in two: transformations and weights by their names."""

    transforms: dict[str, Any]
    weights: dict[str, Any]

    wraps = {"transforms": "inner_states"}
    data_fields = ("weights",)
    state_type = BlendState
    label = "blend"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_members(self)

    def init(self, params: Any) -> BlendState:
        states = {name: each.init(params) for name, each in self.transforms.items()}
        return BlendState(jnp.zeros((), jnp.int32), states)

    def rate_weights(self, state: Any) -> list[Any]:
        """The weights in the step after this state, which are those of the learning rates too."""
        return [
            hyper.scheduled("blend", f"the weight of {name}", weight, state.count)
            if hyper.is_schedule(weight)
            else weight
            for name, weight in self.weights.items()
        ]

    def step(
        self, updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, BlendState]:
        wide, parts, new = _wide(updates, self.wrapped()), [], {}
        for name, each in self.transforms.items():
            part, new[name] = each.update(wide, state.inner_states[name], params, **extra_args)
            parts.append(part)
        weights = self.rate_weights(state)

        def blended(gradient: jax.Array, *of_each: jax.Array) -> jax.Array:
            weighted = (times(maths.precise(x), w) for x, w in zip(of_each, weights, strict=True))
            total, *rest = weighted
            return maths.saturating_cast(sum(rest, total), gradient.dtype)

        blend = jax.tree.map(blended, updates, *parts)
        return blend, BlendState(maths.incremented(state.count), new)

    def __repr__(self) -> str:
        inner = [
            f"{name!r}: ({each!r}, {hyper.show(self.weights[name])})"
            for name, each in self.transforms.items()
        ]
        return f"blend({{{', '.join(inner)}}})"


def times(x: jax.Array, factor: Any) -> jax.Array:
    """x times a number."""
    return maths.scaled(x, jnp.asarray(factor))


def _wide(updates: Any, transformations: Any) -> Any:
    """The gradients in float32 at least, so that what is mixed is rounded once.

    Another library's transformations keep states in the dtypes of gradients: to these they go as they are.
    """
    if any(isinstance(data, Foreign) for each in transformations for (data,) in walk(each)):
        return updates
    return jax.tree.map(maths.precise, updates)


def check_members(wrapper: Wrapper) -> None:
    """Raises a ValueError for what must see its own updates added to the parameters, and nothing else."""
    name = wrapper.label
    for each in wrapper.wrapped():
        if rules := evaluating(each):
            raise ValueError(
                f"{rules[0]!r} in {name} evaluates with parameters that follow from its own steps, and "
                "other steps are taken here: leave it out."
            )
        if _compensates(each):
            raise ValueError(
                f"compensate in {name} keeps what its own steps leave of the parameters, and other steps "
                f"are taken here: put it around, aj.compensate(aj.{name}(…))."
            )


def _compensates(transformation: Any) -> bool:
    data = data_of(transformation)
    inner = data.wrapped() if isinstance(data, Wrapper) else ()
    return isinstance(data, Compensate) or any(map(_compensates, inner))


def graft(
    direction: optax.GradientTransformation, size: optax.GradientTransformation
) -> Transformation:
    """The direction of one optimizer with the step size of another one, array by array.

        u = ‖s‖·d/‖d‖,   d of direction, s of size; 0 where ‖d‖ is 0

    So a matrix method takes steps as long as Adam's, with a learning rate that was tuned for Adam. Each
    gets the gradients and the parameters, and has its own state. The length of a step is that of size,
    whose learning rate and weight decay are in it; `train_step` measures this learning rate. That of
    direction has no effect, unless something in it is weighed against it.

    Agarwal et al. 2020, https://arxiv.org/abs/2002.11803.

    Args:
      direction: an optimizer, or a piece for a chain, whose updates go where the step goes.
      size: an optimizer whose updates, in each array, are as long as the step is to be.

    Returns:
      The transformation. Its state is a `GraftState`.

    Raises:
      TypeError: for something that is not a transformation.
      ValueError: for `compensate` inside, and for a rule that evaluates with other parameters.

    Example:
      >>> import adaptive_jax as aj, jax.numpy as jnp
      >>> tx = aj.graft(aj.scale_by_adam(), aj.sgd(0.1))
      >>> params = jnp.array([3.0, 4.0])
      >>> updates, state = tx.update(-params, tx.init(params), params)
      >>> print(*(f"{x:.3f}" for x in updates), f"{aj.global_norm(updates):.3f}")
      -0.354 -0.354 0.500
    """
    return Transformation.of(Graft(direction, size))


def blend(transforms: Mapping[str, tuple[optax.GradientTransformation, Any]]) -> Transformation:
    """The weighted sum of what several optimizers do.

        u = Σ wᵢuᵢ

    Each gets the gradients and the parameters, and has its own state. Weights are data: new ones compile
    nothing, and `jax.vmap(lambda w: aj.blend({"a": (aj.adam(1e-3), w), "b": (aj.sgd(0.1), 1 - w)}))` is a
    sweep. They may have either sign, and need not add up to 1. `train_step` measures the sum of wᵢηᵢ.

    Args:
      transforms: from names, which sort, to pairs of an optimizer and its weight: a number, an array of
        shape (), or a schedule.

    Returns:
      The transformation. Its state is a `BlendState`.

    Raises:
      TypeError, ValueError: for what is no mapping to pairs, for something that is not a transformation, by
        its name, for `compensate` inside, and for a rule that evaluates with other parameters.

    Example:
      >>> import adaptive_jax as aj, jax.numpy as jnp
      >>> tx = aj.blend({"adam": (aj.adam(0.1), 0.5), "sgd": (aj.sgd(1.0), 0.25)})
      >>> updates, state = tx.update(jnp.float32(2.0), tx.init(jnp.ones(())))
      >>> print(f"{updates:.3f}")
      -0.550
    """
    if not isinstance(transforms, Mapping) or not transforms:
        raise TypeError(
            f"blend takes a mapping from names to pairs of a transformation and its weight, got "
            f'{transforms!r:.80}: aj.blend({{"a": (aj.adam(1e-3), 0.5), "b": (aj.sgd(0.1), 0.5)}}).'
        )
    made, weights = {}, {}
    try:
        names: list[Any] = sorted(transforms)
    except TypeError:
        raise TypeError(
            f"the names {', '.join(map(repr, transforms))} in blend cannot be sorted, as the keys of a "
            "state have to be: give strings, or numbers."
        ) from None
    for name in names:
        pair = transforms[name]
        # A transformation is a tuple of two itself.
        is_pair = type(pair) in (tuple, list) and len(pair) == 2
        if not is_pair:
            raise TypeError(
                f"transforms[{name!r}] of blend is {pair!r:.80}: it must be a pair of a transformation and "
                "its weight, (aj.adam(1e-3), 0.5)."
            )
        made[name] = member(pair[0], f"transforms[{name!r}] of blend")
        weight = hyper.hyperparameter("blend", f"the weight of {name}", pair[1], hyper.Interval())
        if weight is None:
            raise TypeError(f"the weight of {name} in blend is None: give a number.")
        weights[name] = hyper.as_data(weight)
    return Transformation.of(Blend(made, weights))
