"""Paths over contours, read back from the artists."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from plotting.drawn import START, bowl, legend, line

import adaptive_jax as aj
from adaptive_jax import plotting

BOX = ((-3.0, 3.0), (-1.5, 1.5))


def trajectory(tx, steps=30):
    params = jnp.asarray(START)
    state, found = tx.init(params), [params]
    for _ in range(steps):
        updates, state = tx.update(jax.grad(bowl)(params), state, params)
        params = optax.apply_updates(params, updates)
        found.append(params)
    return jnp.stack(found)


def test_paths(ax):
    ways = {"SGD": trajectory(aj.sgd(0.04)), "Adam": trajectory(aj.adam(0.1))}
    plotting.paths(bowl, ways, box=BOX, minima=(0, 0), ax=ax)
    curves = [each for each in ax.lines if len(each.get_xdata()) == 31]
    for curve, (name, way) in zip(curves, ways.items(), strict=True):
        np.testing.assert_array_equal(curve.get_xydata(), way)
        end = line(ax, name)
        np.testing.assert_array_equal(end.get_xydata(), way[-1:])
        assert (end.get_color(), end._dash_pattern) == (curve.get_color(), curve._dash_pattern)
        assert end.get_marker() not in ("", "None")
    np.testing.assert_array_equal(line(ax, "start").get_xydata(), [START])
    np.testing.assert_array_equal(line(ax, "minimum").get_xydata(), [[0, 0]])
    assert legend(ax) == ["SGD", "Adam", "start", "minimum"]
    assert (ax.get_xlim(), ax.get_ylim()) == BOX


def test_contours(ax):
    """Evenly spaced in the logarithm of the height above the lowest, and where the function says."""
    plotting.paths(lambda params: bowl(params) - 5, {"SGD": [START]}, box=BOX, ax=ax)
    (contours,) = ax.collections
    heights = contours.levels + 5
    np.testing.assert_allclose(np.diff(np.log(heights)), np.log(heights[1] / heights[0]), rtol=0.01)
    assert heights[0] < 0.5
    np.testing.assert_allclose(heights[-1], 9 + 22.5, rtol=0.01)
    for level, path in zip(heights[2:-1:4], contours.get_paths()[2:-1:4], strict=True):
        x, y = path.vertices.T
        np.testing.assert_allclose(x**2 + 10 * y**2, level, rtol=0.01)


def test_paths_out_of_the_box(ax):
    ways = {
        "gone": [START, [1e30, 1e30]],
        "below": [START, [0.0, -1.6]],
        "back": [START, [9.0, 9.0], [0.0, 1.0]],
        "diverged": [START, [np.nan, np.nan]],
    }
    plotting.paths(bowl, ways, box=BOX, minima=[[0, 0], [1, 1]], ax=ax)
    notes = ["gone (ends outside)", "below (ends outside)", "back", "diverged (diverged)"]
    assert legend(ax) == [*notes, "start", "minima"]
    assert (ax.get_xlim(), ax.get_ylim()) == BOX


def test_room_for_all_points(ax):
    plotting.paths(bowl, {"SGD": [START, [np.nan, 99.0], [1.0, 0.0]]}, minima=[-1, -1], ax=ax)
    (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    assert -2 < left < -1
    assert 2 < right < 3
    assert -2 < bottom < -1
    assert 1 < top < 2


@pytest.mark.parametrize("function", [lambda p: 0 * p[0], lambda p: jnp.nan * p[0]])
def test_nothing_to_contour(function, ax):
    plotting.paths(function, {"SGD": [START]}, ax=ax)
    assert not ax.collections


def test_function_undefined_in_places(ax):
    plotting.paths(lambda params: jnp.log(params[0] + params[1]), {"SGD": [START]}, box=BOX, ax=ax)
    assert np.isfinite(ax.collections[0].levels).all()
