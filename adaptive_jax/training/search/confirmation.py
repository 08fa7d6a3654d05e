"""The best setting of a sweep, run again with seeds that it was not selected by."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from .intervals import differ, mean_interval, median_interval, outward
from .table import Table, counted, shown

if TYPE_CHECKING:
    from .result import Sweep


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
                _between(self.interval),
                *_ends(self.objective),
            ),
        )
        of_median = _between(self.median_interval)
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


def _between(ends: tuple[float, float]) -> str:
    """An interval as text; empty where there is none."""
    return outward(*ends) if all(map(math.isfinite, ends)) else ""


def _ends(values: np.ndarray) -> tuple[str, str]:
    finite = values[np.isfinite(values)]
    return (shown(finite.min()), shown(finite.max())) if len(finite) else ("", "")
