"""Schedules of one stretch: constant, polynomial, exponential, and a cosine."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from jax import lax

from .._core.hyper import Hyper
from .._core.schedule import Length, PositiveLength, Schedule
from .._core.values import Interval

Inside = Annotated[Any, Interval(0.0, 1.0, open_below=True, open_above=True)]
"""A number between 0 and 1."""


@dataclass(frozen=True)
class constant_schedule(Schedule):
    """The same value at every count.

        η = v

    Args:
      value: the value v.

    Example:
      >>> import adaptive_jax as aj
      >>> aj.schedules.constant_schedule(0.1)(5)
      Array(0.1, dtype=float32)
    """

    value: Hyper

    def at(self, count):
        return jnp.broadcast_to(self.value, count.shape)


@dataclass(frozen=True)
class polynomial_schedule(Schedule):
    """From one value to another along a power of the time that is left.

        η = (I - E)(1 - clip(t - B, 0, T)/T)^p + E

    Args:
      init_value: the value I, up to the beginning.
      end_value: the value E, from the end on.
      power: the power p.
      transition_steps: the number of steps T; with 0 or less it stays at I.
      transition_begin: the count B at which it begins; less than 0 is 0.

    Raises:
      TypeError, ValueError: for an argument of the wrong type, or that is not finite, by name.

    Example:
      >>> import adaptive_jax as aj
      >>> schedule = aj.schedules.polynomial_schedule(1.0, 0.0, 2, 10)
      >>> schedule
      polynomial_schedule(init_value=1.0, end_value=0.0, power=2.0, transition_steps=10)
      >>> schedule(5)
      Array(0.25, dtype=float32)
    """

    init_value: Hyper
    end_value: Hyper
    power: Hyper
    transition_steps: Length
    transition_begin: Length = 0

    def at(self, count):
        return polynomial(
            count - jnp.maximum(self.transition_begin, 0),
            self.init_value,
            self.end_value,
            self.transition_steps,
            self.power,
        )


@dataclass(frozen=True)
class linear_schedule(Schedule):
    """From one value to another along a line.

        η = I + (E - I) clip(t - B, 0, T)/T

    Args:
      init_value: the value I, up to the beginning.
      end_value: the value E, from the end on.
      transition_steps: the number of steps T; with 0 or less it stays at I.
      transition_begin: the count B at which it begins; less than 0 is 0.

    Raises:
      TypeError, ValueError: for an argument of the wrong type, or that is not finite, by name.

    Example:
      >>> import adaptive_jax as aj
      >>> aj.sgd(aj.schedules.linear_schedule(1.0, 0.0, 10))
      sgd(learning_rate=linear_schedule(init_value=1.0, end_value=0.0, transition_steps=10))
    """

    init_value: Hyper
    end_value: Hyper
    transition_steps: Length
    transition_begin: Length = 0

    def at(self, count):
        elapsed = count - jnp.maximum(self.transition_begin, 0)
        return polynomial(elapsed, self.init_value, self.end_value, self.transition_steps)


@dataclass(frozen=True)
class half_life_schedule(Schedule):
    """From one decay rate of a moving average to another, so that its half-life moves along a line.

        1/log β = 1/log I + (1/log E - 1/log I) clip(t - B, 0, T)/T

    It is the warm-up of AdEMAMix's slow average, `aj.ademamix(…, b3_warmup=T)`, which counts from 1.

    Pagliardini, Ablin & Grangier 2024, https://arxiv.org/abs/2409.03137

    Args:
      init_value: the decay rate I, up to the beginning, between 0 and 1.
      end_value: the decay rate E, from the end on, between 0 and 1.
      transition_steps: the number of steps T; with 0 or less it stays at I.
      transition_begin: the count B at which it begins; less than 0 is 0.

    Raises:
      TypeError, ValueError: for an argument of the wrong type or out of range, by name.

    Example:
      >>> import adaptive_jax as aj
      >>> print(aj.schedules.half_life_schedule(0.9, 0.999, 100)([1, 50, 100]))
      [0.9497379 0.9980198 0.999    ]
    """

    init_value: Inside
    end_value: Inside
    transition_steps: Length
    transition_begin: Length = 0

    def at(self, count):
        first, last = (1 / jnp.log(rate) for rate in (self.init_value, self.end_value))
        elapsed = count - jnp.maximum(self.transition_begin, 0)
        return jnp.exp(1 / polynomial(elapsed, first, last, self.transition_steps))


@dataclass(frozen=True)
class exponential_decay(Schedule):
    """A value times a rate for every so many steps.

        η = I·r^((t - B)/T)

    Args:
      init_value: the value I, up to the beginning.
      transition_steps: the number of steps T for each factor r; with 0 or less it stays at I.
      decay_rate: the rate r; with 0 it stays at I.
      transition_begin: the count B at which it begins; less than 0 is 0.
      staircase: True for an exponent rounded down, so that the value falls in steps.
      end_value: where it ends: the least value for a rate below 1, the largest one otherwise; None
        for no end.

    Raises:
      TypeError, ValueError: for an argument of the wrong type, or that is not finite, by name.

    Example:
      >>> import adaptive_jax as aj
      >>> aj.schedules.exponential_decay(1.0, 10, 0.5, end_value=0.1)([0, 10, 15, 100])
      Array([1.        , 0.5       , 0.35355338, 0.1       ], dtype=float32)
    """

    init_value: Hyper
    transition_steps: Length
    decay_rate: Hyper
    transition_begin: Length = 0
    staircase: bool = False
    end_value: Hyper = None
    falls: bool | None = dataclasses.field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "falls", falls(self.decay_rate, self.end_value))

    def at(self, count):
        return exponential(self, self.init_value, count)


@dataclass(frozen=True)
class cosine_decay_schedule(Schedule):
    """From a value to a share of it along half a wave of the cosine.

        η = I((1 - α)((1 + cos(π min(t, T)/T))/2)^p + α)

    Loshchilov & Hutter 2017, https://arxiv.org/abs/1608.03983

    Args:
      init_value: the value I at first.
      decay_steps: the number of steps T, > 0.
      alpha: the share α that is left at the end.
      exponent: the power p.

    Raises:
      TypeError, ValueError: for an argument of the wrong type or out of range, by name.

    Example:
      >>> import adaptive_jax as aj
      >>> aj.schedules.cosine_decay_schedule(1.0, 10, alpha=0.5)([0, 5, 10, 20])
      Array([1.  , 0.75, 0.5 , 0.5 ], dtype=float32)
    """

    init_value: Hyper
    decay_steps: PositiveLength
    alpha: Hyper = 0.0
    exponent: Hyper = 1.0

    def at(self, count):
        share = cosine(count, self.decay_steps, self.exponent)
        return self.init_value * ((1 - self.alpha) * share + self.alpha)


def polynomial(elapsed: Any, first: Any, last: Any, length: Any, power: Any = None) -> jax.Array:
    """From first to last in so many steps; first where there are none of them.

    power: of the time that is left; None for 1.
    """
    is_over = elapsed >= length
    left = 1 - over(elapsed, length, (elapsed > 0) & ~is_over)
    if power is not None:
        left = left**power
    value = (first - last) * left + last
    end = last if power is None else (first - last) * of_zero(power) + last
    return jnp.where(length > 0, jnp.where(is_over, end, value), first)


def exponential(schedule: Any, first: Any, count: jax.Array) -> jax.Array:
    """The value of an `exponential_decay` that begins with a value, or of what has its fields."""
    length, rate, end = schedule.transition_steps, schedule.decay_rate, schedule.end_value
    elapsed = count - jnp.maximum(schedule.transition_begin, 0)
    runs = (elapsed > 0) & (length > 0) & (rate != 0)
    exponent = over(elapsed, length, runs)
    if schedule.staircase:
        exponent = jnp.floor(exponent)
    value = jnp.where(runs, first * jnp.where(runs, rate, 1) ** exponent, first)
    if end is None:
        return value
    least, largest = jnp.where(value < end, end, value), jnp.where(value > end, end, value)
    if schedule.falls is None:
        value = jnp.where(rate < 1, least, largest)
    else:
        value = least if schedule.falls else largest
    return jnp.where((length > 0) & (rate != 0), value, first)


def falls(rate: Any, end: Any) -> bool | None:
    """Whether a decay to some end is one downwards; None where the rate is traced, or has no end.

    In float64: a rate that is nearly 1 may be 1 in float32.
    """
    return rate < 1 if end is not None and isinstance(rate, float) else None


def cosine(elapsed: jax.Array, length: Any, exponent: Any) -> jax.Array:
    """From 1 to 0 along half a wave of the cosine, to some power."""
    runs = elapsed < length
    wave = 0.5 * (1 + jnp.cos(over(jnp.pi * elapsed, length, runs)))
    # 0 to a power below 1 has an infinite derivative: at the end there is none.
    runs = runs & (wave > 0)
    return jnp.where(runs, jnp.where(runs, wave, 1) ** exponent, of_zero(exponent))


def over(elapsed: jax.Array, length: Any, runs: jax.Array) -> jax.Array:
    """elapsed / length while something runs; 0 before and after that, with a derivative of 0."""
    return jnp.where(runs, elapsed, 0) / jnp.where(length > 0, length, 1)


def of_zero(power: Any) -> jax.Array:
    """0 to a power, which may be 0, as a constant."""
    return lax.stop_gradient(jnp.zeros_like(power) ** power)
