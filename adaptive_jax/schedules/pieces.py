"""Schedules of several stretches: one after the other, and between values at given counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from .._core.arguments import is_number, one_of
from .._core.hyper import Hyper
from .._core.schedule import Lengths, Schedule, as_data, check_some, value_of
from .._core.values import Interval


@dataclass(frozen=True)
class join_schedules(Schedule):
    """One schedule after the other, each with a count that begins at 0.

        η = sᵢ(t - bᵢ) for bᵢ ≤ t < bᵢ₊₁, b₀ = 0

    Args:
      schedules: schedules, functions of the count (such as those of optax, which get an int32), and
        numbers, which stand for themselves.
      boundaries: the counts at which the next one begins, in order: one fewer than schedules.

    Raises:
      TypeError, ValueError: for an argument of the wrong type, and for numbers that do not match.

    Example:
      >>> import adaptive_jax as aj
      >>> rise = aj.schedules.linear_schedule(0.0, 1.0, 5)
      >>> fall = aj.schedules.cosine_decay_schedule(1.0, 10)
      >>> aj.schedules.join_schedules([rise, fall], [5])([0, 5, 15])
      Array([0., 1., 0.], dtype=float32)
    """

    schedules: Any
    boundaries: Annotated[Any, Lengths()]

    def __post_init__(self) -> None:
        super().__post_init__()
        check_some("join_schedules", self.schedules)
        count = len(self.boundaries) if type(self.boundaries) is tuple else -1
        if count != len(self.schedules) - 1:
            raise ValueError(
                f"boundaries={self.boundaries!r:.80} in join_schedules must be a sequence of "
                f"{len(self.schedules) - 1}, one fewer than the schedules: the counts at which the second "
                "one and so on begin."
            )

    def at(self, count):
        first, *rest = self.schedules
        value = jnp.broadcast_to(value_of(first, count), count.shape)
        for boundary, schedule in zip(self.boundaries, rest, strict=True):
            begun = count >= boundary
            # Before it has begun it is not asked for what it may not have: it begins at 0.
            value = jnp.where(
                begun, value_of(schedule, jnp.where(begun, count - boundary, 0)), value
            )
        return value


@dataclass(frozen=True)
class piecewise_constant_schedule(Schedule):
    """A value that is multiplied at some counts.

        η = I·Π sᵢ over all i with bᵢ ≤ t

    Args:
      init_value: the value I at first.
      boundaries_and_scales: from each count bᵢ to its factor sᵢ, >= 0: a dict, or where counts are traced
        the tuple of all counts and that of all factors. None for no factors.

    Raises:
      TypeError, ValueError: for an argument of the wrong type or out of range, by name.

    Example:
      >>> import adaptive_jax as aj
      >>> aj.schedules.piecewise_constant_schedule(1.0, {100: 0.5, 200: 0.5})([99, 100, 200])
      Array([1.  , 0.5 , 0.25], dtype=float32)
    """

    init_value: Hyper
    boundaries_and_scales: Any = None

    def __post_init__(self) -> None:
        pairs = boundaries_and_scales(type(self).__name__, self.boundaries_and_scales)
        object.__setattr__(self, "boundaries_and_scales", pairs)
        super().__post_init__()

    def arguments(self) -> dict[str, Any]:
        """The arguments of the call that makes it again, but for those that have their default."""
        return _arguments(self, super().arguments())

    def at(self, count):
        value = jnp.broadcast_to(self.init_value, count.shape)
        for boundary, scale in zip(*self.boundaries_and_scales, strict=True):
            value = jnp.where(count >= boundary, scale * value, value)
        return value


@dataclass(frozen=True)
class piecewise_interpolate_schedule(Schedule):
    """Between values that are multiplied at some counts, along lines or half waves of the cosine.

        η = vᵢ + (vᵢ₊₁ - vᵢ) f((t - bᵢ)/(bᵢ₊₁ - bᵢ)) for bᵢ ≤ t < bᵢ₊₁
        vᵢ₊₁ = vᵢ sᵢ₊₁, v₀ = I, b₀ = 0; f(x) = x, or (1 - cos πx)/2

    Args:
      interpolate_type: "linear" or "cosine".
      init_value: the value I at first.
      boundaries_and_scales: from each count bᵢ to its factor sᵢ, >= 0: a dict, or where counts are traced
        the tuple of all counts and that of all factors. None for no factors.

    Raises:
      TypeError, ValueError: for an argument of the wrong type or out of range, by name.

    Example:
      >>> import adaptive_jax as aj
      >>> schedule = aj.schedules.piecewise_interpolate_schedule("linear", 1.0, {4: 0.5, 8: 0.0})
      >>> schedule([0, 2, 4, 6, 8])
      Array([1.  , 0.75, 0.5 , 0.25, 0.  ], dtype=float32)
    """

    interpolate_type: str
    init_value: Hyper
    boundaries_and_scales: Any = None

    def __post_init__(self) -> None:
        one_of("interpolate_type", self.interpolate_type, ("linear", "cosine"))
        pairs = boundaries_and_scales(type(self).__name__, self.boundaries_and_scales)
        object.__setattr__(self, "boundaries_and_scales", pairs)
        super().__post_init__()

    def arguments(self) -> dict[str, Any]:
        """The arguments of the call that makes it again, but for those that have their default."""
        return _arguments(self, super().arguments())

    def at(self, count):
        boundaries, scales = self.boundaries_and_scales
        return interpolated(self.interpolate_type, self.init_value, boundaries, scales, count)


def interpolated(
    kind: str, first: Any, boundaries: Sequence[Any], scales: Sequence[Any], count: jax.Array
) -> jax.Array:
    """Between values that are multiplied at boundaries, in whatever order these come.

    kind: "linear" or "cosine".
    """
    pairs = list(zip(boundaries, scales, strict=True))
    low = jnp.zeros_like(count)
    value, next_value = (jnp.broadcast_to(first, count.shape) for _ in range(2))
    is_passed = jnp.zeros(count.shape, bool)
    for boundary, scale in pairs:
        passed = boundary <= count
        value = jnp.where(passed, value * scale, value)
        low = jnp.where(passed & (~is_passed | (boundary > low)), boundary, low)
        is_passed = is_passed | passed
    high, is_ahead = low, jnp.zeros(count.shape, bool)
    for boundary, _ in pairs:
        ahead = boundary > count
        high = jnp.where(ahead & (~is_ahead | (boundary < high)), boundary, high)
        is_ahead = is_ahead | ahead
    next_value = value
    for boundary, scale in pairs:
        next_value = jnp.where(is_ahead & (boundary == high), next_value * scale, next_value)
    size = jnp.where(high - low > 1, high - low, 1)
    share = (count - low) / size
    if kind == "linear":
        result = (next_value - value) * share + value
    else:
        result = next_value + (value - next_value) / 2 * (jnp.cos(jnp.pi * share) + 1)
    return jnp.where(count < low, 0, result)


def boundaries_and_scales(what: str, given: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """All counts, in order where they are Python numbers, and the factor at each of them; checked."""
    name = "boundaries_and_scales"
    if given is None:
        return (), ()
    if isinstance(given, Mapping):
        given = tuple(given), tuple(given.values())
    is_two = isinstance(given, (tuple, list)) and len(given) == 2
    if not is_two or not all(isinstance(each, (tuple, list)) for each in given):
        raise TypeError(
            f"{name}={given!r:.200} in {what} must be a dict from counts to factors, or the tuple of all "
            "counts and that of all factors, or None."
        )
    boundaries = as_data(what, f"the counts of {name}", tuple(given[0]), Lengths())
    if len(boundaries) != len(given[1]):
        raise ValueError(
            f"{name} in {what} has {len(boundaries)} counts and {len(given[1])} factors: each count "
            "has one."
        )
    scales = tuple(
        as_data(what, f"{name}[{at!r:.20}]", scale, Interval(0.0))
        for at, scale in zip(given[0], given[1], strict=True)
    )
    if all(map(is_number, boundaries)):
        places = sorted(range(len(boundaries)), key=boundaries.__getitem__)
        boundaries, scales = (tuple(x[i] for i in places) for x in (boundaries, scales))
    return boundaries, scales


def _is_known(number: Any) -> bool:
    """Whether it is one number, whose value is known."""
    is_array = isinstance(number, jax.Array) and not isinstance(number, Tracer)
    return is_number(number) or (is_array and number.ndim == 0)


def _arguments(schedule: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments with boundaries as a dict, where their values are known."""
    boundaries, scales = schedule.boundaries_and_scales
    if not boundaries:
        del arguments["boundaries_and_scales"]
    elif all(map(_is_known, boundaries)):
        pairs = dict(zip(map(float, boundaries), scales, strict=True))
        arguments["boundaries_and_scales"] = pairs
    return arguments
