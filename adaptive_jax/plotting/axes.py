"""The Axes that are drawn into: their scales and their legend."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .lines import CROSSES, CURVE, cross_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def axes_for(ax: Any) -> Axes:
    """The Axes to draw into."""
    try:
        from matplotlib.axes import Axes
    except ImportError as error:
        raise ImportError('Drawing needs matplotlib: pip install "adaptive_jax[plot]"') from error
    if ax is None:
        from matplotlib import pyplot

        return pyplot.subplots(figsize=(6, 4), layout="constrained")[1]
    if not isinstance(ax, Axes):
        raise TypeError(
            f"ax is a {type(ax).__name__}: it must be one matplotlib Axes, such as axes[0, 1] of "
            "figure, axes = pyplot.subplots(2, 2), or None for a new figure."
        )
    return ax


def fit_scale(ax: Axes, axis: str, values: np.ndarray) -> bool:
    """Makes an axis logarithmic if that suits these values and the curves before; whether it is."""
    get = "get_xdata" if axis == "x" else "get_ydata"
    drawn = [np.asarray(getattr(line, get)()) for line in ax.lines if line.get_gid() == CURVE]
    together = np.concatenate([values.ravel(), *drawn])
    together = together[np.isfinite(together)]
    set_scale = ax.set_xscale if axis == "x" else ax.set_yscale
    if together.size and together.min() > 0:
        if together.max() > 10 * together.min():
            set_scale("log")
    elif together.size and getattr(ax, f"get_{axis}scale")() == "log":
        set_scale("linear")
    return getattr(ax, f"get_{axis}scale")() == "log"


def legend(ax: Axes, beside: bool = False) -> None:
    """What each line and mark is: within the Axes, or beside them if it is long or asked for.

    Beside them there is room only in a figure with a layout engine, such as layout="constrained".
    """
    handles = ax.get_legend_handles_labels()[0]
    there = {line.get_gid() for line in ax.lines}
    for gid in CROSSES:
        if gid in there:
            cross = cross_of(gid, "0.2")
            cross.set_label(gid)
            handles.append(cross)
    figure = ax.get_figure(root=True)
    layout = None if figure is None else figure.get_layout_engine()
    # Long enough handles to tell the dashes apart; "best" by name, or matplotlib warns when it is slow.
    legend = ax.legend(handles=handles, loc="best", fontsize="small", handlelength=3.5)
    if layout is not None and (beside or len(handles) > 6):
        legend.set_loc("upper left")
        legend.set_bbox_to_anchor((1, 1), ax.transAxes)
