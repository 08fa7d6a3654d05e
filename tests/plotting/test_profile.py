"""Performance profiles, counted by hand."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from plotting.drawn import edges, legend, line

from adaptive_jax import plotting


def profile(ax, name, ratio):
    """The share at a ratio: of a step function, the height of the last corner to its left."""
    x, y = line(ax, name).get_data()
    assert line(ax, name).get_drawstyle() == "steps-post"
    return y[np.flatnonzero(x <= ratio)[-1]]


def test_performance_profile(ax):
    steps = {
        "SGD": [100, 400, np.inf, np.inf, 50],
        "Adam": [200, 100, 300, np.inf, 50],
        "never": [np.inf] * 5,
    }
    plotting.performance_profile(steps, ax=ax)
    # The ratios to the best, 100, 100, 300, none, 50: SGD 1, 4, inf, inf, 1; Adam 2, 1, 1, inf, 1.
    by_hand = {
        "SGD": {1: 0.4, 1.99: 0.4, 2: 0.4, 3.99: 0.4, 4: 0.6, 4.3: 0.6},
        "Adam": {1: 0.6, 1.99: 0.6, 2: 0.8, 4: 0.8},
        "never": {1: 0.0, 4: 0.0},
    }
    for name, values in by_hand.items():
        for ratio, share in values.items():
            assert profile(ax, name, ratio) == pytest.approx(share), (name, ratio)
        assert line(ax, name).get_xdata()[-1] == pytest.approx(4.4)
    assert ax.get_xlim() == pytest.approx((1, 4.4))
    assert ax.get_xscale() == "log"
    ax.figure.canvas.draw()
    ticks = dict(zip(ax.get_xticks(), ax.get_xticklabels(), strict=True))
    assert [ticks[each].get_text() for each in (1, 2, 4)] == ["1", "2", "4"]
    assert legend(ax) == ["SGD", "Adam", "never"]


def test_profile_of_one(ax):
    plotting.performance_profile({"SGD": jnp.array([4, 7, jnp.inf])}, ax=ax)
    assert profile(ax, "SGD", 1) == pytest.approx(2 / 3)
    assert ax.get_xlim() == (1, 2)


def test_profile_of_runs_solved_at_the_start(ax):
    """No steps times any τ are no steps."""
    plotting.performance_profile({"SGD": [0, 0, 5], "Adam": [0, 3, 10]}, ax=ax)
    assert profile(ax, "SGD", 1) == 1
    assert profile(ax, "Adam", 1) == pytest.approx(1 / 3)
    assert profile(ax, "Adam", 2) == pytest.approx(2 / 3)
    assert ax.get_xlim() == pytest.approx((1, 2.2))


def test_profile_of_studies(ax):
    """The mean of the studies, in a band from the lowest to the highest."""
    steps = {
        "SGD": [[100, 400], [100, np.inf]],
        "Adam": [[200, 100], [100, 300]],
    }
    plotting.performance_profile(steps, resolution=10, ax=ax)
    # The ratios: SGD 1, 4 and 1, inf; Adam 2, 1 and 1, 1.
    assert [profile(ax, "SGD", ratio) for ratio in (1, 3.9, 4)] == [0.5, 0.5, 0.75]
    assert [profile(ax, "Adam", ratio) for ratio in (1, 2)] == [0.75, 1.0]
    sgd, adam, *_ = ax.collections
    assert [each.tolist() for each in edges(sgd, [4.0, 4.4])] == [[0.5, 0.5], [1.0, 1.0]]
    assert [each.tolist() for each in edges(adam, [1.0])] == [[0.5], [1.0]]
    # One evaluation of ten steps, of the best: 100, 100, 100 and 300.
    (grey,) = ax.patches
    assert grey.get_extents().transformed(ax.transData.inverted()).x1 == pytest.approx(1.1)
    assert legend(ax) == ["SGD", "Adam", "within one evaluation"]


@pytest.mark.parametrize("resolution", [-1, [1.0, 2.0, 3.0]])
def test_profile_of_a_wrong_resolution(ax, resolution):
    with pytest.raises(
        ValueError, match="must be a number of steps, 0 or more, or one for each of"
    ):
        plotting.performance_profile({"SGD": [1, 2]}, resolution=resolution, ax=ax)
