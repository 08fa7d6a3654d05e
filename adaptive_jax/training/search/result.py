"""What a sweep returns: every setting, what each run gave, and which setting was best."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

import numpy as np

from ..._core import arguments
from . import sweep_file
from .confirmation import Confirmed
from .intervals import differ, half_width
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
    again: `again(index, seeds)` runs a setting with other seeds; None for a sweep that was read from a
      file, and for a train that takes no seed.
    """

    settings: dict[str, Any]
    seeds: np.ndarray
    objective: np.ndarray
    outputs: Any
    maximize: bool = False
    name: str = "objective"
    again: Callable[[int, Sequence[int]], Sweep] | None = field(default=None, repr=False)

    @property
    def diverged(self) -> np.ndarray:
        """How many seeds of each setting gave an infinite or no number."""
        return np.sum(~np.isfinite(self.objective), axis=1)

    @property
    def mean(self) -> np.ndarray:
        """The mean objective of each setting over its seeds; NaN if one of them diverged.

        The best of these means is better than what comes of that setting again: `best(confirm=10)`.
        """
        finite = np.where(np.isfinite(self.objective), self.objective, np.nan)
        return np.mean(finite.astype(np.float64), axis=1)

    @property
    def deviation(self) -> np.ndarray:
        """The standard deviation over the seeds; NaN for a single one."""
        if len(self.seeds) < 2:
            return np.full(len(self.objective), np.nan)
        finite = np.where(np.isfinite(self.objective), self.objective, np.nan)
        return np.std(finite.astype(np.float64), axis=1, ddof=1)

    @property
    def seeds_differ(self) -> bool:
        """Whether some setting gave other numbers with another seed: else nothing is known of chance."""
        return any(map(differ, self.objective))

    def ranking(self) -> np.ndarray:
        """The settings by their number, the best mean first; those with a diverged seed last."""
        score = -self.mean if self.maximize else self.mean
        return np.lexsort((np.where(np.isnan(score), np.inf, score), self.diverged > 0))

    def setting(self, index: int) -> dict[str, Any]:
        """The setting of this number, as arguments: `aj.adam(**result.setting(3))`."""
        return {name: plain(column[index]) for name, column in self.settings.items()}

    @overload
    def best(self, confirm: None = None) -> dict[str, Any]: ...

    @overload
    def best(self, confirm: int) -> Confirmed: ...

    def best(self, confirm: int | None = None) -> dict[str, Any]:
        """The setting with the best mean objective, as arguments: `aj.adam(**result.best())`.

        Its mean is the best of many, and chance has helped it: by one to two standard deviations of a
        mean, with some ten settings and more. With `confirm` the setting is run again, and what comes of
        it can be reported. Held-out data that a setting was selected by are as biased: report another
        part of the data.

        Args:
          confirm: how many seeds to run it with again, 2 or more, none of which it was selected by; None
            for none. With several processes all of them call it.

        Returns:
          The setting; with confirm a `Confirmed`, which is the setting too, and prints what was selected
          beside what is confirmed.

        Raises:
          ValueError: if every setting has a seed that diverged; with confirm, for a sweep that was read
            from a file, and for a train that takes no seed.

        Example:
          >>> import adaptive_jax as aj, jax
          >>> def train(rate, seed):
          ...     return (rate - 0.3) ** 2 + jax.random.normal(jax.random.key(seed))
          >>> result = aj.sweep(train, rate=[0.1, 0.2, 0.3, 0.4], seeds=4)
          >>> best = result.best(confirm=10)
          >>> best == result.best(), best.interval[0] < best.mean < best.interval[1]
          (True, True)
        """
        first = int(self.ranking()[0])
        if self.diverged[first]:
            raise ValueError(
                f"each of the {len(self.objective)} settings has a seed that diverged (the fewest: "
                f"{self.diverged.min()} of {len(self.seeds)}): there is no best one. Look at "
                "result.table(), and try smaller learning rates."
            )
        setting = self.setting(first)
        if confirm is None:
            return setting
        confirm = arguments.whole("confirm", confirm, 2, hint=" A single run has no interval.")
        used = set(self.seeds.tolist())
        fresh = [seed for seed in range(confirm + len(used)) if seed not in used][:confirm]
        if self.again is None:
            raise ValueError(
                f"confirm={confirm} runs train again, and this sweep has none that another seed makes a "
                "difference to: it was read from a file, or its train takes no seed. Call aj.sweep(train, "
                f"…) with seeds={fresh if confirm < 4 else f'[{fresh[0]}, {fresh[1]}, …]'} and the setting "
                "alone, a list of one value for each argument."
            )
        return Confirmed(setting, self, first, self.again(first, fresh))

    def ties(self) -> np.ndarray:
        """The settings, by their number, that cannot be told from the best, which is not among them.

        Those whose difference from the best, paired by seed, has a 95 % confidence interval (Student's t)
        with 0 in it: intervals of the settings themselves may overlap where this one excludes 0. With a
        single seed, or seeds that make no difference, nothing is known of chance, and there are none; nor
        where each setting has diverged.
        """
        order = self.ranking()
        if len(self.seeds) < 2 or self.diverged[order[0]] or not self.seeds_differ:
            return np.empty(0, int)
        others = order[1:][self.diverged[order[1:]] == 0]
        differences = self.objective[others].astype(float) - self.objective[order[0]][np.newaxis]
        deviation = np.std(differences, axis=1, ddof=1)
        half = half_width(deviation, len(self.seeds))
        return others[np.abs(np.mean(differences, axis=1)) <= half]

    def table(self, rows: int | None = 10) -> Table:
        """The settings, best first, with the mean ± standard deviation over the seeds.

        The caption says which cannot be told from the best, and what is best at the end of what was tried;
        and of runs that returned a curve, that they are judged by its last value.

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
        if self._length is not None:
            caption += f"; {self.name} is the last of {counted(self._length, 'value')} of a run"
        return Table((*self.settings, heading), tuple(cells), caption + "." + self._notes())

    @property
    def _length(self) -> int | None:
        """How many values the curve has that a run is judged by the last of; None for no curve."""
        is_named = isinstance(self.outputs, Mapping)
        judged = self.outputs.get(self.name) if is_named else self.outputs
        is_curve = isinstance(judged, np.ndarray) and judged.ndim == 3 and judged.shape[2] > 1
        if not is_curve or not np.array_equal(judged[..., -1], self.objective, equal_nan=True):
            return None  # A function of what train returned may have the name of an entry.
        return judged.shape[2]

    def _notes(self) -> str:
        """What to know of the setting that is best, for the caption of the table."""
        best = self.ranking()[0]
        if len(self.objective) < 2 or self.diverged[best]:
            return ""
        notes = ""
        if len(self.seeds) > 1 and not self.seeds_differ:
            notes += (
                " The seeds make no difference: all runs of a setting gave the same number, and nothing is "
                "said of chance."
            )
        elif len(self.seeds) > 1:
            how = ": best(confirm=10) runs it with fresh seeds" if self.again is not None else ""
            notes += (
                " The first is selected by its mean, which, as the best of so many, is on average better "
                f"than what comes of it again{how}."
            )
            ties = len(self.ties())
            notes += (
                f" {counted(ties, 'other')} cannot be told from it"
                if ties
                else " Each other one differs from it by more than chance"
            )
            notes += " (95 %, differences paired by seed)."
        for name, column in self.settings.items():
            if not is_numeric(column) or _distinct(column) < 3:
                continue
            for end, which in ((column.min(), "smallest"), (column.max(), "largest")):
                if column[best] == end:
                    notes += f" Its {name}, {shown(end)}, is the {which} that was tried."
        return notes

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

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the sweep to one file, which `Sweep.load` reads: NumPy's arrays, and nothing pickled.

        Args:
          path: the file, "sweep.npz" say, to the letter. One that is there is replaced, as a whole.

        Raises:
          ValueError: for what no file can hold, by its name, such as settings that are functions; for a
            folder that is not there.

        Example:
          >>> import adaptive_jax as aj, os, tempfile
          >>> result = aj.sweep(lambda rate: (rate - 0.3) ** 2, rate=[0.1, 0.2, 0.3])
          >>> with tempfile.TemporaryDirectory() as folder:
          ...     path = os.path.join(folder, "sweep.npz")
          ...     result.save(path)
          ...     print(aj.Sweep.load(path).best())
          {'rate': 0.3}
        """
        results = {"seeds": self.seeds, "objective": self.objective, "outputs": self.outputs}
        facts = {"maximize": self.maximize, "name": self.name}
        sweep_file.write(path, self.settings, results, facts)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Sweep:
        """Reads what `save` wrote: equal to the bit, except that it cannot be run again.

        Raises:
          ValueError: for another file, and one of another format.
          FileNotFoundError: for none.
        """
        settings, results, facts = sweep_file.read(path)
        return cls(settings, **results, **facts)

    def __getstate__(self) -> dict[str, Any]:
        """Without the function of the user's that it came from, which seldom pickles."""
        return self.__dict__ | {"again": None}

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
