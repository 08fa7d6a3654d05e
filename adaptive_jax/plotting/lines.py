"""Curves in styles that differ, their bands, and crosses for what diverged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import PolyCollection
    from matplotlib.lines import Line2D

# Okabe and Ito's colours stay apart for colour-blind readers, dashes and markers in grey print. Their
# yellow is too light for a line on white: a grey stands in its place. The three lists have no common
# divisor, so the same dashes meet the same markers again only after 45 lines.
COLORS = (
    "#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#7F7F7F",
)  # fmt: skip


DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))


MARKERS = ("o", "s", "^", "D", "v", "P", "<", ">", "p")


CURVE = "adaptive_jax curve"  # the gid of lines that were given a style


# The gid of the crosses for what diverged, and what fills them: None for the colour of their edge.
CROSSES = {"diverged": None, "all seeds diverged": None, "some seeds diverged": "white"}


_ROW = 0.06  # the height of a row of crosses, as a share of the height of the Axes


def _curves(ax: Axes) -> int:
    """How many curves there are."""
    return sum(line.get_gid() == CURVE for line in ax.lines)


def next_style(ax: Axes) -> dict[str, Any]:
    """Color, dashes and marker of the next curve."""
    index = _curves(ax)
    return {
        "color": COLORS[index % len(COLORS)],
        "linestyle": DASHES[index % len(DASHES)],
        "marker": MARKERS[index % len(MARKERS)],
    }


def curve(
    ax: Axes, x: np.ndarray, y: np.ndarray, style: dict[str, Any], label: str | None
) -> Line2D:
    """A curve, with some eight markers."""
    every = max(1, len(x) // 8)
    # Where curves lie on one another, their markers stand side by side.
    first = _curves(ax) * every // 5 % every
    (line,) = ax.plot(x, y, label=label, gid=CURVE, markevery=(first, every), markersize=5, **style)
    return line


def band_around(
    ax: Axes,
    x: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    style: dict[str, Any],
    step: Any = None,
) -> PolyCollection:
    """The band of a curve, its edges thin, in the dashes of the curve.

    step: "post" where the curve goes in steps.
    """
    return ax.fill_between(
        x,
        low,
        high,
        color=style["color"],
        linestyle=style["linestyle"],
        linewidth=0.6,
        alpha=0.2,
        step=step,
    )


def crosses(ax: Axes, places: np.ndarray, finite: np.ndarray, style: dict[str, Any]) -> None:
    """Marks where seeds diverged, at the top, in a row below those of the optimizers before."""
    rows = len({np.asarray(each.get_ydata())[0] for each in ax.lines if each.get_gid() in CROSSES})
    rows += not finite.all()
    height = 1 - _ROW * (rows - 0.4)
    some, every = finite.any(axis=1), finite.all(axis=1)
    all_diverged = "diverged" if finite.shape[1] == 1 else "all seeds diverged"
    for gid, marked in ((all_diverged, ~some), ("some seeds diverged", some & ~every)):
        if marked.any():
            cross = cross_of(gid, style["color"], places[marked], np.full(marked.sum(), height))
            cross.set_transform(ax.get_xaxis_transform())  # y in shares of the height of the Axes
            ax.add_line(cross)
    low, high = ax.dataLim.intervaly
    if rows and np.isfinite([low, high]).all():
        # No line reaches the rows of crosses. With auto=True later lines move the limits again.
        scale = ax.yaxis.get_transform()
        low, high = scale.transform(np.array([low, high]))
        margin = 0.05 * (high - low) or 0.05
        bottom = low - margin
        top = bottom + (high + margin - bottom) / (1 - _ROW * rows)
        ax.set_ylim(*scale.inverted().transform(np.array([bottom, top])), auto=True)


def cross_of(gid: str, color: Any, x: Any = (), y: Any = ()) -> Line2D:
    """Crosses of one kind, not yet in any Axes."""
    from matplotlib.lines import Line2D

    return Line2D(
        x,
        y,
        linestyle="none",
        marker="X",
        markersize=7,
        markeredgewidth=1.2,
        color=color,
        markerfacecolor=CROSSES[gid],
        gid=gid,
    )
