"""Which share of the runs each optimizer solves, and how soon."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .axes import axes_for, legend
from .checks import named, numbers
from .lines import curve, next_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def performance_profile(steps_to_target: Mapping[str, Any], *, ax: Axes | None = None) -> Axes:
    """For each optimizer the share of the runs that it solves within τ times the steps of the best.

    With t(r, o) the steps that optimizer o needs for run r, a problem or a seed,

        ρ(o, τ) = share of the runs r with t(r, o) <= τ min_o t(r, o)

    At τ = 1 it is the share of runs where the optimizer is the fastest, at the right the share that it
    solves at all. A run that none solves counts as unsolved by all. Profiles compare with the best of
    the optimizers shown: leaving one out may change the order of the others.

    Dolan & Moré 2002, https://arxiv.org/abs/cs/0102001.

    Args:
      steps_to_target: from names to the steps to the target, of shape (runs,): 0 or more, inf for
        never. The same place stands for the same run in each.
      ax: a matplotlib Axes; None for that of a new figure.

    Returns:
      The Axes.

    Raises:
      ValueError: for no optimizers, other shapes, and steps that are negative or NaN.
      TypeError: for what is no mapping, and no Axes.
      ImportError: without matplotlib.

    Example:
      >>> from matplotlib.figure import Figure
      >>> import adaptive_jax as aj
      >>> steps = {"SGD": [100, 400, float("inf")], "Adam": [200, 100, 300]}
      >>> ax = aj.plotting.performance_profile(steps, ax=Figure().subplots())
      >>> print({line.get_label(): f"{line.get_ydata()[0]:.2f}" for line in ax.lines})
      {'SGD': '0.33', 'Adam': '0.67'}
    """
    taken = {
        name: numbers(f"steps_to_target[{name!r}]", steps, "(runs,)")
        for name, steps in named("steps_to_target", steps_to_target, "steps").items()
    }
    (first, one), *others = taken.items()
    for name, steps in others:
        if len(steps) != len(one):
            raise ValueError(
                f"steps_to_target[{name!r}] has shape {steps.shape}, steps_to_target[{first!r}] has "
                f"shape {one.shape}: all must have one shape, (runs,), with the same runs in it."
            )
    for name, steps in taken.items():
        if not (steps >= 0).all():
            raise ValueError(
                f"steps_to_target[{name!r}] has {steps[~(steps >= 0)][0]:g} in it: steps must be 0 or "
                "more, and inf where the target was never reached."
            )
    best = np.min(list(taken.values()), axis=0)
    ratios = {}
    for name, steps in taken.items():
        fastest = np.isfinite(steps) & (steps == best)
        slower = np.isfinite(steps) & (steps > best) & (best > 0)
        ratios[name] = np.append(np.ones(fastest.sum()), steps[slower] / best[slower])
    end = max(2.0, 1.1 * np.concatenate(list(ratios.values())).max(initial=1.0))
    ax = axes_for(ax)
    for name, each in ratios.items():
        jumps, counts = np.unique(each, return_counts=True)
        share = np.cumsum(counts) / len(one)
        if not len(jumps) or jumps[0] > 1:
            jumps, share = np.append(1.0, jumps), np.append(0.0, share)
        line = curve(
            ax, np.append(jumps, end), np.append(share, share[-1]), next_style(ax), str(name)
        )
        line.set_drawstyle("steps-post")
        line.set_markevery(list(range(len(jumps))))  # not where the axis ends
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_formatter("{x:g}")
    ax.set_xlim(1, end)
    ax.set_ylim(-0.02, 1.02)
    ax.set_xlabel("τ (steps to the target relative to the fastest)")
    ax.set_ylabel("share of runs solved")
    legend(ax, beside=True)
    return ax
