"""Which share of the runs each optimizer solves, and how soon."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .axes import axes_for, legend
from .checks import named, numbers
from .lines import band_around, curve, next_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def performance_profile(
    steps_to_target: Mapping[str, Any], *, resolution: Any = None, ax: Axes | None = None
) -> Axes:
    """For each optimizer the share of the runs that it solves within τ times the steps of the best.

    With t(r, o) the steps that optimizer o needs for run r, a problem or a seed,

        ρ(o, τ) = share of the runs r with t(r, o) <= τ min_o t(r, o)

    At τ = 1 it is the share of runs where the optimizer is the fastest, those where others are as fast
    among them; at the right the share that it solves at all. A run that none solves counts as unsolved by
    all. Profiles compare with the best of the optimizers shown: leaving one out may change the order of
    the others.

    Of several studies, each with settings tuned anew, the line is their mean, in a band from the lowest to
    the highest: an optimizer that is entered twice has two lines, and they lie in each other's bands.

    Dolan & Moré 2002, https://arxiv.org/abs/cs/0102001.

    Args:
      steps_to_target: from names to the steps to the target, of shape (runs,) or (studies, runs): 0 or
        more, inf for never. The same place stands for the same run in each.
      resolution: how many steps lie between two evaluations, a number or one for each run. Ratios that
        half of the runs cannot tell from 1 are grey. None for steps that are exact.
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
    taken = _checked(steps_to_target)
    best = np.min(list(taken.values()), axis=0)
    ratios = {}
    for name, steps in taken.items():
        slower = np.isfinite(steps) & (steps > best) & (best > 0)
        fastest = np.isfinite(steps) & (steps == best)
        ratios[name] = np.where(
            slower, steps / np.where(slower, best, 1.0), np.where(fastest, 1.0, np.inf)
        )
    every = np.concatenate([each.ravel() for each in ratios.values()])
    end = max(2.0, 1.1 * every[np.isfinite(every)].max(initial=1.0))
    ax = axes_for(ax)
    for name, each in ratios.items():
        jumps = np.unique(np.append(1.0, each[np.isfinite(each)]))
        shares = np.mean(each[..., np.newaxis] <= jumps, axis=1)  # studies x jumps
        places = np.append(jumps, end)
        style = next_style(ax)
        share = np.append(shares.mean(axis=0), shares[:, -1].mean())
        line = curve(ax, places, share, style, str(name))
        line.set_drawstyle("steps-post")
        line.set_markevery(list(range(len(jumps))) if len(jumps) <= _MARKED else 0.1)
        if len(shares) > 1:
            low, high = shares.min(axis=0), shares.max(axis=0)
            low, high = np.append(low, low[-1]), np.append(high, high[-1])
            band_around(ax, places, low, high, style, step="post")
    if resolution is not None:
        _grey(ax, resolution, best)
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_formatter("{x:g}")
    ax.set_xlim(1, end)
    ax.set_ylim(-0.02, 1.02)
    ax.set_xlabel("τ (steps to the target relative to the fastest)")
    ax.set_ylabel("share of runs solved")
    legend(ax, beside=True)
    return ax


_MARKED = 30
"""How many jumps of a line have a marker each."""


def _checked(steps_to_target: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The steps of each optimizer, studies x runs."""
    taken = {
        name: numbers(f"steps_to_target[{name!r}]", steps, "(runs,)", "(studies, runs)")
        for name, steps in named("steps_to_target", steps_to_target, "steps").items()
    }
    (first, one), *others = taken.items()
    for name, steps in others:
        if steps.shape != one.shape:
            raise ValueError(
                f"steps_to_target[{name!r}] has shape {steps.shape}, steps_to_target[{first!r}] has "
                f"shape {one.shape}: all must have one shape, (runs,) or (studies, runs), with the same "
                "runs in it."
            )
    for name, steps in taken.items():
        if not (steps >= 0).all():
            raise ValueError(
                f"steps_to_target[{name!r}] has {steps[~(steps >= 0)][0]:g} in it: steps must be 0 or "
                "more, and inf where the target was never reached."
            )
    return {name: np.atleast_2d(steps) for name, steps in taken.items()}


def _grey(ax: Axes, resolution: Any, best: np.ndarray) -> None:
    """Where half of the runs cannot tell a ratio from 1, by the steps between two evaluations."""
    steps = numbers("resolution", np.atleast_1d(resolution), "(runs,)", "()")
    if len(steps) not in (1, best.shape[1]) or not (steps >= 0).all():
        raise ValueError(
            f"resolution={resolution!r:.200} must be a number of steps, 0 or more, or one for each of "
            f"the {best.shape[1]} runs."
        )
    steps = np.broadcast_to(steps, best.shape)
    known = np.isfinite(best) & (best > 0)
    if known.any() and (steps > 0).any():
        end = 1 + float(np.median(steps[known] / best[known]))
        ax.axvspan(1, end, color="0.9", zorder=0, label="within one evaluation")
