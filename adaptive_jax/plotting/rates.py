"""What short runs come to with each learning rate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .axes import axes_for, legend
from .checks import numbers
from .settings import sensitivity

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def learning_rates(
    rates: Any,
    losses: Any,
    *,
    unmoved: float,
    suggestion: float | None = None,
    largest: float | None = None,
    name: str = "loss",
    ax: Axes | None = None,
) -> Axes:
    """The loss that short runs come to with each learning rate: where it falls, and where it blows up.

    A line across is the loss without any step; what rises above it is cut off, and crosses at the top
    mark rates with which the loss was lost. `LearningRates.plot` draws it of what was found.

    Args:
      rates: the learning rates, of shape (rates,), above 0.
      losses: what each came to, of shape (rates,); inf or NaN where the loss was lost.
      unmoved: the loss without any step.
      suggestion: the learning rate to take, a line of its own; None for none.
      largest: the step size that a measured sharpness allows, 2/λ, another line; None for none.
      name: of what is measured, for the y axis.
      ax: a matplotlib Axes; None for that of a new figure.

    Returns:
      The Axes.

    Raises:
      ValueError: for other shapes, and rates that are not above 0.
      TypeError: for what is no Axes.
      ImportError: without matplotlib.

    Example:
      >>> import numpy as np
      >>> from matplotlib.figure import Figure
      >>> from adaptive_jax import plotting
      >>> rates, losses = np.array([0.01, 0.1, 1.0]), np.array([0.9, 0.2, np.inf])
      >>> ax = plotting.learning_rates(rates, losses, unmoved=1.0, suggestion=0.1, ax=Figure().subplots())
      >>> print([text.get_text() for text in ax.get_legend().get_texts()])
      ['best: 0.1', 'without a step: 1', 'suggested: 0.1', 'diverged']
    """
    places = numbers("rates", rates, "(rates,)")
    found = numbers("losses", losses, "(rates,)")
    if not (places > 0).all():
        raise ValueError(f"rates has {places[~(places > 0)][0]:g} in it: they must be above 0.")
    ax = axes_for(ax)
    ax.set_xscale("log")
    kept = np.isfinite(found) & (found <= unmoved)
    low = found[kept].min() if kept.any() else unmoved
    logarithmic = low > 0 and unmoved > 10 * low
    top = unmoved * 2 if logarithmic else unmoved + 0.25 * (unmoved - low)
    # What rises far above it is cut off by the axis, where the line still shows which way it goes.
    shown = np.where(np.isfinite(found), np.minimum(found, _FAR * max(abs(unmoved), top)), np.inf)
    sensitivity(places, shown, name="learning_rate", ax=ax)
    ax.set_yscale("log" if logarithmic else "linear")
    ax.axhline(unmoved, color="0.5", linewidth=1, label=f"without a step: {unmoved:.3g}")
    if suggestion is not None:
        ax.axvline(
            suggestion, color="#009E73", linestyle="--", label=f"suggested: {suggestion:.3g}"
        )
    if largest is not None:
        ax.axvline(largest, color="#D55E00", linestyle=":", label=f"2/λ: {largest:.3g}")
    if top > unmoved:
        bottom = low / 1.3 if logarithmic else low - 0.1 * (unmoved - low)
        ax.set_ylim(bottom, top)
    ax.set_ylabel(name)
    legend(ax)
    return ax


_FAR = 1e3
"""How many times the loss without a step is far above all that is to be seen."""
