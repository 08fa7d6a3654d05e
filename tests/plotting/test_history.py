"""What `aj.diagnose` measured, read back from the artists."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from plotting.drawn import RATE, edges, legend, line

import adaptive_jax as aj
from adaptive_jax import plotting
from adaptive_jax.transforms.measures import MEASURES

PARAMS = {
    "kernel": jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)), jnp.float32),
    "bias": jnp.ones(3),
}


@pytest.fixture(scope="module")
def history():
    tx = aj.diagnose(aj.adam(0.1), MEASURES, group_by=lambda path: path[2:-2])
    update = jax.jit(tx.update)
    state, found = tx.init(PARAMS), []
    for step in range(6):
        keys = jax.random.split(jax.random.key(step))
        gradients = {
            "kernel": jax.random.normal(keys[0], (4, 3)),
            "bias": jax.random.normal(keys[1], (3,)),
        }
        _, state = update(gradients, state, PARAMS)
        found.append(state.measured)
    return found


@pytest.mark.parametrize("measure", MEASURES)
def test_measurements(measure, history, ax):
    plotting.measurements(history, measure, ax=ax)
    assert ax.get_yscale() == ("linear" if measure in ("cosine", "moving", "sparsity") else "log")
    for group in ("bias", "kernel"):
        expected = np.stack([np.asarray(each[measure][group]) for each in history])
        curve = line(ax, group)
        if measure == RATE:
            band = ax.collections[("bias", "kernel").index(group)]
            np.testing.assert_allclose(edges(band, range(1, 7)), expected[:, [0, 2]].T)
            expected = expected[:, 1]
        elif ax.get_yscale() == "log":
            expected = np.where(expected == 0, np.nan, expected)
        np.testing.assert_array_equal(curve.get_xdata(), [1, 2, 3, 4, 5, 6])
        np.testing.assert_array_equal(curve.get_ydata(), expected)
    if measure != RATE:
        assert not ax.collections


def test_stacked_measurements(history, ax):
    stacked = jax.tree.map(lambda *each: jnp.stack(each), *history)
    for measure in ("cosine", RATE):
        plotting.measurements(
            stacked, measure, groups=["kernel"], steps=[0, 10, 20, 30, 40, 50], ax=ax
        )
        plotting.measurements(history, measure, groups=["kernel"], ax=ax)
        np.testing.assert_array_equal(ax.lines[-2].get_xdata(), [0, 10, 20, 30, 40, 50])
        np.testing.assert_array_equal(ax.lines[-2].get_ydata(), ax.lines[-1].get_ydata())
    assert legend(ax) == 4 * ["kernel"]


def test_quantiles_in_any_order(ax):
    quantiles = np.array([[0.5, 0.9, 0.1], [0.6, 0.8, 0.2]])
    plotting.measurements({RATE: {"w": quantiles}}, RATE, ax=ax)
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), [0.5, 0.6])
    np.testing.assert_array_equal(edges(ax.collections[0], [1, 2]), [[0.1, 0.2], [0.9, 0.8]])
    np.testing.assert_array_equal(quantiles[0], [0.5, 0.9, 0.1])  # the caller's array, as it was


def test_one_quantile(ax):
    plotting.measurements({RATE: {"w": [[0.5], [2.0]]}}, RATE, ax=ax)
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), [0.5, 2.0])
    assert not ax.collections


def test_measurements_of_nothing(ax):
    plotting.measurements({"update_norm": {"w": [0.0, 0.0]}}, "update_norm", ax=ax)
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), [0, 0])
    assert ax.get_yscale() == "linear"
