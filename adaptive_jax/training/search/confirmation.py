"""The best setting of a sweep, run again with seeds that it was not selected by."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from .table import Table, counted, shown

if TYPE_CHECKING:
    from .result import Sweep

CONFIDENCE = 0.95


class Confirmed(dict[str, Any]):
    """What `Sweep.best(confirm=…)` returns: the setting, a dict, and what it came to with fresh seeds.

    The mean that a setting was selected by is the best of many, and chance has helped it: on average it is
    better than what comes of the setting again. That of the fresh seeds is what to report.

    selected: the mean that it was selected by.
    mean: the mean of the fresh seeds; NaN if one of them diverged.
    interval: the 95 % confidence interval of that mean by Student's t, (low, high); NaN where there is
      no mean, and where all fresh seeds gave the same number, which says nothing of chance. Where outcomes
      are skewed it is too narrow: see `median_interval`.
    median: the median of the fresh seeds. Those that diverged count as the worst.
    median_interval: the order statistics that hold the median with 95 % or more, of whatever
      distribution; from -inf to inf for fewer than six seeds, which have none, and where seeds make no
      difference.
    objective: what each fresh seed came to.
    sweep: the `Sweep` of the fresh seeds, with `.outputs` and `.seeds`.
    """

    selected: float
    mean: float
    interval: tuple[float, float]
    median: float
    median_interval: tuple[float, float]
    objective: np.ndarray
    sweep: Sweep

    def __init__(self, setting: dict[str, Any], selection: Sweep, index: int, sweep: Sweep) -> None:
        super().__init__(setting)
        self.sweep = sweep
        self.objective = sweep.objective[0].astype(np.float64)
        self.selected = float(selection.mean[index])
        self.mean = float(sweep.mean[0])
        self.interval = mean_interval(self.objective)
        sign = -1 if sweep.maximize else 1
        as_losses = np.where(np.isfinite(self.objective), sign * self.objective, np.inf)
        self.median = sign * float(np.median(as_losses))
        low, high = median_interval(as_losses)
        self.median_interval = (low, high) if sign == 1 else (-high, -low)
        self._is_certain = not (differ(self.objective) or selection.seeds_differ)
        if self._is_certain and np.isfinite(self.objective).all():
            self.median_interval = (-math.inf, math.inf)
        self._tried = len(selection.objective)
        self._before = selection.objective[index]

    def table(self) -> Table:
        """Two rows: what it was selected by, and what it came to with fresh seeds."""
        diverged = int(np.sum(~np.isfinite(self.objective)))
        mean = shown(self.mean) if not diverged else f"{diverged} of {len(self.objective)} diverged"
        rows = (
            ("selected", str(len(self._before)), shown(self.selected), "", *_ends(self._before)),
            (
                "confirmed",
                str(len(self.objective)),
                mean,
                spanned(*self.interval),
                *_ends(self.objective),
            ),
        )
        of_median = spanned(*self.median_interval)
        setting = ", ".join(f"{name}={shown(value)}" for name, value in self.items())
        caption = (
            f"{self.sweep.name} of {setting or 'the only setting'}. Median of the fresh seeds: "
            f"{shown(self.median)}{f' ({of_median})' if of_median else ''}."
        )
        if not differ(self.objective) and np.isfinite(self.objective).all():
            caption += (
                " All fresh seeds gave the same number: there is no interval, and nothing is said of "
                "chance."
            )
        if self._tried > 1 and not self._is_certain:
            caption += (
                f" Selected: the best of {counted(self._tried, 'mean')}, which is on average better than "
                "what comes of it again. Report what is confirmed."
            )
        headings = ("", "seeds", "mean", "95 % interval", "lowest", "highest")
        return Table(headings, rows, caption)

    def __repr__(self) -> str:
        return repr(self.table())

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()


def differ(values: np.ndarray) -> bool:
    """Whether the finite ones of some numbers are more than one, but for their rounding in float32."""
    finite = values[np.isfinite(values)].astype(np.float64)
    if len(finite) < 2:
        return False
    return bool(np.ptp(finite) > 4 * np.finfo(np.float32).eps * np.abs(finite).max())


def half_width(deviation: Any, count: int) -> Any:
    """Half the width of the confidence interval of a mean by Student's t, of so many values."""
    from scipy import stats  # jax needs scipy, so it is there.

    return stats.t.ppf((1 + CONFIDENCE) / 2, count - 1) * deviation / math.sqrt(count)


def mean_interval(values: np.ndarray) -> tuple[float, float]:
    """The confidence interval of a mean by Student's t; NaN where a value is not finite, or all are one."""
    if not np.isfinite(values).all() or not differ(values):
        return math.nan, math.nan
    half = float(half_width(np.std(values, ddof=1), len(values)))
    return float(values.mean()) - half, float(values.mean()) + half


def median_interval(values: np.ndarray) -> tuple[float, float]:
    """The narrowest order statistics that hold the median surely enough, of any distribution."""
    from scipy import stats

    # The median lies below the one after `low` if no more than `low` values, of even odds, are below it.
    sure = [
        low
        for low in range(len(values) // 2)
        if 2 * stats.binom.cdf(low, len(values), 0.5) <= 1 - CONFIDENCE
    ]
    if not sure:
        return -math.inf, math.inf
    ordered = np.sort(values)
    return float(ordered[max(sure)]), float(ordered[-1 - max(sure)])


def spanned(low: float, high: float) -> str:
    """An interval, "0.28 to 0.42", rounded outwards; empty where there is none."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return ""
    return f"{_rounded(low, high - low, math.floor)} to {_rounded(high, high - low, math.ceil)}"


def _rounded(end: float, width: float, function: Any) -> str:
    """An end of an interval, to two digits of its width or of itself, whichever are more."""
    sizes = [math.floor(math.log10(each)) for each in (width, abs(end)) if each > 0]
    digits = 1 - min(sizes, default=0)
    rounded = function(end * 10.0**digits) / 10.0**digits
    if rounded == 0 or (1e-4 <= abs(rounded) < 1e6 and digits < 9):
        return f"{rounded:.{max(digits, 0) if rounded else 0}f}"
    return f"{rounded:.{max(1, digits + math.floor(math.log10(abs(rounded))))}e}"


def _ends(values: np.ndarray) -> tuple[str, str]:
    finite = values[np.isfinite(values)]
    return (shown(finite.min()), shown(finite.max())) if len(finite) else ("", "")
