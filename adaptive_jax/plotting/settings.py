"""Loss against a hyperparameter."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .axes import axes_for, fit_scale, legend
from .checks import numbers
from .lines import band_around, crosses, curve, next_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def sensitivity(
    values: Any,
    losses: Any,
    *,
    name: str = "learning_rate",
    label: str | None = None,
    maximize: bool = False,
    ax: Axes | None = None,
) -> Axes:
    """Loss against a hyperparameter: how wide the range of good settings is, and where it ends.

    The line is the median of the seeds, the band goes from the lowest to the highest, a star marks the
    setting with the best mean, as `Sweep.best` does. A seed that diverged, with NaN or an infinity,
    counts as infinitely bad: where half of them did, there is no line. A filled cross at the top marks
    the settings where every seed diverged, a hollow one those where some did. Call it again with the same
    `ax` for another optimizer: it takes the next colour, and a row of crosses of its own.

    Both axes are logarithmic where all is positive and spans more than a decade. Losses that are finite
    but huge press the others flat: give them as infinity, or end the axis with `ax.set_ylim`.

    Args:
      values: the settings, of shape (settings,), in any order.
      losses: of shape (settings, seeds), or (settings,).
      name: of the hyperparameter, for the x axis.
      label: of the optimizer, for the legend.
      maximize: whether more is better, as of an accuracy.
      ax: a matplotlib Axes; None for that of a new figure.

    Returns:
      The Axes.

    Raises:
      ValueError: for other shapes, and settings that are not finite.
      TypeError: for what is no Axes.
      ImportError: without matplotlib.

    Example:
      >>> import numpy as np
      >>> from matplotlib.figure import Figure
      >>> from adaptive_jax import plotting
      >>> rates, losses = np.array([0.001, 0.01, 0.1, 1.0]), np.array([3.0, 0.2, 0.1, np.nan])
      >>> ax = plotting.sensitivity(rates, losses, label="SGD", ax=Figure().subplots())
      >>> print([text.get_text() for text in ax.get_legend().get_texts()])
      ['SGD (best: 0.1)', 'diverged']
    """
    places = numbers("values", values, "(settings,)")
    runs = numbers("losses", losses, "(settings, seeds)", "(settings,)")
    if len(runs) != len(places):
        raise ValueError(
            f"losses has shape {runs.shape}, values has shape {places.shape}: losses must be "
            f"({len(places)}, seeds) or ({len(places)},), one row for each of the values."
        )
    if not np.isfinite(places).all():
        raise ValueError(
            f"values has {places[~np.isfinite(places)][0]} in it: they must be finite, as places on the "
            "x axis."
        )
    order = np.argsort(places)
    places, runs = places[order], runs[order].reshape(len(places), -1)
    finite = np.isfinite(runs)
    sign = -1 if maximize else 1
    as_losses = np.where(finite, sign * runs, np.inf)
    median = sign * np.median(as_losses, axis=1)
    drawn = np.isfinite(median)
    # The best mean; where every setting has a seed that diverged, the best median.
    best = np.lexsort((sign * median, as_losses.mean(axis=1)))[0]
    ax = axes_for(ax)
    fit_scale(ax, "x", places)
    fit_scale(ax, "y", runs[finite & drawn[:, np.newaxis]])
    style = next_style(ax)
    note = f"best: {places[best]:.3g}" if drawn[best] else "no setting works"
    note = note if label is None else f"{label} ({note})"
    line = curve(ax, places, np.where(drawn, median, np.nan), style, note)
    line.set_markevery(1)  # every setting that was tried
    if runs.shape[1] > 1:
        low = np.where(finite, runs, np.inf).min(axis=1)
        high = np.where(finite, runs, -np.inf).max(axis=1)
        low, high = np.where(drawn, low, np.nan), np.where(drawn, high, np.nan)
        band_around(ax, places, low, high, style)
    if drawn[best]:
        ax.plot(
            places[best],
            median[best],
            linestyle="none",
            marker="*",
            markersize=16,
            markeredgecolor="white",
            color=style["color"],
            zorder=4,
        )
    crosses(ax, places, finite, style)
    ax.set_xlabel(name.replace("_", " "))
    ax.set_ylabel("loss")
    legend(ax)
    return ax
