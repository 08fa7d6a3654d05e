"""One optimizer after the other: from a step on, or by the criterion of SWATS."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from .. import maths
from .._core import export, hyper, nodes
from .._core.transformation import Transformation
from .._core.wrapper import Wrapper
from .mixing import check_members, times


@export.state
class SwitchState(NamedTuple):
    """How many steps there were, and the states of both optimizers."""

    count: jax.Array
    first_state: Any
    second_state: Any


@dataclass(frozen=True)
class Switch(Wrapper):
    """`switch` at a step, of its arguments."""

    first: Any
    second: Any
    when: Any

    wraps = {"first": "first_state", "second": "second_state"}
    data_fields = ("when",)
    state_type: ClassVar[Any] = SwitchState
    label = "switch"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_members(self)

    def init(self, params: Any) -> Any:
        states = self.first.init(params), self.second.init(params)
        return SwitchState(jnp.zeros((), jnp.int32), *states)

    def is_second(self, state: Any) -> jax.Array:
        """Whether it is the second one's turn in the step after this state."""
        return state.count.astype(jnp.float32) >= jnp.asarray(self.when, jnp.float32)

    def rate_weights(self, state: Any) -> list[Any]:
        """What each one's learning rate counts in the step after this state."""
        is_second = self.is_second(state).astype(jnp.float32)
        return [1 - is_second, is_second]

    def step(
        self, updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, Any]:
        new, *states = self.turn(updates, state, params, extra_args)
        return new, SwitchState(maths.incremented(state.count), *states)

    def turn(
        self, updates: Any, state: Any, params: Any, extra_args: Mapping[str, Any]
    ) -> tuple[Any, Any, Any]:
        """The updates of the one whose turn it is, and the states of both."""

        def of_first(first: Any, second: Any) -> tuple[Any, Any, Any]:
            new, first = self.first.update(updates, first, params, **extra_args)
            return _like(new, updates), first, second

        def of_second(first: Any, second: Any) -> tuple[Any, Any, Any]:
            new, second = self.second.update(updates, second, params, **extra_args)
            return _like(new, updates), first, second

        is_second = self.is_second(state)
        return lax.cond(is_second, of_second, of_first, state.first_state, state.second_state)


@export.state
class SwatsState(NamedTuple):
    """What SWATS knows beside the states of both optimizers.

    count: how many steps there were.
    average: the moving average of the estimated learning rate, as of the last step of the first one.
    rate: the learning rate of the second one, 0 before its turn.
    """

    count: jax.Array
    average: jax.Array
    rate: jax.Array
    first_state: Any
    second_state: Any


@dataclass(frozen=True)
class Swats:
    """When SWATS switches from Adam to SGD: as soon as the learning rate it would need has settled.

        γ = ‖p‖²/(-⟨p, g⟩),   λ ← βλ + (1-β)γ,   Λ = λ/(1-βᵗ)
        from the first t > 1 on with |Λ - γ| < ε the second optimizer's turn, its updates times Λ

    For `aj.switch(first, second, aj.Swats())`. p is the step of the first optimizer, g the gradient, both
    of all arrays together: γ is the learning rate with which the gradient, projected onto p, is p. A
    step with ⟨p, g⟩ = 0 is left out of λ.

    Keskar & Socher 2017, https://arxiv.org/abs/1712.07628, algorithm 1.

    Differs from the paper: where Λ is not positive, which would climb, it goes on with the first.

    decay: β in [0, 1), the paper's β₂.
    eps: ε >= 0. It is an absolute number, and so 1e-9, the paper's, is for learning rates as Adam has.
    """

    decay: Any = 0.999
    eps: Any = 1e-9

    def __post_init__(self) -> None:
        intervals = {"decay": hyper.Interval(0.0, 1.0, open_above=True), "eps": hyper.Interval(0.0)}
        for name, interval in intervals.items():
            object.__setattr__(self, name, _number("Swats", name, getattr(self, name), interval))

    def __repr__(self) -> str:
        return f"Swats(decay={hyper.show(self.decay)}, eps={hyper.show(self.eps)})"


nodes.register(Swats, lambda _: (("decay", "eps"), ()))


@dataclass(frozen=True)
class SwatsSwitch(Switch):
    """`switch` by the criterion of SWATS, of its arguments."""

    when: Swats

    state_type = SwatsState

    def init(self, params: Any) -> SwatsState:
        dtypes = [jnp.result_type(x) for x in jax.tree.leaves(params)]
        dtype = maths.compute_dtype(jnp.float32, *dtypes)
        numbers = jnp.zeros((), dtype), jnp.zeros((), dtype)
        states = self.first.init(params), self.second.init(params)
        return SwatsState(jnp.zeros((), jnp.int32), *numbers, *states)

    def is_second(self, state: Any) -> jax.Array:
        return state.rate > 0

    def rate_weights(self, state: Any) -> list[Any]:
        return [(state.rate == 0).astype(jnp.float32), state.rate]

    def step(
        self, updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, SwatsState]:
        new, *states = self.turn(updates, state, params, extra_args)
        is_second, count = self.is_second(state), maths.incremented(state.count)
        decay, eps = (jnp.asarray(x, state.average.dtype) for x in (self.when.decay, self.when.eps))
        estimate, is_there = _projected_rate(new, updates, state.average.dtype)
        average = maths.ema(estimate, state.average, decay)
        average = jnp.where(is_there & ~is_second, average, state.average)
        settled = average / maths.power_complement(decay, count)
        found = is_there & (count > 1) & (jnp.abs(settled - estimate) < eps) & (settled > 0)
        rate = jnp.where(is_second, state.rate, jnp.where(found, settled, 0))
        factor = jnp.where(is_second, state.rate, 1)
        new = jax.tree.map(lambda x: times(maths.precise(x), factor).astype(x.dtype), new)
        return new, SwatsState(count, average, rate, *states)


def _projected_rate(steps: Any, gradients: Any, dtype: Any) -> tuple[jax.Array, jax.Array]:
    """‖p‖²/(-⟨p, g⟩) of all arrays together, and whether there is one: no square overflows.

    It is a constant where an update is differentiated.
    """
    limits, (steps, gradients) = jnp.finfo(dtype), lax.stop_gradient((steps, gradients))
    steps, gradients = (list(map(maths.precise, jax.tree.leaves(x))) for x in (steps, gradients))
    of_p, of_g = (
        jnp.maximum(maths.global_norm(x).astype(dtype), limits.tiny) for x in (steps, gradients)
    )
    cosine = jnp.zeros((), dtype)
    for p, g in zip(steps, gradients, strict=True):
        product = maths.quotient(p, of_p) * jnp.conj(maths.quotient(g, of_g))
        cosine = cosine + jnp.sum(jnp.real(product)).astype(dtype)
    is_there = cosine != 0
    rate = of_p / of_g / -jnp.where(is_there, cosine, 1)
    return jnp.clip(rate, -limits.max / 2, limits.max / 2), is_there


def _like(new: Any, updates: Any) -> Any:
    return jax.tree.map(lambda x, like: maths.saturating_cast(x, like.dtype), new, updates)


def _number(of: str, name: str, value: Any, interval: Any) -> Any:
    """A number, or an array of shape (), which may be a tracer."""
    if value is None or hyper.is_schedule(value):
        raise TypeError(
            f"{name}={value!r:.80} in {of} must be {interval}, or an array of shape ()."
        )
    return hyper.hyperparameter(of, name, value, interval)


def switch(
    first: optax.GradientTransformation, second: optax.GradientTransformation, when: Any
) -> Transformation:
    """One optimizer after the other: from a step on, or when SWATS would.

        u of first in the steps 1 … when,   of second afterwards

    Only the one whose turn it is runs, but under `jax.vmap`. The second one begins with its state at first,
    its schedules too: it has not seen the gradients before.

    Args:
      first: the optimizer to begin with.
      second: the one to go on with.
      when: after how many steps, >= 0: a number, or an array of shape (), which may be a tracer; or
        `aj.Swats()`, from Adam to SGD: then second is SGD with the learning rate 1, or a schedule from 1
        on, and its updates are multiplied by the rate that is estimated. The paper's has the momentum
        (1-β₁)Λv, which is `aj.sgd(1.0, momentum=0.9, dampening=0.9)`.

    Returns:
      The transformation. Its state is a `SwitchState`, or a `SwatsState` with the rate that was found.

    Raises:
      TypeError, ValueError: for something that is not a transformation, for a `when` that is none of these,
        for `compensate` inside, and for a rule that evaluates with other parameters.

    Example:
      >>> import adaptive_jax as aj, jax.numpy as jnp
      >>> tx = aj.switch(aj.adam(0.1), aj.sgd(1.0), when=2)
      >>> state = tx.init(jnp.ones(()))
      >>> for _ in range(3):
      ...     updates, state = tx.update(jnp.float32(0.5), state)
      ...     print(f"{updates:.3f}")
      -0.100
      -0.100
      -0.500
    """
    if isinstance(when, Swats):
        return Transformation.of(SwatsSwitch(first, second, when))
    if isinstance(when, type):
        raise TypeError(f"when={when.__name__} is a class: give one of it, {when.__name__}().")
    when = _number("switch", "when", when, hyper.Interval(0.0))
    return Transformation.of(Switch(first, second, when))
