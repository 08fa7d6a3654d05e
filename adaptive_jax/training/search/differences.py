"""Optimizers beside one of them, study by study and seed by seed."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from .finalists import Finalist
from .intervals import Estimate, holm, medians, paired, with_interval
from .table import Table, counted

REACHED = (
    "a run that never reached the target counts with all its steps, so its ratio is too near 1"
)
ONE_RUN = "where two optimizers are one and the same run in all studies there is no luck, and no p"
DIVERGED = "a run that diverged counts with the value that it began with"
LOST = "where a run is not finite at its beginning nor at its end, final values cannot be compared"


@dataclass(frozen=True)
class Difference:
    """An optimizer beside the baseline on one problem.

    steps: the ratio of their steps to the target; below 1 it needs fewer.
    final: the ratio of their final values, or their difference where not all are positive.
    wins, ties, losses: in how many studies it was better than the baseline, by what it is tuned for.
    p: of no difference in what it is tuned for; NaN where it cannot be told.
    p_holm: that for all the differences together.
    """

    problem: str
    optimizer: str
    steps: Estimate
    final: Estimate
    wins: int
    ties: int
    losses: int
    p: float
    p_holm: float = math.nan


@dataclass(frozen=True, repr=False)
class Differences:
    """What `Comparison.differences` returns.

    baseline: the name of the optimizer that the others stand beside.
    rows: a `Difference` for each problem and other optimizer.
    tune_for: "steps" or "final", what p, wins and losses are of.
    studies: how many there are.
    notes: what is to be known of the figures.
    """

    baseline: str
    rows: tuple[Difference, ...]
    tune_for: str
    studies: int
    notes: tuple[str, ...]

    def table(self) -> Table:
        """One row per problem and optimizer, with 95 % intervals and p values by Holm."""
        several = len({row.problem for row in self.rows}) > 1
        sure = ", 95 %" if self.studies > 1 else ""
        by_product = {"steps": "", "final": ""}
        by_product["final" if self.tune_for == "steps" else "steps"] = ", by-product"
        of_ratios = all(row.final.is_ratio for row in self.rows)
        kind = "ratio" if of_ratios else "× ratio or + difference"
        headings = (
            *(["problem"] if several else []),
            f"beside {self.baseline}",
            f"steps (ratio{sure}{by_product['steps']})",
            f"final value ({kind}{sure}{by_product['final']})",
            "studies won, tied, lost",
            *(["p (Holm)"] if self.studies > 1 else []),
        )
        rows = [
            (
                *([row.problem] if several else []),
                row.optimizer,
                _text(row.steps),
                "-" if math.isnan(row.final.middle) else _text(row.final, not of_ratios),
                f"{row.wins}, {row.ties}, {row.losses}",
                *([p_text(row.p_holm)] if self.studies > 1 else []),
            )
            for row in self.rows
        ]
        return Table(headings, tuple(rows), "\n".join(self.notes))

    def __repr__(self) -> str:
        return repr(self.table())

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()


def differences(
    finalists: Mapping[str, Mapping[str, Finalist]],
    marks: Mapping[str, np.ndarray],
    baseline: str,
    tune_for: str,
) -> Differences:
    """Of a comparison that has such an optimizer, and another one."""
    rows, said = [], []
    for problem, every in finalists.items():
        for name, finalist in every.items():
            if name != baseline:
                rows.append(_difference(problem, name, finalist, every[baseline], marks, tune_for))
            if name != baseline and finalist.is_one_run and every[baseline].is_one_run:
                said.append(ONE_RUN)
        if any(np.isinf(each.steps_to_target).any() for each in every.values()):
            said.append(REACHED)
        if any(np.isinf(each.finals).any() for each in every.values()):
            said.append(DIVERGED)
        if any(math.isnan(row.final.middle) for row in rows if row.problem == problem):
            said.append(LOST)
    together = holm(np.array([row.p for row in rows]))
    rows = [
        dataclasses.replace(row, p_holm=float(p)) for row, p in zip(rows, together, strict=True)
    ]
    studies = len(next(iter(next(iter(finalists.values())).values())).settings)
    judged = "steps" if tune_for == "steps" else "the final value"
    lines = [
        f"Paired by seed: the median of the pairs in each of {counted(studies, 'study')}, which is not "
        f"the ratio of two medians. Tuned for {judged}, which p and wins are of."
    ]
    if studies == 1:
        lines.append("One study cannot say whether another would come out so: no intervals, no p.")
    else:
        lines.append(
            "Intervals by Student's t over the studies, each for itself; p for "
            f"{'the difference' if len(rows) == 1 else f'all {len(rows)} differences together'}."
        )
    lines += [f"{line[0].upper()}{line[1:]}." for line in dict.fromkeys(said)]
    return Differences(baseline, tuple(rows), tune_for, studies, tuple(lines))


def _difference(
    problem: str,
    name: str,
    own: Finalist,
    other: Finalist,
    marks: Mapping[str, np.ndarray],
    tune_for: str,
) -> Difference:
    places = marks[problem]
    steps, by_steps = steps_ratio(own.steps_to_target, other.steps_to_target, places)
    begun = own.curves[..., 0].astype(np.float64)
    finals = [np.where(np.isfinite(each.finals), each.finals, begun) for each in (own, other)]
    final, by_final = Estimate(math.nan), np.full(len(own.finals), math.nan)
    if all(np.isfinite(each).all() for each in finals):
        final, by_final = final_difference(*finals)
    judged, by_study = (steps, by_steps) if tune_for == "steps" else (final, by_final)
    return Difference(
        problem,
        name,
        steps,
        final,
        int(np.sum(by_study < 0)),
        int(np.sum(by_study == 0)),
        int(np.sum(by_study > 0)),
        math.nan if own.is_one_run and other.is_one_run else judged.p,
    )


def steps_ratio(
    own: np.ndarray, other: np.ndarray, marks: np.ndarray
) -> tuple[Estimate, np.ndarray]:
    """The ratio of two optimizers' steps to the target, and its logarithm in each study.

    own, other: studies x seeds, inf for never.
    marks: the steps at which runs are evaluated.
    """
    if np.isinf(own).all() and np.isinf(other).all():
        return Estimate(math.nan), np.zeros(len(own))
    gap = float(np.diff(marks).max())
    first, second = (np.clip(each, gap, float(marks[-1])) for each in (own, other))
    by_study = medians(np.log(first / second))
    # A step is known to one evaluation: spread evenly over so much, each has this deviation.
    sizes = [math.exp(np.mean(np.log(each))) for each in (first, second)]
    least = gap / math.sqrt(12) * math.hypot(*(1 / size for size in sizes))
    return paired(by_study, is_ratio=True, least=least), by_study


def final_difference(own: np.ndarray, other: np.ndarray) -> tuple[Estimate, np.ndarray]:
    """The ratio of two optimizers' final values, or their difference, and it in each study.

    own, other: studies x seeds, all of them finite.
    """
    is_ratio = bool((own > 0).all() and (other > 0).all())
    each = np.log(own) - np.log(other) if is_ratio else own - other
    by_study = medians(each)
    return paired(by_study, is_ratio=is_ratio), by_study


def _text(found: Estimate, signed: bool = False) -> str:
    if math.isnan(found.middle):
        return "never, both"
    text = with_interval(found)
    if not signed:
        return text
    return f"× {text}" if found.is_ratio else f"{'' if text.startswith('-') else '+'}{text}"


def p_text(p: float) -> str:
    """To three places, rounded up: it never looks smaller than it is."""
    if math.isnan(p):
        return "-"
    return "< 0.001" if p < 0.001 else f"{min(math.ceil(p * 1000) / 1000, 1):.3f}"
