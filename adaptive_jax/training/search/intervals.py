"""What a few values say: intervals that cover, paired differences, and p values of several at once."""

from __future__ import annotations

import functools
import math
import sys
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, ROUND_HALF_EVEN, Decimal
from typing import Any

import numpy as np

from .table import shown

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A middle with the ends of its interval at 95 %; NaN for ends that nothing can be said of."""

    middle: float
    low: float = math.nan
    high: float = math.nan

    @property
    def is_known(self) -> bool:
        """Whether there are ends."""
        return not math.isnan(self.low)


@dataclass(frozen=True)
class Estimate(Interval):
    """A paired difference, or the ratio of a pair, with its interval.

    p: of no difference, two-sided; NaN where it cannot be told.
    is_ratio: whether it is a ratio, 1 for no difference, and not 0.
    """

    p: float = math.nan
    is_ratio: bool = True


def over_studies(values: np.ndarray, *, logarithmic: bool, least: float = 0.0) -> Interval:
    """The middle of the studies, with an interval for the median of all studies that could be made.

    From six studies on it is their median between two order statistics: no distribution is assumed.
    Fewer have none that are as sure, and get Student's t.

    values: one per study; inf for never.
    logarithmic: whether t is that of logarithms. Decided by more than these values: whether those few are
      positive by chance depends on where they lie.
    least: how far apart two that look the same may be.
    """
    values = np.asarray(values, np.float64)
    count, all_finite = len(values), bool(np.isfinite(values).all())
    middle = median(values)
    if order_statistic(count) is not None:
        return Interval(middle, *median_interval(values))
    if count < 2 or not all_finite:
        return Interval(middle)
    if not logarithmic or values.min() <= 0:
        center, half = _center_and_half(values, least / math.sqrt(12))
        return Interval(center, center - half, center + half)
    center, half = _center_and_half(np.log(values), least / math.sqrt(12) / middle)
    return Interval(*map(_exp, (center, center - half, center + half)))


def paired(differences: np.ndarray, *, is_ratio: bool, least: float = 0.0) -> Estimate:
    """The mean of the studies' differences by Student's t, and its p value.

    differences: one per study: logarithms of ratios if it is a ratio.
    least: a standard deviation below which a study cannot be known.
    """
    from scipy import stats  # jax needs scipy, so it is there.

    differences = np.asarray(differences, np.float64)
    back = _exp if is_ratio else float
    count = len(differences)
    if count < 2:
        return Estimate(back(differences[0]), is_ratio=is_ratio)
    center, half = _center_and_half(differences, least)
    deviation = max(float(np.std(differences, ddof=1)), least)
    if deviation > 0:
        p = float(2 * stats.t.sf(abs(center) / deviation * math.sqrt(count), count - 1))
    else:  # The same in each study: equal, or not to be judged by their spread.
        p = 1.0 if center == 0 else math.nan
    return Estimate(back(center), back(center - half), back(center + half), p, is_ratio)


def differ(values: np.ndarray) -> bool:
    """Whether the finite ones of some numbers are more than one, but for their rounding in float32."""
    finite = values[np.isfinite(values)].astype(np.float64)
    if len(finite) < 2:
        return False
    return bool(np.ptp(finite) > 4 * np.finfo(np.float32).eps * np.abs(finite).max())


def mean_interval(values: np.ndarray) -> tuple[float, float]:
    """The ends for a mean by Student's t; NaN where a value is not finite, or all are one and the same."""
    if not np.isfinite(values).all() or not differ(values):
        return math.nan, math.nan
    center, half = _center_and_half(values)
    return center - half, center + half


def median_interval(values: np.ndarray) -> tuple[float, float]:
    """The order statistics around a median, of any distribution; all numbers where none are sure enough."""
    low = order_statistic(len(values))
    if low is None:
        return -math.inf, math.inf
    ordered = np.sort(values)
    return float(ordered[low]), float(ordered[-1 - low])


def half_width(deviation: Any, count: int) -> Any:
    """Half the width of the interval of a mean by Student's t, of so many values."""
    return _quantile(count - 1) * deviation / math.sqrt(count)


def _center_and_half(values: np.ndarray, least: float = 0.0) -> tuple[float, float]:
    """The mean, and half of its interval by Student's t."""
    deviation = max(float(np.std(values, ddof=1)), least)
    return float(np.mean(values)), half_width(deviation, len(values))


def _exp(x: float) -> float:
    """e to the x, where that is more than any float the largest one."""
    return sys.float_info.max if x > _LARGEST else math.exp(x)


_LARGEST = math.log(sys.float_info.max)


@functools.cache
def _quantile(freedom: int) -> float:
    from scipy import stats

    return float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom))


@functools.cache
def order_statistic(count: int) -> int | None:
    """How far from the ends the narrowest interval that holds the median surely enough is."""
    from scipy import stats

    # The median lies outside if as few as `low` values, of even odds, are on one side of it.
    sure = [
        low for low in range(count // 2) if 2 * stats.binom.cdf(low, count, 0.5) <= 1 - CONFIDENCE
    ]
    return max(sure, default=None)


def median(values: np.ndarray) -> float:
    """The median; inf where half or more are none or infinite."""
    return float(medians(values))


def medians(values: np.ndarray) -> np.ndarray:
    """The medians over the last axis."""
    values = np.asarray(values, np.float64)
    return np.median(np.where(np.isnan(values), np.inf, values), axis=-1)


def holm(p: np.ndarray) -> np.ndarray:
    """p values for all of them together: the n-th smallest of m, times m - n + 1, and none below another.

    Holm 1979, https://www.jstor.org/stable/4615733. NaN stays NaN, and is none of the m.
    """
    p = np.asarray(p, np.float64)
    known = np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known])]
    adjusted = np.full_like(p, np.nan)
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * factors), 1.0)
    return adjusted


def seen_failure(runs: int) -> float:
    """The share of failing runs that so many independent ones do show, with 95 %: rarer ones may not."""
    return 1 - (1 - CONFIDENCE) ** (1 / runs)


# As text. Ends are rounded outward: an interval that is printed holds the one that was computed.


def with_interval(found: Interval) -> str:
    """ "1.23 (1.1 to 1.4)"; the middle alone where nothing is known of the ends."""
    if not found.is_known:
        return _end(found.middle, None, ROUND_HALF_EVEN)
    width = found.high - found.low
    middle = _end(found.middle, width, ROUND_HALF_EVEN)
    return f"{middle} ({outward(found.low, found.high)})"


def outward(low: float, high: float) -> str:
    """ "1.1 to 1.4", the lower end rounded down and the upper one up."""
    width = high - low
    return f"{_end(low, width, ROUND_FLOOR)} to {_end(high, width, ROUND_CEILING)}"


def _end(value: float, width: float | None, rounding: str) -> str:
    """A number to two digits at least, and to a tenth of the width at least; to four where that is 0."""
    if not math.isfinite(value):
        return "never" if value > 0 else shown(value)
    if width is None or value == 0 or (width == 0 and float(shown(value)) == value):
        return shown(value)
    exact = Decimal(repr(float(value)))
    place = exact.adjusted() - (1 if width > 0 else 3)
    if math.isfinite(width) and width > 0:
        place = min(place, Decimal(repr(float(width))).adjusted() - 1)
    place = max(place, exact.adjusted() - 8)  # float32 has no more.
    found = exact.quantize(Decimal(1).scaleb(place), rounding=rounding)
    if place > 0 and found.adjusted() < 6:
        found = found.quantize(Decimal(1))
    if -5 < found.adjusted() < 6:
        return f"{found:f}"
    return f"{found:.{max(found.adjusted() - place, 0)}e}"
