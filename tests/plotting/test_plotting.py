"""What the pictures show, read back from the artists and held against NumPy and counting by hand."""

from __future__ import annotations

import subprocess
import sys

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
import pytest
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb

import adaptive_jax as aj
from adaptive_jax import plotting
from adaptive_jax.transforms.measures import MEASURES

matplotlib.use("Agg")

rng = np.random.default_rng(0)
LOSSES = 10.0 ** -np.linspace(0, 2, 30) * rng.uniform(0.5, 2, (7, 30))


def bowl(params):
    return jnp.square(params[0]) + 10 * jnp.square(params[1])


@pytest.fixture
def ax():
    figure, ax = pyplot.subplots(figsize=(6, 4), layout="constrained")
    yield ax
    try:
        figure.canvas.draw()  # what cannot be drawn fails here
        assert len(pyplot.get_fignums()) == 1
    finally:
        pyplot.close("all")


def line(ax, start):
    """The line whose label starts so."""
    (found,) = [each for each in ax.lines if str(each.get_label()).startswith(start)]
    return found


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def edges(band, x):
    """The lower and upper edge of a band at each x."""
    places, heights = np.concatenate([path.vertices for path in band.get_paths()]).T
    at = [heights[places == each] for each in x]
    return np.array([each.min() for each in at]), np.array([each.max() for each in at])


DRAWINGS = {
    "loss_curves": lambda ax: plotting.loss_curves({"Adam": LOSSES, "SGD": LOSSES[0]}, ax=ax),
    "sensitivity": lambda ax: plotting.sensitivity([0.1, 1.0, 3.0], [1.0, 0.1, np.nan], ax=ax),
    "paths": lambda ax: plotting.paths(bowl, {"SGD": [[2.0, 1.0], [1.0, 0.1]]}, ax=ax),
    "measurements": lambda ax: plotting.measurements(
        {"cosine": {"w": [0.1, 1.0]}}, "cosine", ax=ax
    ),
    "performance_profile": lambda ax: plotting.performance_profile({"SGD": [3, np.inf]}, ax=ax),
}


@pytest.mark.parametrize("draw", DRAWINGS.values(), ids=DRAWINGS)
def test_axes(draw, ax):
    assert draw(ax) is ax
    assert ax.get_xlabel()
    assert ax.get_ylabel()
    assert legend(ax)
    assert not ax.get_title()


@pytest.mark.parametrize("draw", DRAWINGS.values(), ids=DRAWINGS)
def test_new_figure(draw):
    assert not pyplot.get_fignums()
    ax = draw(None)
    assert isinstance(ax, Axes)
    assert len(pyplot.get_fignums()) == 1
    ax.figure.canvas.draw()
    pyplot.close(ax.figure)


# ---------------------------------------------------------------------------------------------------
# Loss curves


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


# ---------------------------------------------------------------------------------------------------
# Sensitivity

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


# ---------------------------------------------------------------------------------------------------
# Paths

START = np.array([2.0, 1.0])
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


# ---------------------------------------------------------------------------------------------------
# Measurements

RATE = "effective_learning_rate"
PARAMS = {"kernel": jnp.asarray(rng.normal(size=(4, 3)), jnp.float32), "bias": jnp.ones(3)}


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
    assert ax.get_yscale() == ("linear" if measure in ("cosine", "moving") else "log")
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


# ---------------------------------------------------------------------------------------------------
# Performance profile


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


# ---------------------------------------------------------------------------------------------------
# Errors

MEASURED = {"cosine": {"w": [0.1, 0.2], "b": [0.1, 0.2]}}
MANY = {"cosine": {f"layer {i}": [0.1] for i in range(9)}}
ERRORS = [
    # The function, its arguments, and what the error says.
    ("loss_curves", ({},), {}, "curves is empty"),
    (
        "loss_curves",
        ({"Adam": np.ones((2, 3, 4))},),
        {},
        r"curves\['Adam'\] has shape \(2, 3, 4\).*\(seeds, points\) or \(points,\)",
    ),
    ("loss_curves", ({"Adam": np.ones((2, 0))},), {}, r"shape \(2, 0\).*not empty"),
    ("loss_curves", ({"Adam": [[1.0], [1.0, 2.0]]},), {}, r"curves\['Adam'\] is a list"),
    ("loss_curves", ({"Adam": LOSSES},), {"spread": "std"}, "spread='std'.*'deviation'"),
    (
        "loss_curves",
        ({"Adam": LOSSES},),
        {"steps": [1, 2]},
        r"steps has shape \(2,\), but curves\['Adam'\] has 30 points",
    ),
    (
        "sensitivity",
        ([1, 2, 3], LOSSES),
        {},
        r"losses has shape \(7, 30\), values has shape \(3,\).*\(3, seeds\)",
    ),
    ("sensitivity", ([1, np.nan], [1, 2]), {}, "values has nan"),
    ("paths", (bowl, {}), {}, "paths is empty"),
    ("paths", (bowl, {"SGD": np.ones((4, 3))}), {}, r"paths\['SGD'\] has shape \(4, 3\)"),
    ("paths", (bowl, {"SGD": [START]}), {"minima": [1, 2, 3]}, r"minima has shape \(1, 3\)"),
    ("paths", (bowl, {"SGD": [START]}), {"box": ((1, -1), (0, 1))}, "box=.*lowest θ₁"),
    ("paths", (bowl, {"SGD": [START]}), {"box": (-1, 1)}, r"box has shape \(2,\)"),
    ("paths", (bowl, {"SGD": [[np.nan, 0]]}), {}, "give the box"),
    ("paths", (lambda params: params, {"SGD": [START]}), {}, r"float32\[2\].*one number"),
    ("measurements", (MEASURED, "sine"), {}, "measure='sine'.*'cosine'"),
    ("measurements", ([MEASURED], "moving"), {}, "'moving' is not in history, which has 'cosine'"),
    ("measurements", (MEASURED, "cosine"), {"groups": ["v"]}, r"groups=\['v'\].*'w', 'b'"),
    ("measurements", (MEASURED, "cosine"), {"groups": "w"}, "groups='w' must be a list"),
    ("measurements", (MEASURED, "cosine"), {"groups": []}, r"groups=\[\]"),
    ("measurements", (MANY, "cosine"), {}, "9 groups.*8 or fewer.*'layer 0'.*'layer 8'"),
    ("measurements", ([], "cosine"), {}, "history is a list without entries"),
    ("measurements", ([1.0], "cosine"), {}, "history is a list of other things"),
    (
        "measurements",
        ({"cosine": {"w": 0.1}}, "cosine"),
        {},
        r"the cosine of 'w' in history has shape \(\).*\(steps,\)",
    ),
    (
        "measurements",
        ([MEASURED, {"cosine": {"v": 1.0}}], "cosine"),
        {},
        r"history\[1\] has the groups 'v'",
    ),
    ("measurements", ({RATE: {"w": np.ones((5, 2))}}, RATE), {}, r"\(5, 2\).*three quantiles"),
    ("performance_profile", ({},), {}, "steps_to_target is empty"),
    (
        "performance_profile",
        ({"SGD": [1, 2], "Adam": [1]},),
        {},
        r"steps_to_target\['Adam'\] has shape \(1,\), steps_to_target\['SGD'\] has shape \(2,\)",
    ),
    ("performance_profile", ({"SGD": [1, np.nan]},), {}, r"\['SGD'\] has nan in it.*inf where"),
    ("performance_profile", ({"SGD": [-1, 2]},), {}, "has -1 in it"),
]


@pytest.mark.parametrize(("name", "arguments", "options", "message"), ERRORS)
def test_errors_come_before_anything_is_drawn(name, arguments, options, message, ax):
    draw = getattr(plotting, name)
    before = len(ax.get_children())
    with pytest.raises(ValueError, match=message):
        draw(*arguments, **options, ax=ax)
    assert len(ax.get_children()) == before
    with pytest.raises(ValueError, match=message):
        draw(*arguments, **options)
    assert len(pyplot.get_fignums()) == 1  # that of the fixture


def test_an_array_without_a_name(ax):
    with pytest.raises(TypeError, match=r'curves is a ndarray: .*\{"Adam": losses\}'):
        plotting.loss_curves(LOSSES, ax=ax)


def test_many_axes_are_no_axes():
    figure, axes = pyplot.subplots(1, 2)
    pyplot.close(figure)
    with pytest.raises(TypeError, match=r"ax is a ndarray: it must be one matplotlib Axes"):
        plotting.loss_curves({"Adam": LOSSES}, ax=axes)


def test_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.axes", None)
    with pytest.raises(ImportError, match=r'pip install "adaptive_jax\[plot\]"'):
        plotting.loss_curves({"Adam": LOSSES})


def test_importing_the_library_needs_no_matplotlib():
    program = "import sys, adaptive_jax.plotting; sys.exit('matplotlib' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_problem_is_no_function(ax):
    with pytest.raises(TypeError, match=r"function is TestFunction.* give .* problem.evaluate"):
        plotting.paths(aj.problems.booth(), {"SGD": [START]}, ax=ax)
