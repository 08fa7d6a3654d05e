"""Loss against the step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .._core import arguments
from .axes import axes_for, fit_scale, legend
from .checks import named, numbers, places_of
from .lines import band_around, curve, next_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes


SPREADS = ("quartiles", "range", "deviation")
"""What the band of `loss_curves` can be."""


def loss_curves(
    curves: Mapping[str, Any],
    *,
    steps: Any = None,
    spread: str = "quartiles",
    ax: Axes | None = None,
) -> Axes:
    """Loss against the step: for each optimizer a line through the middle of its seeds, and a band.

    A run with a NaN or an infinity anywhere has diverged. It counts neither in the line nor in the
    band, and the legend says so: "Adam (2 of 10 diverged)". Where every run of an optimizer diverged,
    its line goes as far as all of them are finite, without a say in the limits of the y axis.

    The y axis is logarithmic where all losses are positive and span more than a decade. There a band
    that reaches below the lowest loss, as mean less deviation may, ends at it.

    Args:
      curves: from names to losses, of shape (seeds, points), or (points,) for one run.
      steps: where the points are, of shape (points,); None for 0, 1, 2, ...
      spread: "quartiles", the median in a band from the first to the third quartile; "range", the
        median in a band from the lowest to the highest; "deviation", the mean with a sample standard
        deviation to either side. A single run has no band.
      ax: a matplotlib Axes; None for that of a new figure.

    Returns:
      The Axes.

    Raises:
      ValueError: for no curves, other shapes, and an unknown spread.
      TypeError: for what is no mapping, and no Axes.
      ImportError: without matplotlib.

    Example:
      >>> import numpy as np
      >>> from matplotlib.figure import Figure
      >>> from adaptive_jax import plotting
      >>> losses = 0.9 ** np.arange(50) * np.array([[1.0], [2.0], [np.nan]])
      >>> ax = plotting.loss_curves({"Adam": losses}, spread="range", ax=Figure().subplots())
      >>> print(ax.get_yscale(), [text.get_text() for text in ax.get_legend().get_texts()])
      log ['Adam (1 of 3 diverged)']
    """
    arguments.one_of("spread", spread, SPREADS)
    runs = {
        name: np.atleast_2d(numbers(f"curves[{name!r}]", losses, "(seeds, points)", "(points,)"))
        for name, losses in named("curves", curves, "losses").items()
    }
    places = {
        name: places_of(steps, losses.shape[1], f"curves[{name!r}]")
        for name, losses in runs.items()
    }
    ax = axes_for(ax)
    kept = {name: losses[np.isfinite(losses).all(axis=1)] for name, losses in runs.items()}
    some_kept = any(len(losses) for losses in kept.values())
    shown = np.concatenate([losses.ravel() for losses in (kept if some_kept else runs).values()])
    logarithmic = fit_scale(ax, "y", shown)
    for name, losses in runs.items():
        style = next_style(ax)
        label = f"{name}{_diverged(len(losses) - len(kept[name]), len(losses))}"
        if len(kept[name]) == 0:
            limits = ax.dataLim.frozen()
            center = _center_and_band(_while_finite(losses), spread)[0]
            curve(ax, places[name], center, style, label)
            if some_kept:  # What blows up would press the others flat.
                ax.dataLim.set(limits)
            continue
        center, low, high = _center_and_band(kept[name], spread)
        curve(ax, places[name], center, style, label)
        if len(kept[name]) > 1:
            # A logarithmic axis would reach for the smallest positive number of the band.
            cut = logarithmic and low.min() < shown.min()
            low = np.maximum(low, shown.min()) if cut else low
            band = band_around(ax, places[name], low, high, style)
            if cut:
                band.sticky_edges.y.append(shown.min())  # the axis ends where the band is cut
    ax.set_xlabel("step")
    ax.set_ylabel("loss")
    legend(ax)
    return ax


def _center_and_band(runs: np.ndarray, spread: str) -> Any:
    """The line through the middle of the runs, and the lower and upper edge of their band."""
    if spread == "deviation":
        mean = runs.mean(axis=0)
        deviation = runs.std(axis=0, ddof=1) if len(runs) > 1 else np.zeros_like(mean)
        return mean, mean - deviation, mean + deviation
    if spread == "range":
        return np.median(runs, axis=0), runs.min(axis=0), runs.max(axis=0)
    low, median, high = np.quantile(runs, (0.25, 0.5, 0.75), axis=0)
    return median, low, high


def _while_finite(runs: np.ndarray) -> np.ndarray:
    """The runs as far as all of them are finite, NaN after that."""
    finite = np.logical_and.accumulate(np.isfinite(runs).all(axis=0))
    return np.where(finite, runs, np.nan)


def _diverged(diverged: int, runs: int) -> str:
    """What the legend says after the name."""
    if not diverged:
        return ""
    if diverged < runs:
        return f" ({diverged} of {runs} diverged)"
    return " (diverged)" if runs == 1 else f" (all {runs} diverged)"
