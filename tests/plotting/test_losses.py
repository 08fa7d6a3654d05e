"""Loss curves, held against NumPy and counting by hand."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from plotting.drawn import LOSSES, edges, legend, line

from adaptive_jax import plotting


@pytest.mark.parametrize("spread", plotting.SPREADS)
def test_loss_curves(spread, ax):
    steps = np.arange(30) * 5
    plotting.loss_curves({"Adam": jnp.asarray(LOSSES)}, steps=steps, spread=spread, ax=ax)
    ordered = np.sort(np.asarray(LOSSES, np.float32), axis=0).astype(np.float64)
    if spread == "deviation":
        middle = ordered.sum(axis=0) / 7
        deviation = np.sqrt(np.square(ordered - middle).sum(axis=0) / 6)
        low, high = middle - deviation, middle + deviation
        low = np.maximum(low, ordered.min())
    else:
        middle = ordered[3]
        low, high = ordered[0], ordered[6]
        if spread == "quartiles":  # a quarter of the way from the lowest of 7 to the highest: 1.5
            low, high = (ordered[1] + ordered[2]) / 2, (ordered[4] + ordered[5]) / 2
    np.testing.assert_array_equal(ax.lines[0].get_xdata(), steps)
    np.testing.assert_allclose(ax.lines[0].get_ydata(), middle)
    (band,) = ax.collections
    np.testing.assert_allclose(edges(band, steps), (low, high))
    assert legend(ax) == ["Adam"]


def test_one_run_has_no_band(ax):
    plotting.loss_curves({"SGD": LOSSES[0], "one seed": LOSSES[:1]}, spread="deviation", ax=ax)
    assert not ax.collections
    for each in ax.lines:
        np.testing.assert_array_equal(each.get_xdata(), np.arange(30))
        np.testing.assert_array_equal(each.get_ydata(), LOSSES[0])


@pytest.mark.parametrize(
    ("losses", "scale"),
    [([1, 9.9], "linear"), ([1, 11], "log"), ([0, 11], "linear"), ([-1, 11], "linear")],
)
def test_logarithmic(losses, scale, ax):
    plotting.loss_curves({"SGD": losses}, ax=ax)
    assert ax.get_yscale() == scale


def test_a_logarithmic_axis_hides_nothing_that_comes_later(ax):
    plotting.loss_curves({"SGD": [1.0, 100.0]}, ax=ax)
    plotting.loss_curves({"Adam": [1.0, -1.0]}, ax=ax)
    assert ax.get_yscale() == "linear"


def test_band_below_zero_on_a_logarithmic_axis(ax):
    losses = np.array([[1.0, 0.01], [1.0, 0.01], [1.0, 1.0]])
    mean, deviation = 0.34, 0.99 / np.sqrt(3)
    plotting.loss_curves({"SGD": losses}, spread="deviation", ax=ax)
    assert ax.get_yscale() == "log"
    np.testing.assert_allclose(
        edges(ax.collections[0], [0, 1]), [[1.0, 0.01], [1.0, mean + deviation]]
    )
    np.testing.assert_allclose(ax.get_ylim()[0], 0.01)  # no gap below the cut


def test_diverged_seeds(ax):
    losses = LOSSES.copy()
    losses[1, 20:] = np.nan
    losses[4, 3] = np.inf
    plotting.loss_curves({"Adam": losses, "SGD": np.full((2, 30), np.nan)}, ax=ax)
    kept = np.sort(LOSSES[[0, 2, 3, 5, 6]], axis=0)
    np.testing.assert_array_equal(line(ax, "Adam").get_ydata(), kept[2])
    np.testing.assert_allclose(edges(ax.collections[0], np.arange(30)), kept[[1, 3]])
    assert legend(ax) == ["Adam (2 of 7 diverged)", "SGD (all 2 diverged)"]


@pytest.mark.parametrize("order", [("Adam", "SGD"), ("SGD", "Adam")])
def test_what_blows_up_leaves_the_limits(order, ax):
    curves = {"Adam": LOSSES, "SGD": [1.0, 1e10, 1e20, np.nan, *[1.0] * 26]}
    plotting.loss_curves({name: curves[name] for name in order}, ax=ax)
    np.testing.assert_array_equal(line(ax, "SGD").get_ydata(), [1, 1e10, 1e20] + 27 * [np.nan])
    assert "SGD (diverged)" in legend(ax)
    assert ax.get_ylim()[1] < 10


def test_all_that_there_is_diverged(ax):
    plotting.loss_curves({"SGD": [1.0, 1e10, 1e20, np.nan]}, ax=ax)
    low, high = ax.get_ylim()
    assert low < 1
    assert high > 1e20


def test_styles_differ_in_grey(ax):
    """No two of 45 have the same dashes and marker, and their band has their colour."""
    ax.figure.set_size_inches(10, 10)  # for a legend of 45
    plotting.loss_curves({f"optimizer {i}": LOSSES for i in range(45)}, ax=ax)
    marks = {(each.get_marker(), str(each._dash_pattern)) for each in ax.lines}
    assert len(marks) == 45
    for each, band in zip(ax.lines, ax.collections, strict=True):
        np.testing.assert_array_equal(band.get_facecolor()[0, :3], to_rgb(each.get_color()))
    first = [to_rgb(each.get_color()) for each in ax.lines[:8]]
    assert len(set(first)) == 8
    assert all(np.dot(color, (0.21, 0.72, 0.07)) < 0.75 for color in first)  # seen on white


def test_a_long_legend_covers_nothing(ax):
    plotting.loss_curves({f"optimizer {i}": LOSSES for i in range(10)}, ax=ax)
    ax.figure.canvas.draw()
    beside, inside = ax.get_legend().get_window_extent(), ax.get_window_extent()
    assert beside.x0 >= inside.x1
    assert beside.x1 <= ax.figure.bbox.x1
    assert beside.y0 >= 0
