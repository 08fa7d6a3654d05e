"""The best setting so far, against how many were tried."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .axes import axes_for, fit_scale, legend
from .checks import named, numbers
from .lines import band_around, curve, next_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def best_so_far(values: Mapping[str, Any], *, name: str = "value", ax: Axes | None = None) -> Axes:
    """The best of the first n settings against n, for each optimizer: whether its budget was enough.

    Where a line still falls at the end, more settings would have found a better one. The line is the
    median of the studies, the band goes from the lowest to the highest of them, as far as all have found
    a setting that works.

    Args:
      values: from names to what each setting came to, in the order in which they were tried, of shape
        (settings,) or (studies, settings); lower is better, inf or NaN for what did not work.
      name: of what is measured, for the y axis.
      ax: a matplotlib Axes; None for that of a new figure.

    Returns:
      The Axes.

    Raises:
      ValueError: for no optimizers, and other shapes.
      TypeError: for what is no mapping, and no Axes.
      ImportError: without matplotlib.

    Example:
      >>> from matplotlib.figure import Figure
      >>> from adaptive_jax import plotting
      >>> found = {"SGD": [9.0, 4.0, 7.0, 3.0], "Adam": [5.0, 6.0, 2.0, 8.0]}
      >>> ax = plotting.best_so_far(found, name="loss", ax=Figure().subplots())
      >>> print([list(map(float, line.get_ydata())) for line in ax.lines])
      [[9.0, 4.0, 4.0, 3.0], [5.0, 5.0, 2.0, 2.0]]
    """
    taken = {
        each: np.atleast_2d(
            numbers(f"values[{each!r}]", found, "(settings,)", "(studies, settings)")
        )
        for each, found in named("values", values, "values").items()
    }
    ax = axes_for(ax)
    best = {
        each: np.minimum.accumulate(np.where(np.isfinite(found), found, np.inf), axis=1)
        for each, found in taken.items()
    }
    shown = np.concatenate([each.ravel() for each in best.values()])
    fit_scale(ax, "y", shown[np.isfinite(shown)])
    for each, found in best.items():
        style = next_style(ax)
        places = np.arange(1, found.shape[1] + 1)
        middle = np.median(found, axis=0)
        works = np.isfinite(found).all(axis=0)
        line = curve(ax, places, np.where(np.isfinite(middle), middle, np.nan), style, str(each))
        line.set_drawstyle("steps-post")
        if len(found) > 1:
            low, high = (
                np.where(works, edge, np.nan) for edge in (found.min(axis=0), found.max(axis=0))
            )
            band_around(ax, places, low, high, style, step="post")
    ax.set_xlabel("settings tried")
    ax.set_ylabel(f"{name}, best so far")
    legend(ax)
    return ax
