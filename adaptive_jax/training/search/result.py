"""What a sweep returns: every setting, what each run gave, and which setting was best."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..._core import arguments
from .table import Table, counted, plain, shown, with_spread


@dataclass(frozen=True, repr=False, eq=False)
class Sweep:
    """What `sweep` returns: every setting, what each run gave, and which setting was best.

    settings: from the name of each axis to its column, one value per setting.
    seeds: the seeds that every setting ran with.
    objective: what the settings are judged by, in NumPy, settings x seeds; inf or NaN where a run
      diverged.
    outputs: what train returned, in NumPy arrays with two more axes in front, settings x seeds.
    maximize: whether more is better.
    name: what the objective is called.
    """

    settings: dict[str, Any]
    seeds: np.ndarray
    objective: np.ndarray
    outputs: Any
    maximize: bool = False
    name: str = "objective"

    @property
    def diverged(self) -> np.ndarray:
        """How many seeds of each setting gave an infinite or no number."""
        return np.sum(~np.isfinite(self.objective), axis=1)

    @property
    def mean(self) -> np.ndarray:
        """The mean objective of each setting over its seeds; NaN if one of them diverged."""
        finite = np.where(np.isfinite(self.objective), self.objective, np.nan)
        return np.mean(finite.astype(np.float64), axis=1)

    @property
    def deviation(self) -> np.ndarray:
        """The standard deviation over the seeds; NaN for a single one."""
        if len(self.seeds) < 2:
            return np.full(len(self.objective), np.nan)
        finite = np.where(np.isfinite(self.objective), self.objective, np.nan)
        return np.std(finite.astype(np.float64), axis=1, ddof=1)

    def ranking(self) -> np.ndarray:
        """The settings by their number, the best mean first; those with a diverged seed last."""
        score = -self.mean if self.maximize else self.mean
        return np.lexsort((np.where(np.isnan(score), np.inf, score), self.diverged > 0))

    def setting(self, index: int) -> dict[str, Any]:
        """The setting of this number, as arguments: `aj.adam(**result.setting(3))`."""
        return {name: plain(column[index]) for name, column in self.settings.items()}

    def best(self) -> dict[str, Any]:
        """The setting with the best mean objective, as arguments: `aj.adam(**result.best())`.

        Raises:
          ValueError: if every setting has a seed that diverged.
        """
        first = int(self.ranking()[0])
        if self.diverged[first]:
            raise ValueError(
                f"each of the {len(self.objective)} settings has a seed that diverged (the fewest: "
                f"{self.diverged.min()} of {len(self.seeds)}): there is no best one. Look at "
                "result.table(), and try smaller learning rates."
            )
        return self.setting(first)

    def table(self, rows: int | None = 10) -> Table:
        """The settings, best first, with the mean ± standard deviation over the seeds.

        rows: how many to show; None for all.
        """
        order = self.ranking()[: None if rows is None else arguments.whole("rows", rows, 0)]
        mean, deviation, diverged = self.mean, self.deviation, self.diverged
        cells = []
        for i in order:
            text = with_spread(float(mean[i]), float(deviation[i]))
            if diverged[i]:
                text = f"{diverged[i]} of {len(self.seeds)} diverged"
            cells.append((*(shown(column[i]) for column in self.settings.values()), text))
        heading = self.name if len(self.seeds) == 1 else f"{self.name}, mean ± deviation"
        caption = (
            f"{counted(len(self.objective), 'setting')}, {counted(len(self.seeds), 'seed')} each"
        )
        if np.any(diverged):
            failed = counted(int(np.sum(diverged > 0)), "setting")
            caption += f"; {failed} with a seed that diverged"
        if len(order) < len(self.objective):
            caption += f"; the best {len(order)} are shown"
        return Table((*self.settings, heading), tuple(cells), caption + ".")

    def __repr__(self) -> str:
        return repr(self.table())

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()

    def plot(self, axis: str | None = None, *, by: str | None = None, ax: Any = None) -> Any:
        """The objective against one axis, with its spread over the seeds and what diverged marked.

        axis: the axis to draw against; None for "learning_rate", or the first axis of numbers.
        by: an axis that gets a line per value; None for the one other axis of few values. Of the axes
          that are left, each point takes the best setting.
        ax: matplotlib's Axes to draw into; None for new ones.

        Returns the Axes.
        """
        from ... import plotting

        several = [name for name, column in self.settings.items() if _distinct(column) > 1]
        numeric = [name for name in several if is_numeric(self.settings[name])]
        if axis is None:
            axis = "learning_rate" if "learning_rate" in numeric else next(iter(numeric), None)
        if axis is None:
            raise ValueError(
                "no axis has several numbers to draw the objective against: "
                f"{f'several values have {several}' if several else 'there is one setting'}."
            )
        if axis not in self.settings:
            raise ValueError(f"axis={axis!r} is no axis: this sweep has {list(self.settings)}.")
        others = [name for name in several if name != axis]
        if by is None and len(others) == 1 and _distinct(self.settings[others[0]]) <= 7:
            by = others[0]
        if by is not None and (by not in self.settings or by == axis):
            raise ValueError(f"by={by!r} is no other axis: this sweep has {list(self.settings)}.")
        position = {int(i): place for place, i in enumerate(self.ranking())}
        groups: dict[str, dict[Any, int]] = {}
        for i in range(len(self.objective)):
            line = groups.setdefault(
                "" if by is None else f"{by}={shown(self.settings[by][i])}", {}
            )
            x = plain(self.settings[axis][i])
            if x not in line or position[i] < position[line[x]]:
                line[x] = i
        for label, line in groups.items():
            chosen = [line[x] for x in sorted(line)]
            ax = plotting.sensitivity(
                np.array(sorted(line)),
                self.objective[chosen],
                name=axis,
                label=label or None,
                maximize=self.maximize,
                ax=ax,
            )
        ax.set_ylabel(self.name)
        return ax

    def to_pandas(self) -> Any:
        """A `pandas.DataFrame` with one row per run: its setting, its seed, its numbers."""
        try:
            import pandas
        except ImportError:
            raise ImportError("to_pandas needs pandas: pip install pandas.") from None
        count = len(self.seeds)
        columns: dict[str, Any] = {
            name: [plain(value) for value in column for _ in range(count)]
            for name, column in self.settings.items()
        }
        columns["seed"] = np.tile(self.seeds, len(self.objective))
        columns["objective"] = self.objective.ravel()
        if isinstance(self.outputs, Mapping):
            for name, value in self.outputs.items():
                if isinstance(value, np.ndarray) and value.ndim == 2 and name not in columns:
                    columns[name] = value.ravel()
        return pandas.DataFrame(columns)


def is_numeric(column: Any) -> bool:
    """Whether a column is an array of real numbers."""
    return isinstance(column, np.ndarray) and column.dtype.kind in "iuf"


def _distinct(column: Any) -> int:
    return len({shown(value) if not isinstance(value, np.generic) else value for value in column})
