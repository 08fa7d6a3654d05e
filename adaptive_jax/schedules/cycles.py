"""Schedules that go up and down: once, again and again, and with warm restarts."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from .._core.hyper import Hyper
from .._core.schedule import (
    Positive,
    PositiveLength,
    Schedule,
    check_some,
    in_dtype,
    numbers_of,
    precision,
)
from .decays import over
from .pieces import interpolated
from .warmup import warmup_cosine_decay_schedule


@dataclass(frozen=True)
class linear_onecycle_schedule(Schedule):
    """One cycle along lines: up, back down, and further down to almost nothing.

        P/d at t = 0; P at ⌊a T⌋; P/d at ⌊b T⌋; P/(d f) at T and from there on; lines between them

    Where the boundaries are whole numbers that follow from T, they are computed when the schedule is
    made. (In a tree mapped over all of its leaves they are mapped as well.)

    Smith & Topin 2017, https://arxiv.org/abs/1708.07120

    Args:
      transition_steps: the number of steps T, > 0.
      peak_value: the value P at the top.
      pct_start: the share a of the steps on the way up.
      pct_final: the share b of the steps until it is back.
      div_factor: the ratio d of the peak to the first value, > 0.
      final_div_factor: the ratio f of the first value to the last one, > 0.

    Raises:
      TypeError, ValueError: for an argument of the wrong type or out of range, by name.

    Example:
      >>> import adaptive_jax as aj
      >>> aj.schedules.linear_onecycle_schedule(8, 1.0, 0.5, 0.75, 4.0, 2.0)([0, 2, 4, 6, 8])
      Array([0.25 , 0.625, 1.   , 0.25 , 0.125], dtype=float32)
    """

    transition_steps: PositiveLength
    peak_value: Hyper
    pct_start: Hyper = 0.3
    pct_final: Hyper = 0.85
    div_factor: Positive = 25.0
    final_div_factor: Positive = 1e4
    boundaries: Any = dataclasses.field(default=(), init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        boundaries = _boundaries(self.transition_steps, self.pct_start, self.pct_final)
        object.__setattr__(self, "boundaries", boundaries)

    def at(self, count):
        scales = self.div_factor, 1 / self.div_factor, 1 / self.final_div_factor
        return _one_cycle("linear", self, scales, count)


@dataclass(frozen=True)
class cosine_onecycle_schedule(Schedule):
    """One cycle along half waves of the cosine: up, and down to almost nothing.

        P/d at t = 0; P at ⌊a T⌋; P/(d f) at T and from there on; half waves between them

    Where the boundaries are whole numbers that follow from T, they are computed when the schedule is
    made. (In a tree mapped over all of its leaves they are mapped as well.)

    Smith & Topin 2017, https://arxiv.org/abs/1708.07120

    Args:
      transition_steps: the number of steps T, > 0.
      peak_value: the value P at the top.
      pct_start: the share a of the steps on the way up.
      div_factor: the ratio d of the peak to the first value, > 0.
      final_div_factor: the ratio f of the first value to the last one, > 0.

    Raises:
      TypeError, ValueError: for an argument of the wrong type or out of range, by name.

    Example:
      >>> import adaptive_jax as aj
      >>> aj.schedules.cosine_onecycle_schedule(8, 1.0, 0.5, 4.0, 2.0)([0, 4, 8]).round(3)
      Array([0.25 , 1.   , 0.125], dtype=float32)
    """

    transition_steps: PositiveLength
    peak_value: Hyper
    pct_start: Hyper = 0.3
    div_factor: Positive = 25.0
    final_div_factor: Positive = 1e4
    boundaries: Any = dataclasses.field(default=(), init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        boundaries = _boundaries(self.transition_steps, self.pct_start)
        object.__setattr__(self, "boundaries", boundaries)

    def at(self, count):
        scales = self.div_factor, 1 / (self.div_factor * self.final_div_factor)
        return _one_cycle("cosine", self, scales, count)


@dataclass(frozen=True)
class cyclic_schedule(Schedule):
    """Up and down along lines, again and again, lower each time if that is asked for.

        η = I + (P - I) x γᶜ, x = s/U for s < U, (U + D - s)/D from there on

    c counts the cycles, and s the steps of the cycle at hand. PyTorch's CyclicLR is the same: its
    "triangular2" has γ = 1/2, its "exp_range" a γ for each step.

    Smith 2017, https://arxiv.org/abs/1506.01186

    Args:
      init_value: the value I at both ends of a cycle.
      peak_value: the value P at the top of the first one.
      up_steps: the number of steps U on the way up, > 0.
      down_steps: the number of steps D on the way down, > 0; None for U.
      decay_rate: the factor γ.
      decay_each_step: True for γ to the power t in place of c.

    Raises:
      TypeError, ValueError: for an argument of the wrong type or out of range, by name.

    Example:
      >>> import adaptive_jax as aj
      >>> aj.schedules.cyclic_schedule(0.0, 1.0, 4, decay_rate=0.5)([0, 4, 6, 8, 12])
      Array([0. , 1. , 0.5, 0. , 0.5], dtype=float32)
    """

    init_value: Hyper
    peak_value: Hyper
    up_steps: PositiveLength
    down_steps: PositiveLength = None
    decay_rate: Positive = 1.0
    decay_each_step: bool = False

    def at(self, count):
        up = self.up_steps
        down = up if self.down_steps is None else self.down_steps
        length = jnp.where(up + down > 0, up + down, 1)
        step = jnp.mod(count, length)
        share = jnp.where(
            step < up, over(step, up, step < up), over(up + down - step, down, step >= up)
        )
        times = count if self.decay_each_step else jnp.round((count - step) / length)
        return (
            self.init_value + (self.peak_value - self.init_value) * share * self.decay_rate**times
        )


@dataclass(frozen=True)
class sgdr_schedule(Schedule):
    """Warm restarts: one warm-up and cosine decay after the other.

        η = wᵢ(t - bᵢ) for bᵢ ≤ t < bᵢ₊₁, bᵢ₊₁ = bᵢ + Dᵢ, b₀ = 0

    Loshchilov & Hutter 2017, https://arxiv.org/abs/1608.03983

    Args:
      cosine_kwargs: the arguments of each `warmup_cosine_decay_schedule` wᵢ, a dict for each; its
        `decay_steps` Dᵢ is how long it lasts.

    Raises:
      TypeError, ValueError: for an argument of the wrong type or out of range, by name.

    Example:
      >>> import adaptive_jax as aj
      >>> cycles = [dict(init_value=0.0, peak_value=1.0, warmup_steps=5, decay_steps=n) for n in (10, 20)]
      >>> aj.schedules.sgdr_schedule(cycles)([0, 5, 10, 15, 30])
      Array([0., 1., 0., 1., 0.], dtype=float32)
    """

    cosine_kwargs: Any

    def __post_init__(self) -> None:
        given = self.cosine_kwargs
        if not isinstance(given, Iterable) or isinstance(given, (str, Mapping)):
            raise TypeError(
                f"cosine_kwargs={given!r:.80} in sgdr_schedule must be a sequence of dicts, the arguments "
                "of a warmup_cosine_decay_schedule for each cycle."
            )
        kind = warmup_cosine_decay_schedule
        cycles = tuple(each if isinstance(each, kind) else kind(**each) for each in given)
        check_some("sgdr_schedule", cycles)
        object.__setattr__(self, "cosine_kwargs", cycles)

    def at(self, count):
        first, *rest = self.cosine_kwargs
        value, begin = first.at(count), first.decay_steps
        for cycle in rest:
            value = jnp.where(count < begin, value, cycle.at(count - begin))
            begin = begin + cycle.decay_steps
        return value

    def __repr__(self):
        shown = [
            f"dict{repr(each).removeprefix(type(each).__name__)}" for each in self.cosine_kwargs
        ]
        return f"sgdr_schedule(cosine_kwargs=[{', '.join(shown)}])"


def _boundaries(steps: Any, *shares: Any) -> tuple[Any, ...]:
    """Shares of some steps, without what is behind the point: of Python numbers in float64."""
    if all(isinstance(each, float) for each in (steps, *shares)):
        return tuple(float(int(share * steps)) for share in shares)
    numbers = steps, *shares
    steps, *rest = in_dtype(numbers, precision(numbers_of(numbers)))
    return tuple(jnp.trunc(share * steps) for share in rest)


def _one_cycle(kind: str, schedule: Any, scales: tuple[Any, ...], count: Any) -> Any:
    """Between the first value and those at the boundaries, the last of which is the end."""
    boundaries = (*schedule.boundaries, schedule.transition_steps)
    kept = []
    for place, scale in enumerate(scales):
        # Of two at one count the later one counts, as in a dict.
        for later in boundaries[place + 1 :]:
            scale = jnp.where(boundaries[place] == later, 1, scale)
        kept.append(scale)
    first = schedule.peak_value / schedule.div_factor
    return interpolated(kind, first, boundaries, kept, count)
