"""What became of each optimizer in a comparison, and what was tried to get there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..._core import arguments
from .intervals import CONFIDENCE
from .result import Sweep, is_numeric
from .table import counted, plain, shown


@dataclass(frozen=True, eq=False)
class Finalist:
    """An optimizer on one problem: the best setting of each study, run again with other seeds.

    settings: that setting, one per study.
    tunings: the `Sweep` that found it, one per study.
    chosen: the number of that setting in it, one per study.
    seeds: those of the runs, studies x seeds; the same for all optimizers.
    curves: what the problem is judged by, in NumPy, studies x seeds x evaluations.
    steps_to_target: at which step each run reached the target, studies x seeds; inf for never.
    dimensions: how many hyperparameters were searched; 0 where all are fixed.
    """

    settings: tuple[dict[str, Any], ...]
    tunings: tuple[Sweep, ...]
    chosen: tuple[int, ...]
    seeds: np.ndarray
    curves: np.ndarray
    steps_to_target: np.ndarray
    dimensions: int

    @property
    def finals(self) -> np.ndarray:
        """The last value of each run, studies x seeds; inf where it diverged."""
        last = self.curves[..., -1].astype(np.float64)
        return np.where(np.isfinite(last), last, np.inf)

    @property
    def tried(self) -> int:
        """How many different settings a study tried, at most."""
        columns = [tuning.settings.values() for tuning in self.tunings]
        return max(
            len({tuple(str(plain(each)) for each in row) for row in zip(*every, strict=True)})
            if every
            else 1
            for every in columns
        )

    @property
    def is_deterministic(self) -> bool:
        """Whether the seeds of a study are the same run again."""
        runs = self.curves.shape[1]
        return runs > 1 and np.array_equal(
            self.curves, np.repeat(self.curves[:, :1], runs, axis=1), equal_nan=True
        )

    @property
    def is_one_run(self) -> bool:
        """Whether all seeds of all studies are the same run: a fixed setting, and nothing drawn."""
        runs = self.curves.reshape(-1, self.curves.shape[-1])
        return len(runs) > 1 and np.array_equal(
            runs, np.repeat(runs[:1], len(runs), axis=0), equal_nan=True
        )

    def setting_text(self) -> str:
        """The settings of the studies, each hyperparameter from its lowest to its highest."""
        return ", ".join(
            f"{name}={_range([setting[name] for setting in self.settings])}"
            for name in self.settings[0]
        )


def _range(values: list[Any]) -> str:
    if not all(map(arguments.is_number, values)):
        return " | ".join(dict.fromkeys(map(shown, values)))
    low, high = shown(min(values)), shown(max(values))
    return low if low == high else f"{low} to {high}"


def notes(finalists: Mapping[str, Mapping[str, Finalist]]) -> Iterator[str]:
    """What was tried, and what of it looks as if a search space were too small; a line each."""
    first = next(iter(finalists.values()))
    tried = {
        name: max(of_problem[name].tried for of_problem in finalists.values()) for name in first
    }
    said = ", ".join(
        f"{name} {counted(tried[name], 'setting')} "
        + (f"in {counted(each.dimensions, 'dimension')}" if each.dimensions else "(fixed)")
        for name, each in first.items()
    )
    yield f"Tried in each study: {said}."
    if len(set(tried.values())) > 1:
        yield "These budgets are not equal: what was tried more often has had more luck."
    for problem, every in finalists.items():
        where = f" on {problem}" if len(finalists) > 1 else ""
        for name, finalist in every.items():
            yield from (f"{name}{where}: {line}" for line in _of_one(finalist))


def _of_one(finalist: Finalist) -> Iterator[str]:
    studies = len(finalist.tunings)
    lost = [
        int(tuning.diverged[row])
        for tuning, row in zip(finalist.tunings, finalist.chosen, strict=True)
    ]
    if any(lost):
        failed = sum(each > 0 for each in lost)
        yield (
            f"every setting diverged with a tuning seed in {failed} of {counted(studies, 'study')}; run "
            f"on are those with the fewest, {min(each for each in lost if each)} to {max(lost)} of "
            f"{finalist.tunings[0].objective.shape[1]}."
        )
    if finalist.is_deterministic:
        yield "its seeds are the same run again, and count once in each study."
    yield from _ends(finalist)


def _ends(finalist: Finalist) -> Iterator[str]:
    """A line where the best is oftener at an end of what was tried than a setting without effect."""
    from scipy import stats

    studies = len(finalist.tunings)
    for name in finalist.settings[0]:
        columns = [tuning.settings[name] for tuning in finalist.tunings]
        if not all(map(is_numeric, columns)) or min(len(np.unique(each)) for each in columns) < 3:
            continue
        for end, which in ((np.min, "smallest"), (np.max, "largest")):
            at_end = [each == end(each) for each in columns]
            count = sum(bool(each[row]) for each, row in zip(at_end, finalist.chosen, strict=True))
            chance = float(np.mean([each.mean() for each in at_end]))
            if count and (
                studies == 1 or stats.binom.sf(count - 1, studies, chance) <= 1 - CONFIDENCE
            ):
                yield (
                    f"the best {name} is the {which} tried in {count} of {counted(studies, 'study')}: "
                    "there may be a better one beyond, so widen its space."
                )
