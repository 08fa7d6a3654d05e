"""When a run has reached its target, and a target where nobody gave one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from .intervals import median
from .table import shown

SHARE = 0.75
"""Of the steps, after which the best optimizer's value is the target. Dahl et al. 2023,
https://arxiv.org/abs/2306.07179, give others four thirds of the time that the target took."""


@dataclass(frozen=True)
class Target:
    """The value that counts as reached, and where it comes from."""

    value: float
    source: str

    def __str__(self) -> str:
        if np.isneginf(self.value):
            return f"none ({self.source})"
        return f"{shown(self.value)} ({self.source})"


def steps_to(target: float, curves: np.ndarray, marks: np.ndarray, hold: int = 1) -> np.ndarray:
    """The step from which on each curve is no higher than the target for so many evaluations; or inf.

    A run that is lost later has not reached it: one that ends without a number, or worse than it began.

    curves: ... x evaluations.
    marks: at which steps they were evaluated.
    """
    low = curves <= target
    if hold > 1:
        ahead = np.zeros_like(low)
        count = low.shape[-1] - hold + 1
        if count > 0:
            parts = [low[..., i : i + count] for i in range(hold)]
            ahead[..., :count] = np.logical_and.reduce(parts)
        low = ahead
    first, last = curves[..., 0], curves[..., -1]
    kept = np.isfinite(last) & ((last <= first) | (last <= target))
    reached = low.any(axis=-1) & kept
    return np.where(reached, marks[low.argmax(axis=-1)], np.inf)


def made(curves: Mapping[str, np.ndarray]) -> Target:
    """A target of a study that is for nothing else: what its best optimizer has before the end.

    curves: from each optimizer to those of the best setting, seeds x evaluations.
    """
    finals = {name: median(each[:, -1]) for name, each in curves.items()}
    best = min(finals, key=lambda name: finals[name])
    if not np.isfinite(finals[best]):
        return Target(-np.inf, "no optimizer came to an end in the study for it")
    every = curves[best]
    place = round(SHARE * (every.shape[1] - 1))
    value = float(max(median(every[:, place]), finals[best]))
    return Target(value, f"{best} after {SHARE:.0%} of the steps, in a study of its own")
