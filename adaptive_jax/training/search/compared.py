"""What a comparison shows: a table, differences and pictures, over studies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..._core import arguments
from .differences import Differences, differences
from .finalists import Finalist, notes
from .intervals import (
    Interval,
    medians,
    order_statistic,
    outward,
    over_studies,
    seen_failure,
    with_interval,
)
from .table import Table, counted
from .targets import Target, steps_to


@dataclass(frozen=True, repr=False, eq=False)
class Comparison:
    """What `compare` returns.

    finalists: from the name of each problem and each optimizer to its `Finalist`.
    steps: from the name of each problem to the steps at which it was evaluated, from 0.
    targets: from the name of each problem to its target.
    sources: from the name of each problem to where its target comes from.
    measures: from the name of each problem to what it is judged by.
    studies: how often everything was done, with other settings and other seeds.
    seeds: how many runs the best setting of a study had.
    tuning_seeds: how many runs each setting had to find it.
    budget: how many settings were drawn for each in a study.
    tune_for: "steps" or "final", what settings were chosen by.
    hold: at how many evaluations in a row a run has to be at its target.
    seed: what all of it was drawn from.
    """

    finalists: dict[str, dict[str, Finalist]]
    steps: dict[str, np.ndarray]
    targets: dict[str, float]
    sources: dict[str, str]
    measures: dict[str, str]
    studies: int
    seeds: int
    tuning_seeds: int
    budget: int
    tune_for: str
    hold: int
    seed: int

    def interval(self, problem: str, optimizer: str, of: str | None = None) -> Interval:
        """The middle of the studies, and the 95 % interval for it, as in the table.

        problem, optimizer: their names.
        of: "steps" or "final"; None for what was tuned for.

        Raises:
          ValueError: for names that are none, and another of.
        """
        arguments.one_of("problem", problem, self.finalists)
        arguments.one_of("optimizer", optimizer, self.finalists[problem])
        of = self.tune_for if of is None else of
        arguments.one_of("of", of, ("steps", "final"))
        every = self.finalists[problem]
        if of == "final":
            positive = all((each.finals > 0).all() for each in every.values())
            return over_studies(medians(every[optimizer].finals), logarithmic=positive)
        values = medians(every[optimizer].steps_to_target)
        gap = float(np.diff(self.steps[problem]).max())
        return over_studies(values, logarithmic=True, least=gap)

    def table(self) -> Table:
        """One row per problem and optimizer: steps to the target, final value, rank, settings.

        A study counts with the median of its runs, and intervals are over the studies, for the median of
        all studies that could be made: from six studies on by order statistics, which assume nothing;
        fewer have Student's t around their mean, on logarithms where all are positive. That they overlap
        is no test: for that there is `differences`. The rank is the mean of the studies' ranks.
        """
        several = len(self.finalists) > 1
        sure = ", 95 %" if self.studies > 1 else ""
        titles = {"steps": "steps to target", "final": "final value"}
        other = "final" if self.tune_for == "steps" else "steps"
        headings = (
            *(["problem"] if several else []),
            "optimizer",
            f"{titles[self.tune_for]} (median{sure})",
            "rank",
            "reached",
            f"{titles[other]} (by-product{sure})",
            "lowest to highest final value",
            "best settings" if self.studies > 1 else "best setting",
        )
        rows = []
        for problem, finalists in self.finalists.items():
            ranks = self._ranks(problem)
            for optimizer, finalist in finalists.items():
                reached = int(np.sum(np.isfinite(finalist.steps_to_target)))
                text = {"steps": self._steps_text(problem, optimizer)}
                text["final"] = self._final_text(problem, optimizer)
                rows.append(
                    (
                        *([problem] if several else []),
                        optimizer,
                        text[self.tune_for],
                        f"{ranks[optimizer]:.1f}",
                        f"{reached} of {finalist.steps_to_target.size}",
                        text[other],
                        _extremes(finalist.finals),
                        finalist.setting_text(),
                    )
                )
        return Table(headings, tuple(rows), "\n".join(self._notes()))

    def differences(self, baseline: str) -> Differences:
        """The others beside one of them: ratios of steps and of final values, with intervals and p.

        Runs of one seed begin at the same parameters and see the same batches: each is paired with the
        baseline's of the same study and seed. The median of a study is one observation; the interval
        and p are those of Student's t over the studies, p for all differences together by Holm 1979.

        baseline: the name of an optimizer.

        Raises:
          ValueError: for a name that is none, or where there is no other optimizer.
        """
        names = [*next(iter(self.finalists.values()))]
        if baseline not in names:
            raise ValueError(f"baseline={baseline!r} is none of {names}.")
        if len(names) < 2:
            raise ValueError(
                f"{baseline!r} is the only optimizer of this comparison: there is none to stand beside it."
            )
        return differences(self.finalists, self.steps, baseline, self.tune_for)

    def __repr__(self) -> str:
        return repr(self.table())

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()

    def plot_curves(self, problem: str | None = None, *, ax: Any = None) -> Any:
        """What a problem is judged by over the steps: a line per optimizer, a band over all its runs.

        problem: its name; None for the only one, or the first.
        ax: matplotlib's Axes to draw into; None for new ones.

        Returns the Axes.
        """
        from ... import plotting

        name = self._problem(problem)
        curves = {
            optimizer: finalist.curves.reshape(-1, finalist.curves.shape[-1])
            for optimizer, finalist in self.finalists[name].items()
        }
        ax = plotting.loss_curves(curves, steps=self.steps[name], ax=ax)
        if np.isfinite(self.targets[name]):
            ax.axhline(self.targets[name], color="0.5", linewidth=0.8, zorder=0)
        ax.set_ylabel(f"{name}: {self.measures[name]}")
        return ax

    def plot_profile(self, *, ax: Any = None) -> Any:
        """The performance profile: the share of runs solved within τ times the steps of the quickest.

        A run is a seed of a problem. One figure for all problems together, each with the same weight: a
        line through the mean of the studies, a band from the lowest to the highest. Grey is what one
        evaluation, to which steps are counted, cannot tell apart.

        ax: matplotlib's Axes to draw into; None for new ones.

        Returns the Axes.
        """
        from ... import plotting

        first = next(iter(self.finalists.values()))
        steps = {
            optimizer: np.concatenate(
                [of_problem[optimizer].steps_to_target for of_problem in self.finalists.values()],
                axis=1,
            )
            for optimizer in first
        }
        resolution = np.concatenate(
            [
                np.broadcast_to(np.diff(self.steps[problem]).max(), (self.seeds,))
                for problem in self.finalists
            ]
        )
        return plotting.performance_profile(steps, resolution=resolution, ax=ax)

    def plot_tuning(self, problem: str | None = None, *, ax: Any = None) -> Any:
        """The best setting so far against how many were tried, by what was tuned for.

        A line through the median of the studies, a band from the lowest to the highest. Where it still
        falls at the end, a larger budget would have found a better setting.

        problem: its name; None for the only one, or the first.
        ax: matplotlib's Axes to draw into; None for new ones.

        Returns the Axes.
        """
        from ... import plotting

        name = self._problem(problem)
        goal, marks = self.targets[name], self.steps[name]
        values = {}
        for optimizer, finalist in self.finalists[name].items():
            if self.tune_for == "steps":
                every = [
                    steps_to(goal, tuning.outputs, marks, self.hold) for tuning in finalist.tunings
                ]
            else:
                every = [tuning.objective for tuning in finalist.tunings]
            values[optimizer] = np.stack([medians(each) for each in every])
        what = "steps to the target" if self.tune_for == "steps" else self.measures[name]
        return plotting.best_so_far(values, name=f"{name}: {what}", ax=ax)

    def _problem(self, problem: str | None) -> str:
        name = next(iter(self.finalists)) if problem is None else problem
        if name not in self.finalists:
            raise ValueError(f"problem={problem!r} is none of {list(self.finalists)}.")
        return name

    def _ranks(self, problem: str) -> dict[str, float]:
        """The mean over the studies of each one's place; equal ones share theirs."""
        from scipy import stats

        finalists = self.finalists[problem]
        by_steps = self.tune_for == "steps"
        values = np.array(
            [
                medians(each.steps_to_target if by_steps else each.finals)
                for each in finalists.values()
            ]
        )
        ranks = stats.rankdata(values, axis=0).mean(axis=1)
        return {name: float(rank) for name, rank in zip(finalists, ranks, strict=True)}

    def _steps_text(self, problem: str, optimizer: str) -> str:
        found = self.interval(problem, optimizer, "steps")
        values = medians(self.finalists[problem][optimizer].steps_to_target)
        middle = "never" if np.isinf(found.middle) else f"{found.middle:.0f}"
        if np.isinf(values).all():
            return middle
        if found.is_known:
            low, high = (
                "never" if np.isinf(end) else f"{round_to(end):.0f}"
                for end, round_to in ((max(found.low, 0), np.floor), (found.high, np.ceil))
            )
            return f"{middle} ({low} to {high})"
        lost = int(np.sum(np.isinf(values)))
        if lost and self.studies > 1:
            return f"{middle} (never in {lost} of {self.studies} studies)"
        return middle

    def _final_text(self, problem: str, optimizer: str) -> str:
        diverged = int(np.sum(np.isinf(self.finalists[problem][optimizer].finals)))
        found = self.interval(problem, optimizer, "final")
        runs = self.studies * self.seeds
        if diverged == runs:
            return f"all {runs} diverged"
        lost = f"; {diverged} of {runs} diverged" if diverged else ""
        if np.isinf(found.middle):
            return f"{diverged} of {runs} diverged"
        return with_interval(found).replace("never", "diverged") + lost

    def _notes(self) -> list[str]:
        judged = "steps to the target" if self.tune_for == "steps" else "the final value"
        lines = [
            f"{counted(self.studies, 'study')}, each with settings of its own tried with "
            f"{counted(self.tuning_seeds, 'seed')}, and {counted(self.seeds, 'other seed')} of the best. "
            f"Tuned for {judged}; the other is a by-product."
        ]
        named = ", ".join(
            f"{name if len(self.targets) > 1 else 'Target'} {Target(value, self.sources[name])}"
            for name, value in self.targets.items()
        )
        lines.append(f"{'Targets: ' if len(self.targets) > 1 else ''}{named}.")
        gaps = {f"{np.diff(marks).max():.0f}" for marks in self.steps.values()}
        held = f", and hold for {self.hold} evaluations" if self.hold > 1 else ""
        lines.append(
            f"Steps are counted to an evaluation, one in {' or '.join(sorted(gaps))}{held}."
        )
        if self.studies == 1:
            lines.append(
                "One study says nothing of other settings that could have been drawn: there are no "
                "intervals, and which optimizer is better cannot be concluded. Give studies=5 or more."
            )
        else:
            by = (
                "order statistics"
                if order_statistic(self.studies) is not None
                else "Student's t, on logarithms where all are positive"
            )
            lines.append(
                f"Intervals over the studies by {by}. Overlap of intervals is no test, nor its absence: "
                "see .differences(…)."
            )
        lines.append(
            f"A failure of {seen_failure(self.seeds):.0%} of a setting's runs shows in "
            f"{counted(self.seeds, 'seed')}, with 95 %; a rarer one may not."
        )
        lines += notes(self.finalists)
        for problem, finalists in self.finalists.items():
            if all(np.isinf(each.steps_to_target).all() for each in finalists.values()):
                lines.append(
                    f"No run reached the target of {problem}: of steps nothing can be said, so give a "
                    "higher target."
                )
        return lines


def _extremes(finals: np.ndarray) -> str:
    """The lowest and the highest of what was measured."""
    known = finals[np.isfinite(finals)]
    if not known.size:
        return "-"
    return outward(float(known.min()), float(known.max()))
