"""Sensitivity, held against NumPy and counting by hand."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from plotting.drawn import edges, legend, line

from adaptive_jax import plotting

RATES = np.array([0.1, 0.001, 10.0, 1.0, 0.01])
OF_RATES = np.array(
    [
        [0.3, 0.1, 0.2],
        [3.0, 2.5, 2.0],
        [np.inf, np.nan, np.nan],
        [np.nan, 0.05, np.inf],
        [0.9, 0.8, np.nan],
    ]
)


def crosses(ax, kind):
    return [each for each in ax.lines if each.get_gid() == kind]


def test_sensitivity(ax):
    plotting.sensitivity(RATES, OF_RATES, label="SGD", ax=ax)
    curve = line(ax, "SGD")
    np.testing.assert_array_equal(curve.get_xdata(), [0.001, 0.01, 0.1, 1, 10])
    # 0.8, 0.9 and infinity have the median 0.9; 0.05 and two infinities have none that is finite.
    np.testing.assert_allclose(curve.get_ydata(), [2.5, 0.9, 0.2, np.nan, np.nan])
    (band,) = ax.collections
    np.testing.assert_allclose(edges(band, [0.001, 0.01, 0.1]), [[2.0, 0.8, 0.1], [3.0, 0.9, 0.3]])
    (every,) = crosses(ax, "all seeds diverged")
    (some,) = crosses(ax, "some seeds diverged")
    np.testing.assert_array_equal(every.get_xdata(), [10.0])
    np.testing.assert_array_equal(some.get_xdata(), [0.01, 1.0])
    assert to_rgb(every.get_markerfacecolor()) == to_rgb(curve.get_color())
    assert to_rgb(some.get_markerfacecolor()) == (1, 1, 1)
    (best,) = [each for each in ax.lines if each.get_marker() == "*"]
    np.testing.assert_array_equal(best.get_xydata(), [[0.1, 0.2]])
    assert legend(ax) == ["SGD (best: 0.1)", "all seeds diverged", "some seeds diverged"]
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("learning rate", "loss")


@pytest.mark.parametrize("top", [1.0, 1e4])
def test_crosses_hide_nothing(top, ax):
    """Those of several optimizers stand in rows, above every line and band."""
    for index in range(4):
        losses = [[top, 1.0], [1.0, 0.5], [np.nan, np.nan], [np.nan, 0.5]]
        plotting.sensitivity([1, 2, 3, 4], losses, label=f"optimizer {index}", ax=ax)
    curves = [line(ax, f"optimizer {index}") for index in range(4)]
    assert len({each.get_color() for each in curves}) == 4
    every, some = crosses(ax, "all seeds diverged"), crosses(ax, "some seeds diverged")
    ax.figure.canvas.draw()
    heights = [each.get_transform().transform(each.get_xydata())[0, 1] for each in every]
    assert [each.get_color() for each in every] == [each.get_color() for each in curves]
    assert [each.get_ydata()[0] for each in every] == [each.get_ydata()[0] for each in some]
    size = every[0].get_markersize() * ax.figure.dpi / 72
    assert (np.diff(heights) < -size).all()
    assert ax.transAxes.transform((0, 1))[1] - heights[0] > size / 2
    assert heights[-1] - ax.transData.transform((1, top))[1] > size / 2
    assert legend(ax)[4:] == ["all seeds diverged", "some seeds diverged"]  # once


def test_sensitivity_of_single_runs(ax):
    plotting.sensitivity([0.9, 0.95, 0.99], [2.0, 1.0, np.nan], name="b1", ax=ax)
    assert not ax.collections
    assert legend(ax) == ["best: 0.95", "diverged"]
    assert ax.get_xlabel() == "b1"
    assert (ax.get_xscale(), ax.get_yscale()) == ("linear", "linear")


def test_the_star_of_sensitivity_is_at_the_best_mean(ax):
    losses = [[1.0, 1.0, 9.0], [2.0, 2.0, 2.0], [0.5, 0.5, np.nan]]
    plotting.sensitivity([1, 2, 3], losses, ax=ax)
    (best,) = [each for each in ax.lines if each.get_marker() == "*"]
    np.testing.assert_array_equal(best.get_xydata(), [[2.0, 2.0]])


def test_sensitivity_of_what_is_to_be_large(ax):
    shares = [[0.5, 0.6, 0.7], [0.9, 0.8, 0.9], [0.99, np.nan, np.nan]]
    plotting.sensitivity([1, 2, 3], shares, maximize=True, ax=ax)
    (best,) = [each for each in ax.lines if each.get_marker() == "*"]
    np.testing.assert_array_equal(best.get_xydata(), [[2.0, 0.9]])
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), [0.6, 0.9, np.nan])


def test_sensitivity_where_nothing_works(ax):
    plotting.sensitivity([1, 2], [np.nan, np.inf], label="SGD", ax=ax)
    assert legend(ax) == ["SGD (no setting works)", "diverged"]
    assert not [each for each in ax.lines if each.get_marker() == "*"]


def test_sensitivity_where_all_works(ax):
    plotting.sensitivity([1, 2], [[1.0, 2.0], [3.0, 4.0]], ax=ax)
    assert legend(ax) == ["best: 1"]
    assert ax.get_ylim()[1] < 4.2
