"""Comparisons: equally tuned, other seeds for the finalists, and what fails counted as never."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from matplotlib.figure import Figure

import adaptive_jax as aj
from adaptive_jax.training.search import comparison

CURVATURE = np.array([1.0, 4.0])


def make(name="bowl", target=None, steps=10, measure="value", **functions):
    def init(key):
        return jax.random.normal(key, (2,))

    def evaluate(w):
        return jnp.sum(jnp.asarray(CURVATURE, jnp.float32) * w**2) / 2

    def loss(w, key):
        return evaluate(w - 0.1 * jax.random.normal(key, (2,)))

    given = {"init": init, "loss": loss, "evaluate": evaluate} | functions
    return aj.problems.Problem(name, steps=steps, target=target, measure=measure, **given)


RATES = {"learning_rate": aj.LogUniform(1e-3, 0.4)}
PAIR = {"SGD": (aj.sgd, RATES), "Adam": (aj.adam, RATES)}


def by_hand(rate, seed, steps, evaluations):
    """Gradient descent in NumPy, on the same random numbers."""
    first, key = jax.random.split(jax.random.key(seed))
    w = np.asarray(jax.random.normal(first, (2,)), np.float64)
    values = [np.sum(CURVATURE * w**2) / 2]
    for count in range(steps):
        noise = np.asarray(jax.random.normal(jax.random.fold_in(key, count), (2,)))
        w = w - rate * CURVATURE * (w - 0.1 * noise)
        values.append(np.sum(CURVATURE * w**2) / 2)
    return np.array(values)[np.linspace(0, steps, evaluations + 1).round().astype(int)]


def test_finalists_are_the_best_settings_on_other_seeds():
    result = aj.compare(PAIR, make(), 8, seeds=3, tuning_seeds=2, evaluations=4)
    np.testing.assert_array_equal(result.steps["bowl"], [0, 2, 5, 8, 10])
    for finalist in result.finalists["bowl"].values():
        assert finalist.tuning.objective.shape == (8, 2)
        best = int(np.argmin(finalist.tuning.objective.mean(axis=1)))
        assert finalist.setting == {
            "learning_rate": finalist.tuning.settings["learning_rate"][best]
        }
    sgd = result.finalists["bowl"]["SGD"]
    expected = [by_hand(sgd.setting["learning_rate"], seed, 10, 4) for seed in (2, 3, 4)]
    np.testing.assert_allclose(sgd.curves, expected, rtol=1e-4, atol=1e-6)
    for i, rate in enumerate(sgd.tuning.settings["learning_rate"]):
        final = [by_hand(rate, seed, 10, 4)[-1] for seed in (0, 1)]
        np.testing.assert_allclose(sgd.tuning.objective[i], final, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(sgd.curves[:, 0], result.finalists["bowl"]["Adam"].curves[:, 0])


def test_steps_to_the_target():
    curves = np.array([[4.0, 2.0, 1.0, 3.0], [4.0, 3.0, np.nan, np.inf], [4.0, 3.0, 2.5, 2.0]])
    steps = comparison._steps_to(2.0, curves, np.array([0, 10, 20, 30]))
    np.testing.assert_array_equal(steps, [10, np.inf, 30])


def test_what_never_gets_there_counts_as_never():
    problems = [make("easy", target=1e3), make("hard", target=-1.0), make("free")]
    result = aj.compare(PAIR, problems, 2, seeds=7, evaluations=5)
    steps = {name: each["SGD"].steps_to_target for name, each in result.finalists.items()}
    np.testing.assert_array_equal(steps["easy"], np.zeros(7))
    np.testing.assert_array_equal(steps["hard"], np.full(7, np.inf))
    # Without a target: what the first optimizer reaches in half of its runs.
    assert np.isfinite(steps["free"]).sum() == 4
    final = result.finalists["free"]["SGD"].curves[:, -1]
    assert result.targets == {"easy": 1e3, "hard": -1.0, "free": pytest.approx(np.median(final))}
    lines = str(result).splitlines()
    assert len(lines) == 8
    assert "7 of 7" in lines[1]
    assert "0 of 7" in lines[3]
    assert lines[3].endswith("never")
    assert result._repr_html_().count("<tr>") == 7


def test_pictures_show_the_finalists():
    problems = [make("easy", target=0.5), make("hard", target=0.1, measure="distance (m)")]
    result = aj.compare(PAIR, problems, 2, seeds=3, evaluations=5)
    axes = [result.plot_curves(name, ax=Figure().subplots()) for name in ("easy", "hard")]
    assert [ax.get_ylabel() for ax in axes] == ["easy: value", "hard: distance (m)"]
    for name, ax in zip(("easy", "hard"), axes, strict=True):
        *curves, target = ax.lines
        assert [line.get_label() for line in curves] == list(PAIR)
        for line, finalist in zip(curves, result.finalists[name].values(), strict=True):
            np.testing.assert_array_equal(line.get_xdata(), result.steps[name])
            np.testing.assert_allclose(line.get_ydata(), np.median(finalist.curves, axis=0))
        np.testing.assert_array_equal(target.get_ydata(), result.targets[name])
    profile = result.plot_profile(ax=Figure().subplots())
    assert [line.get_label() for line in profile.lines] == list(PAIR)
    for name, line in zip(PAIR, profile.lines, strict=True):
        each = [finalists[name].steps_to_target for finalists in result.finalists.values()]
        assert line.get_ydata()[-1] == pytest.approx(np.mean(np.isfinite(each)))
    with pytest.raises(ValueError, match=r"problem='esy' is none of \['easy', 'hard'\]"):
        result.plot_curves("esy")


def test_an_optimizer_that_always_diverges_is_in_the_table():
    far = {"learning_rate": aj.LogUniform(1e30, 1e35)}
    result = aj.compare(
        {"SGD": (aj.sgd, RATES), "too fast": (aj.sgd, far)}, make(target=0.1), 4, seeds=3
    )
    lost = result.finalists["bowl"]["too fast"]
    assert lost.setting is None
    assert np.all(np.isinf(lost.steps_to_target))
    assert "every one diverged" in str(result)
    assert "3 of 3 diverged" in str(result)


def test_without_a_target_it_is_what_the_first_that_does_not_diverge_reaches():
    wild = {"wild": (aj.sgd, {"learning_rate": 1e30})}
    result = aj.compare(wild | PAIR, make(), 2, seeds=3, steps=100)
    sgd = result.finalists["bowl"]["SGD"]
    assert result.targets["bowl"] == pytest.approx(np.median(sgd.curves[:, -1]))
    nobody = aj.compare(wild, make(), 2, seeds=3, steps=100)
    assert np.all(nobody.finalists["bowl"]["wild"].steps_to_target == np.inf)


def test_complex_parameters_descend():
    target = jnp.array([1 + 2j, 3 - 1j])

    def evaluate(z):
        return jnp.sum(jnp.square(jnp.abs(z - target)))

    problem = make(
        init=lambda key: jnp.zeros(2, jnp.complex64),
        loss=lambda z, key: evaluate(z),
        evaluate=evaluate,
        steps=100,
    )
    result = aj.compare(
        {"SGD": (aj.sgd, {"learning_rate": 0.1})}, problem, budget=1, seeds=2, tuning_seeds=1
    )
    assert np.all(result.finalists["bowl"]["SGD"].curves[:, -1] < 1e-10)


def test_settings_that_are_fixed_and_optimizers_of_optax():
    import optax

    space = {"learning_rate": 0.1, "momentum": 0.5}
    result = aj.compare(
        {"ours": (aj.sgd, space), "optax": (optax.sgd, space)}, make(), 4, seeds=2, evaluations=10
    )
    ours, theirs = result.finalists["bowl"].values()
    assert ours.tuning.objective.shape == (1, 3)
    assert ours.setting == space
    np.testing.assert_allclose(ours.curves, theirs.curves, rtol=1e-5)


@pytest.mark.parametrize(("count", "low"), [(5, None), (6, 0), (10, 1), (20, 5), (100, 39)])
def test_order_statistics_around_a_median(count, low):
    """Hahn & Meeker, Statistical Intervals (1991), table A.15a."""
    assert comparison._order_statistic(count) == low


def test_intervals():
    # The t quantile for 9 degrees of freedom is 2.262157.
    values = np.arange(10.0)
    half = 2.262157 * np.std(values, ddof=1) / np.sqrt(10)
    assert comparison._mean_with_interval(values) == f"4.5 ± {half:.2g}"
    assert comparison._mean_with_interval(np.array([1.0, np.nan])) == "1 of 2 diverged"
    steps = np.array([10.0, 20, 30, 40, 50, 60, 70, 80, np.inf, np.inf])
    assert comparison._median_with_interval(steps) == "55 (20 to never)"
    assert comparison._median_with_interval(np.full(10, np.inf)) == "never"


BAD = {
    "no optimizers": (lambda: aj.compare({}, make()), TypeError, "optimizers must be a dict"),
    "no search space": (
        lambda: aj.compare({"Adam": aj.adam}, make()),
        TypeError,
        r"optimizers\['Adam'\] must be \(function, search space\)",
    ),
    "a typo": (
        lambda: aj.compare({"Adam": (aj.adam, {"lr": aj.LogUniform(1e-3, 1)})}, make()),
        ValueError,
        "the search space of 'Adam' does not fit its function, which takes learning_rate, b1.*'lr'",
    ),
    "a setting that is refused": (
        lambda: aj.compare({"Adam": (aj.adam, {**RATES, "b1": aj.Uniform(1.0, 1.5)})}, make()),
        ValueError,
        r"'Adam' cannot be made with learning_rate=.*, b1=1\..*, of its search space: b1=1",
    ),
    "a list of values": (
        lambda: aj.compare({"SGD": (aj.sgd, {"learning_rate": [0.1, 0.2]})}, make()),
        ValueError,
        r"choose between them, aj.Choice\(0.1, 0.2\)",
    ),
    "no optimizer": (
        lambda: aj.compare({"none": (lambda learning_rate: None, RATES)}, make()),
        TypeError,
        "the function of 'none' must make an optimizer, with init and update, and made None",
    ),
    "no problem": (lambda: aj.compare(PAIR, "digits"), TypeError, "'digits' is no problem"),
    "a problem that is not made": (
        lambda: aj.compare(PAIR, aj.problems.booth),
        TypeError,
        "booth.* is no problem: give",
    ),
    "a loss without a key": (
        lambda: aj.compare(PAIR, make(loss=lambda w: jnp.sum(w**2))),
        ValueError,
        r"loss\(params, key\) of the problem 'bowl' fails: TypeError",
    ),
    "a loss per example": (
        lambda: aj.compare(PAIR, make(loss=lambda w, key: w**2)),
        ValueError,
        r"loss\(params, key\) of the problem 'bowl' must give a number.* gives float32\[2\]",
    ),
    "a target per problem": (
        lambda: aj.compare(PAIR, make(), target={"bowl": 0.1}),
        ValueError,
        r"target={'bowl': 0.1} must be a number or None.*dataclasses.replace\(problem, target=0.1\)",
    ),
    "a target that is no number": (
        lambda: make(target="0.1"),
        ValueError,
        "target='0.1' of the problem 'bowl' must be",
    ),
    "problems of one name": (
        lambda: aj.compare(PAIR, [make(), make()]),
        ValueError,
        r"of different names, got \['bowl', 'bowl'\]",
    ),
    "no budget": (lambda: aj.compare(PAIR, make(), 0), ValueError, "budget=0 must be"),
    "half a seed": (lambda: aj.compare(PAIR, make(), seeds=0.5), ValueError, "seeds=0.5 must be"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_refused_before_anything_runs(what):
    call, kind, message = BAD[what]
    with pytest.raises(kind, match=message):
        call()


def test_a_search_space_may_reach_beyond_what_is_usual():
    """Warnings are errors here."""
    space = {"learning_rate": aj.LogUniform(2.0, 4.0)}
    aj.compare({"Adam": (aj.adam, space)}, aj.problems.quadratic(), budget=1, seeds=2)


@dataclass(frozen=True)
class PolyakStep(aj.Rule):
    """-(f - f*)/‖g‖² · g of one array."""

    lowest: aj.NonNegative = 0.0

    extra_args = {"value": "number"}

    def update(self, grad, slots, param, ctx):
        return -(ctx.extra["value"] - self.lowest) / jnp.sum(grad**2) * grad, {}


def test_rules_get_the_value_that_they_ask_for():
    """That of the step's own noise, as in a run by hand."""

    def polyak(lowest):
        return aj.transform(PolyakStep(lowest))

    space = {"lowest": aj.LogUniform(1e-4, 1e-2)}
    theirs = optax.polyak_sgd, {"max_learning_rate": 10.0, "f_min": aj.LogUniform(1e-4, 1e-2)}
    result = aj.compare(
        {"Polyak": (polyak, space), "optax": theirs}, make(), 2, seeds=2, tuning_seeds=2
    )
    finalist = result.finalists["bowl"]["Polyak"]
    lowest = finalist.setting["lowest"]
    for seed, curve in zip((2, 3), finalist.curves, strict=True):
        first, key = jax.random.split(jax.random.key(seed))
        w = np.asarray(jax.random.normal(first, (2,)), np.float64)
        for count in range(10):
            noise = np.asarray(jax.random.normal(jax.random.fold_in(key, count), (2,)))
            away = w - 0.1 * noise
            gradient = CURVATURE * away
            value = np.sum(CURVATURE * away**2) / 2
            w = w - (value - lowest) / np.sum(gradient**2) * gradient
        np.testing.assert_allclose(curve[-1], np.sum(CURVATURE * w**2) / 2, rtol=1e-3)
    assert np.isfinite(result.finalists["bowl"]["optax"].curves).all()


@dataclass(frozen=True)
class MeanOfTheRun(aj.Rule):
    """Goes the way that it is told to, and is judged at the mean of all parameters on it."""

    needs_params = True
    counts_steps = True
    slots = {"mean": aj.Slot("param")}

    def update(self, grad, slots, param, ctx):
        share = 1 / (ctx.step + 1).astype(param.dtype)
        return grad, {"mean": slots["mean"] + share * (param + grad - slots["mean"])}

    def evaluate(self, param, slots, ctx):
        return slots["mean"]


def test_optimizers_are_judged_at_their_parameters_to_evaluate_with():
    def averaged(learning_rate):
        return aj.transform(aj.LearningRate(learning_rate), MeanOfTheRun())

    result = aj.compare(
        {"averaged": (averaged, {"learning_rate": 0.1})}, make(), 1, seeds=1, tuning_seeds=1
    )
    first, key = jax.random.split(jax.random.key(1))
    w = np.asarray(jax.random.normal(first, (2,)), np.float64)
    way, expected = [w], []
    for count in range(10):
        expected.append(np.sum(CURVATURE * np.mean(way, 0) ** 2) / 2)
        noise = np.asarray(jax.random.normal(jax.random.fold_in(key, count), (2,)))
        w = w - 0.1 * CURVATURE * (w - 0.1 * noise)
        way.append(w)
    expected.append(np.sum(CURVATURE * np.mean(way, 0) ** 2) / 2)
    curve = result.finalists["bowl"]["averaged"].curves[0]
    np.testing.assert_allclose(curve, expected, rtol=1e-4)
