"""Schedules that rise along a line, and what comes after it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from .._core.arguments import is_number, one_of
from .._core.hyper import Hyper
from .._core.schedule import Length, Positive, Schedule
from .decays import cosine, exponential, falls, over, polynomial


@dataclass(frozen=True)
class warmup_constant_schedule(Schedule):
    """Up along a line, and there it stays.

        η = I + (P - I) min(t, W)/W

    Args:
      init_value: the value I at first.
      peak_value: the value P from the end of the warm-up on.
      warmup_steps: the number of steps W; with 0 or less it stays at I, as in optax.

    Raises:
      TypeError, ValueError: for an argument of the wrong type, or that is not finite, by name.

    Example:
      >>> import adaptive_jax as aj
      >>> aj.schedules.warmup_constant_schedule(0.0, 1.0, 10)([0, 5, 10, 20])
      Array([0. , 0.5, 1. , 1. ], dtype=float32)
    """

    init_value: Hyper
    peak_value: Hyper
    warmup_steps: Length

    def at(self, count):
        return polynomial(count, self.init_value, self.peak_value, self.warmup_steps)


@dataclass(frozen=True)
class warmup_cosine_decay_schedule(Schedule):
    """Up along a line, and down along half a wave of the cosine.

        η = I + (P - I) t/W for t < W
        η = E + (P - E)((1 + cos(π min(t - W, D - W)/(D - W)))/2)^p from there on

    Loshchilov & Hutter 2017, https://arxiv.org/abs/1608.03983

    Args:
      init_value: the value I at first.
      peak_value: the value P at the end of the warm-up; where it is 0, so is E, as in optax.
      warmup_steps: the number of steps W; with 0 or less it begins at P.
      decay_steps: the number of all steps D, > W: those of the warm-up are among them.
      end_value: the value E at the end.
      exponent: the power p.

    Raises:
      TypeError, ValueError: for an argument of the wrong type or out of range, by name.

    Example:
      >>> import adaptive_jax as aj, jax
      >>> schedule = aj.schedules.warmup_cosine_decay_schedule(0.0, 0.1, 5, 100)
      >>> schedule
      warmup_cosine_decay_schedule(init_value=0.0, peak_value=0.1, warmup_steps=5, decay_steps=100)
      >>> print(schedule(5), jax.grad(lambda schedule: schedule(5))(schedule).peak_value)
      0.1 1.0
    """

    init_value: Hyper
    peak_value: Hyper
    warmup_steps: Length
    decay_steps: Length
    end_value: Hyper = 0.0
    exponent: Hyper = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        warmup, steps = self.warmup_steps, self.decay_steps
        if is_number(warmup) and is_number(steps) and steps <= warmup:
            raise ValueError(
                f"decay_steps={steps:g} is out of range in warmup_cosine_decay_schedule: it is the number "
                f"of all steps, the {warmup:g} of warmup_steps among them, and must be larger than that."
            )

    def at(self, count):
        end = jnp.where(self.peak_value == 0, 0, self.end_value)
        since = count - self.warmup_steps
        share = cosine(since, self.decay_steps - self.warmup_steps, self.exponent)
        return _warmed_up(self, count, (self.peak_value - end) * share + end)


@dataclass(frozen=True)
class warmup_exponential_decay_schedule(Schedule):
    """Up along a line, and then a value times a rate for every so many steps.

        η = I + (P - I) t/W for t < W
        η = P·r^((t - W - B)/T) from there on

    Args:
      init_value: the value I at first.
      peak_value: the value P at the end of the warm-up.
      warmup_steps: the number of steps W; with 0 or less it begins at P.
      transition_steps: the number of steps T for each factor r; with 0 or less it stays at P.
      decay_rate: the rate r; with 0 it stays at P.
      transition_begin: the count B at which it begins, from the end of the warm-up; less than 0 is 0.
      staircase: True for an exponent rounded down, so that the value falls in steps.
      end_value: where it ends: the least value for a rate below 1, the largest one otherwise; None
        for no end.

    Raises:
      TypeError, ValueError: for an argument of the wrong type, or that is not finite, by name.

    Example:
      >>> import adaptive_jax as aj
      >>> aj.schedules.warmup_exponential_decay_schedule(0.0, 1.0, 4, 10, 0.5)([0, 2, 4, 14])
      Array([0. , 0.5, 1. , 0.5], dtype=float32)
    """

    init_value: Hyper
    peak_value: Hyper
    warmup_steps: Length
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
        since = count - self.warmup_steps
        return _warmed_up(self, count, exponential(self, self.peak_value, since))


@dataclass(frozen=True)
class warmup_inverse_sqrt_schedule(Schedule):
    """Up along a line, and down with the square root of the time.

        η = I + (P - I) t/W for t < W
        η = P √(τ/(t - W + τ)) from there on, which is P √(W/t) for τ = W

    Vaswani et al. 2017, https://arxiv.org/abs/1706.03762

    Args:
      init_value: the value I at first.
      peak_value: the value P at the end of the warm-up.
      warmup_steps: the number of steps W; with 0 or less it begins at P.
      timescale: how long τ it takes to fall to P/√2, > 0; None for W, or 1 where that is less.

    Raises:
      TypeError, ValueError: for an argument of the wrong type or out of range, by name.

    Example:
      >>> import adaptive_jax as aj
      >>> aj.schedules.warmup_inverse_sqrt_schedule(0.0, 1.0, 4)([0, 2, 4, 16])
      Array([0. , 0.5, 1. , 0.5], dtype=float32)
    """

    init_value: Hyper
    peak_value: Hyper
    warmup_steps: Length
    timescale: Positive = None

    def at(self, count):
        scale = self.timescale
        if scale is None:
            scale = jnp.where(self.warmup_steps > 1, self.warmup_steps, 1)
        since = jnp.maximum(count - self.warmup_steps, 0)
        return _warmed_up(self, count, self.peak_value * jnp.sqrt(scale / (since + scale)))


@dataclass(frozen=True)
class warmup_stable_decay_schedule(Schedule):
    """Up along a line, a stretch of one value, and down to the end.

        η = I + (P - I) t/W for t < W
        η = E + (P - E) f(clip(t - W - S, 0, D)/D) from there on

    f(x) is 1 - x, (1 + cos πx)/2 or 1 - √x. A run that has not begun to decay can be made longer.

    Hu et al. 2024, https://arxiv.org/abs/2404.06395; "sqrt": Hägele et al. 2024,
    https://arxiv.org/abs/2405.18392

    Args:
      init_value: the value I at first.
      peak_value: the value P in the middle.
      warmup_steps: the number of steps W on the way up; with 0 or less it begins at P.
      stable_steps: the number of steps S at P.
      decay_steps: the number of steps D on the way down; with 0 or less it stays at P.
      end_value: the value E at the end.
      shape: how it goes down: "linear", "cosine" or "sqrt".

    Raises:
      TypeError, ValueError: for an argument of the wrong type or out of range, by name.

    Example:
      >>> import adaptive_jax as aj
      >>> aj.schedules.warmup_stable_decay_schedule(0.0, 1.0, 4, 10, 4)([0, 2, 4, 14, 16, 18])
      Array([0. , 0.5, 1. , 1. , 0.5, 0. ], dtype=float32)
    """

    init_value: Hyper
    peak_value: Hyper
    warmup_steps: Length
    stable_steps: Length
    decay_steps: Length
    end_value: Hyper = 0.0
    shape: str = "linear"

    def __post_init__(self) -> None:
        one_of("shape", self.shape, ("linear", "cosine", "sqrt"))
        super().__post_init__()

    def at(self, count):
        elapsed = count - self.warmup_steps - self.stable_steps
        first, last, length = self.peak_value, self.end_value, self.decay_steps
        if self.shape == "linear":
            value = polynomial(elapsed, first, last, length)
        else:
            runs = (elapsed > 0) & (elapsed < length)
            share = over(elapsed, length, runs)
            if self.shape == "cosine":
                left = 0.5 * (1 + jnp.cos(jnp.pi * share))
            else:  # √0 has an infinite derivative.
                left = 1 - jnp.where(runs, jnp.sqrt(jnp.where(runs, share, 1)), 0)
            left = jnp.where((elapsed >= length) & (length > 0), 0, left)
            value = (first - last) * left + last
        return _warmed_up(self, count, value)


def _warmed_up(schedule: Any, count: jax.Array, after: jax.Array) -> jax.Array:
    """The warm-up of a schedule, and what comes after it."""
    steps = schedule.warmup_steps
    rise = polynomial(count, schedule.init_value, schedule.peak_value, steps)
    return jnp.where(count < steps, rise, after)
