"""Comparisons: equally tuned in each study, other seeds for finalists, what fails counted as never."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from matplotlib.figure import Figure
from scipy import stats

import adaptive_jax as aj

CURVATURE = np.array([1.0, 4.0])


def make(name="bowl", target=None, steps=10, measure="value", noise=0.0, **functions):
    def init(key):
        return jax.random.normal(key, (2,))

    def evaluate(w):
        return jnp.sum(jnp.asarray(CURVATURE, jnp.float32) * w**2) / 2

    def loss(w, key):
        # Random numbers are what takes long to compile.
        return evaluate(w - noise * jax.random.normal(key, (2,)) if noise else w)

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


def test_finalists_are_the_best_settings_of_each_study_on_other_seeds():
    result = aj.compare(
        PAIR,
        make(noise=0.1),
        8,
        studies=2,
        seeds=3,
        tuning_seeds=2,
        evaluations=4,
        tune_for="final",
    )
    np.testing.assert_array_equal(result.steps["bowl"], [0, 2, 5, 8, 10])
    for finalist in result.finalists["bowl"].values():
        assert finalist.curves.shape == (2, 3, 5)
        for tuning, setting in zip(finalist.tunings, finalist.settings, strict=True):
            assert tuning.objective.shape == (8, 2)
            best = int(np.argmin(np.median(tuning.objective, axis=1)))
            assert setting == {"learning_rate": tuning.settings["learning_rate"][best]}
    sgd, adam = result.finalists["bowl"].values()
    every = [sgd.seeds.ravel(), *(tuning.seeds for tuning in sgd.tunings)]
    assert len(np.unique(np.concatenate(every))) == 10  # None of them twice.
    for study in range(2):
        rate = sgd.settings[study]["learning_rate"]
        expected = [by_hand(rate, seed, 10, 4) for seed in sgd.seeds[study]]
        np.testing.assert_allclose(sgd.curves[study], expected, rtol=1e-4, atol=1e-6)
        tuning = sgd.tunings[study]
        for i in (0, 7):
            final = [
                by_hand(tuning.settings["learning_rate"][i], seed, 10, 4)[-1]
                for seed in tuning.seeds
            ]
            np.testing.assert_allclose(tuning.objective[i], final, rtol=1e-4, atol=1e-6)
    # Runs of one seed begin alike, whatever the optimizer.
    np.testing.assert_array_equal(sgd.curves[..., 0], adam.curves[..., 0])
    # Each study and each optimizer has draws of its own.
    drawn = [tuning.settings["learning_rate"] for each in (sgd, adam) for tuning in each.tunings]
    assert len(np.unique(np.concatenate(drawn))) == 32


def test_what_is_reported_is_of_data_that_chose_nothing():
    def test(w):
        return 100 + jnp.sum(w**2)

    options = {"studies": 1, "seeds": 2, "tuning_seeds": 1, "evaluations": 2}
    found = aj.compare({"SGD": (aj.sgd, RATES)}, make(test=test, target=1.0), 4, **options)
    finalist = found.finalists["bowl"]["SGD"]
    assert finalist.tunings[0].objective.max() < 100 < finalist.curves.min()
    assert np.isinf(finalist.steps_to_target).all()


def test_the_seed_is_all_that_it_hangs_on(compiled):
    """Neither the order of the optimizers nor that of their axes, nor how many studies follow.

    Another seed is other data of the same programs.
    """
    space = {"learning_rate": aj.LogUniform(1e-3, 0.4), "momentum": aj.Uniform(0.0, 0.9)}
    turned = dict(reversed(space.items()))
    entered = {"momentum": (aj.sgd, space), "SGD": (aj.sgd, RATES)}
    again = {"SGD": (aj.sgd, RATES), "momentum": (aj.sgd, turned)}
    options = {"budget": 3, "seeds": 2, "tuning_seeds": 1, "evaluations": 2}
    one = aj.compare(entered, make(target=0.1), studies=2, seed=7, **options)
    # Of each optimizer the tuning, and the runs of its finalists, for all studies together, but for what
    # another test has compiled.
    count = compiled.count("jit(_all_runs)")
    assert 1 <= count <= 4, compiled
    other = aj.compare(entered, make(target=0.1), studies=2, seed=8, **options)
    assert compiled.count("jit(_all_runs)") == count
    two = aj.compare(again, make(target=0.1), studies=3, seed=7, **options)
    for name in entered:
        first, same, different = (each.finalists["bowl"][name] for each in (one, two, other))
        assert first.settings == same.settings[:2]
        np.testing.assert_array_equal(first.curves, same.curves[:2])
        assert not set(first.seeds.ravel()) & set(different.seeds.ravel())
        assert first.settings != different.settings


def test_settings_are_chosen_by_what_is_judged():
    """Three rates: one never gets there, one is quick and ends high, one is slow and ends low."""

    def evaluate(w):
        return w[0]

    def moved(kind):
        # Where a run is, by its kind and step: below 1.5 from step 4, or from step 8 on.
        curves = jnp.array([[5.0] * 11, [5, 5, 5, 5, 1, 1, 1, 1, 1, 1, 1], [5] * 8 + [0.5] * 3])

        def update(updates, state, params=None, **extra):
            place = curves[jnp.asarray(kind, jnp.int32), state + 1]
            return jax.tree.map(lambda p: place - p, params), state + 1

        return optax.GradientTransformationExtraArgs(lambda params: jnp.int32(0), update)

    problem = make(
        init=lambda key: jnp.full(1, 5.0), loss=lambda w, key: jnp.sum(w), evaluate=evaluate
    )
    entered = {"moved": (moved, {"kind": aj.Choice(0, 1, 2)})}
    found = {
        tune_for: aj.compare(
            entered, problem, 8, studies=1, seeds=1, tune_for=tune_for, target=1.5, evaluations=10
        ).finalists["bowl"]["moved"]
        for tune_for in ("steps", "final")
    }
    assert [each.settings[0]["kind"] for each in found.values()] == [1, 2]
    assert [float(each.steps_to_target[0, 0]) for each in found.values()] == [4, 8]
    assert found["steps"].tried == 3


def test_what_never_gets_there_counts_as_never():
    problems = [make("easy", target=1e3), make("hard", target=-1.0), make("free")]
    result = aj.compare(PAIR, problems, 2, seeds=7, evaluations=5, studies=2)
    steps = {name: each["SGD"].steps_to_target for name, each in result.finalists.items()}
    np.testing.assert_array_equal(steps["easy"], np.zeros((2, 7)))
    np.testing.assert_array_equal(steps["hard"], np.full((2, 7), np.inf))
    assert {name: result.targets[name] for name in ("easy", "hard")} == {"easy": 1e3, "hard": -1.0}
    lines = str(result).splitlines()
    assert "14 of 14" in lines[1]
    assert "0 of 14" in lines[3]
    assert "never" in lines[3]
    assert "No run reached the target of hard: of steps nothing can be said" in str(result)
    assert result._repr_html_().count("<tr>") == 7
    # Nothing of the second problem can be compared by steps.
    hard = result.differences("SGD").rows[1]
    assert np.isnan([hard.p, hard.p_holm, hard.steps.middle]).all()
    assert "never, both" in str(result.differences("SGD"))


def test_a_target_that_nobody_gave_is_of_a_study_that_is_not_judged():
    options = {"budget": 2, "seeds": 2, "tuning_seeds": 3, "evaluations": 10, "studies": 2}
    result = aj.compare(PAIR, make(), **options, tune_for="final")
    assert "after 75% of the steps, in a study of its own" in result.sources["bowl"]
    assert f"Target {result.targets['bowl']:.4g} (" in str(result)
    # The same one again, from what it is made of: as given, nothing else changes.
    given = aj.compare(PAIR, make(), **options, tune_for="final", target=result.targets["bowl"])
    assert given.sources["bowl"] == "as given"
    for name in PAIR:
        one, two = (each.finalists["bowl"][name] for each in (result, given))
        np.testing.assert_array_equal(one.curves, two.curves)
        np.testing.assert_array_equal(one.steps_to_target, two.steps_to_target)


def test_pictures_show_the_finalists():
    problems = [make("easy", target=0.5), make("hard", target=0.1, measure="distance (m)")]
    result = aj.compare(PAIR, problems, 2, seeds=3, evaluations=5, studies=2)
    axes = [result.plot_curves(name, ax=Figure().subplots()) for name in ("easy", "hard")]
    assert [ax.get_ylabel() for ax in axes] == ["easy: value", "hard: distance (m)"]
    for name, ax in zip(("easy", "hard"), axes, strict=True):
        *curves, target = ax.lines
        assert [line.get_label() for line in curves] == list(PAIR)
        for line, finalist in zip(curves, result.finalists[name].values(), strict=True):
            np.testing.assert_array_equal(line.get_xdata(), result.steps[name])
            runs = finalist.curves.reshape(6, -1)
            np.testing.assert_allclose(line.get_ydata(), np.median(runs, axis=0))
        np.testing.assert_array_equal(target.get_ydata(), result.targets[name])
    tuning = result.plot_tuning("hard", ax=Figure().subplots())
    assert tuning.get_ylabel() == "hard: steps to the target, best so far"
    assert [len(line.get_xdata()) for line in tuning.lines] == [2, 2]
    profile = result.plot_profile(ax=Figure().subplots())
    assert [line.get_label() for line in profile.lines] == list(PAIR)
    for name, line in zip(PAIR, profile.lines, strict=True):
        each = [finalists[name].steps_to_target for finalists in result.finalists.values()]
        assert line.get_ydata()[-1] == pytest.approx(np.mean(np.isfinite(each)))
    with pytest.raises(ValueError, match=r"problem='esy' is none of \['easy', 'hard'\]"):
        result.plot_curves("esy")


def test_an_optimizer_that_always_diverges_is_in_the_table():
    far = {"learning_rate": aj.LogUniform(1e30, 1e35)}
    entered = {"SGD": (aj.sgd, RATES), "too fast": (aj.sgd, far)}
    result = aj.compare(entered, make(target=0.1), 4, seeds=3, studies=2)
    lost = result.finalists["bowl"]["too fast"]
    assert np.all(np.isinf(lost.steps_to_target))
    assert not np.isfinite(lost.curves[..., -1]).any()  # What is shown was run.
    text = str(result)
    assert "all 6 diverged" in text
    assert "too fast: every setting diverged with a tuning seed in 2 of 2 studies; run on" in text
    row = result.differences("SGD").rows[0]
    assert row.wins == 0
    assert row.losses > 0
    assert row.final.middle > 1
    assert "A run that diverged counts with the value that it began with" in str(
        result.differences("SGD")
    )
    nobody = aj.compare({"too fast": entered["too fast"]}, make(), 2, seeds=3, studies=2)
    assert np.all(nobody.finalists["bowl"]["too fast"].steps_to_target == np.inf)
    assert "Target none (no optimizer came to an end in the study for it)" in str(nobody)


def test_all_settings_with_a_diverged_seed_the_fewest_are_run_on():
    """A quarter of the runs blow up with one setting, three quarters with the other."""

    def evaluate(w):
        return jnp.abs(w[0])

    def init(key):
        return jax.random.uniform(key, (1,))

    def breaking(share):
        def update(updates, state, params=None, **extra):
            lost = params[0] < share
            return jnp.where(lost, jnp.nan, -0.1 * params), state

        return optax.GradientTransformationExtraArgs(lambda params: (), update)

    problem = make(init=init, loss=lambda w, key: jnp.sum(w), evaluate=evaluate, steps=1)
    entered = {"breaking": (breaking, {"share": aj.Choice(0.75, 0.25)})}
    result = aj.compare(entered, problem, 4, studies=1, seeds=20, tuning_seeds=20, target=1.0)
    finalist = result.finalists["bowl"]["breaking"]
    assert finalist.settings == ({"share": 0.25},)
    count = int(finalist.tunings[0].diverged[finalist.chosen[0]])
    assert 0 < count < 15
    assert f"run on are those with the fewest, {count} to {count} of 20" in str(result)


def test_one_study_concludes_nothing():
    result = aj.compare(PAIR, make(target=0.1), 2, studies=1, seeds=7, tuning_seeds=1)
    assert "which optimizer is better cannot be concluded. Give studies=5" in str(result)
    assert "95 %" not in str(result).splitlines()[0]
    beside = result.differences("SGD")
    assert np.isnan(beside.rows[0].p)
    assert not beside.rows[0].steps.is_known
    assert "One study cannot say whether another would come out so" in str(beside)
    assert not result.interval("bowl", "SGD").is_known


def test_what_was_tried_is_said():
    fixed = {"fixed": (aj.sgd, {"learning_rate": 1e-3})}
    narrow = {"narrow": (aj.sgd, {"learning_rate": aj.LogUniform(1e-4, 1e-3)})}
    result = aj.compare(PAIR | fixed | narrow, make(target=0.1), 8, studies=5, seeds=2)
    text = str(result)
    assert (
        "SGD 8 settings in 1 dimension, Adam 8 settings in 1 dimension, fixed 1 setting (fixed)"
        in text
    )
    assert "These budgets are not equal" in text
    assert "narrow: the best learning_rate is the largest tried in 5 of 5 studies" in text
    assert "fixed: the best" not in text


def test_seeds_that_are_one_run_count_once():
    start = {"init": lambda key: jnp.ones(2), "loss": lambda w, key: jnp.sum(w**2)}
    one = {"SGD": (aj.sgd, RATES)}
    result = aj.compare(one, make(target=0.1, **start), 2, studies=2, seeds=3, evaluations=5)
    assert "SGD: its seeds are the same run again, and count once in each study" in str(result)


def test_differences_are_paired():
    """Against SciPy's paired test, on the medians of the logarithms of the pairs."""
    entered = {
        "SGD": (aj.sgd, RATES),
        "momentum": (aj.sgd, {**RATES, "momentum": 0.9}),
        "sign": (aj.sign_sgd, RATES),
    }
    result = aj.compare(
        entered, make(target=0.1), 4, studies=4, seeds=5, evaluations=5, tune_for="final"
    )
    beside = result.differences("sign")
    assert [(row.problem, row.optimizer) for row in beside.rows] == [
        ("bowl", "SGD"),
        ("bowl", "momentum"),
    ]
    found = []
    for row in beside.rows:
        own, other = (
            result.finalists[row.problem][name].curves[..., -1].astype(np.float64)
            for name in (row.optimizer, "sign")
        )
        by_study = np.median(np.log(own / other), axis=1)
        test = stats.ttest_1samp(by_study, 0.0)
        found.append(test.pvalue)
        interval = np.exp(test.confidence_interval())
        np.testing.assert_allclose([row.final.low, row.final.high], interval, rtol=1e-6)
        np.testing.assert_allclose(row.final.middle, np.exp(by_study.mean()), rtol=1e-6)
        assert row.wins == np.sum(by_study < 0)
        assert row.wins + row.ties + row.losses == 4
    np.testing.assert_allclose([row.p for row in beside.rows], found, rtol=1e-6)
    # Holm by hand: the smaller times 2, the other no less than it.
    order, largest = np.argsort(found), 0.0
    for place, i in enumerate(order):
        largest = max(largest, min(1.0, found[i] * (2 - place)))
        assert beside.rows[i].p_holm == pytest.approx(largest)
    assert "p for all 2 differences together" in str(beside)
    assert "final value (ratio, 95 %)" in str(beside)
    assert "steps (ratio, 95 %, by-product)" in str(beside)
    assert beside._repr_html_().count("<tr>") == 3
    with pytest.raises(
        ValueError, match=r"baseline='adam' is none of \['SGD', 'momentum', 'sign'\]"
    ):
        result.differences("adam")
    alone = aj.compare({"SGD": PAIR["SGD"]}, make(target=0.1), 1, studies=1, seeds=1)
    with pytest.raises(ValueError, match="'SGD' is the only optimizer"):
        alone.differences("SGD")


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
        {"SGD": (aj.sgd, {"learning_rate": 0.1})}, problem, 1, seeds=2, tuning_seeds=1, studies=1
    )
    assert np.all(result.finalists["bowl"]["SGD"].curves[..., -1] < 1e-10)


def test_hyperparameters_may_be_called_like_options():
    def factory(count, method, batch_size, memory, static):
        return aj.sgd(count * method / (batch_size * memory) if static == "yes" else 0.0)

    space = {"count": aj.LogUniform(1e-3, 0.4), "method": aj.Choice(1.0, 0.5)}
    space |= {"batch_size": 2.0, "memory": 0.5, "static": "yes"}
    result = aj.compare({"own": (factory, space)}, make(target=0.1), 4, studies=2, seeds=2)
    setting = result.finalists["bowl"]["own"].settings[0]
    assert list(setting) == ["count", "method", "batch_size", "memory", "static"]
    assert (setting["batch_size"], setting["memory"], setting["static"]) == (2, 0.5, "yes")
    with pytest.raises(ValueError, match="'seed' in the search space of 'own' is what the runs"):
        aj.compare({"own": (lambda seed: aj.sgd(0.1), {"seed": aj.Choice(1, 2)})}, make(), 2)


def test_settings_that_are_fixed_and_optimizers_of_optax():
    import optax

    space = {"learning_rate": 0.1, "momentum": 0.5}
    result = aj.compare(
        {"ours": (aj.sgd, space), "optax": (optax.sgd, space)},
        make(),
        4,
        seeds=2,
        evaluations=10,
        studies=2,
    )
    ours, theirs = result.finalists["bowl"].values()
    assert [tuning.objective.shape for tuning in ours.tunings] == [(1, 3)] * 2
    assert ours.settings == (space, space)
    np.testing.assert_allclose(ours.curves, theirs.curves, rtol=1e-5)


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
    "no studies": (lambda: aj.compare(PAIR, make(), studies=0), ValueError, "studies=0 must be"),
    "a negative seed": (lambda: aj.compare(PAIR, make(), seed=-1), ValueError, "seed=-1 must be"),
    "tuned for nothing known": (
        lambda: aj.compare(PAIR, make(), tune_for="loss"),
        ValueError,
        "tune_for='loss' is not known: it must be one of 'steps', 'final'",
    ),
    "held for longer than the run": (
        lambda: aj.compare(PAIR, make(), evaluations=4, hold=6),
        ValueError,
        "hold=6 evaluations in a row, and 'bowl' is evaluated 5 times: give a smaller hold, or more",
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
    aj.compare({"Adam": (aj.adam, space)}, make(target=0.1), budget=1, seeds=2, studies=1)


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
        {"Polyak": (polyak, space), "optax": theirs},
        make(noise=0.1),
        2,
        seeds=2,
        tuning_seeds=2,
        studies=1,
    )
    finalist = result.finalists["bowl"]["Polyak"]
    lowest = finalist.settings[0]["lowest"]
    for seed, curve in zip(finalist.seeds[0], finalist.curves[0], strict=True):
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
        {"averaged": (averaged, {"learning_rate": 0.1})},
        make(noise=0.1),
        1,
        seeds=1,
        tuning_seeds=1,
        studies=1,
    )
    finalist = result.finalists["bowl"]["averaged"]
    first, key = jax.random.split(jax.random.key(finalist.seeds[0, 0]))
    w = np.asarray(jax.random.normal(first, (2,)), np.float64)
    way, expected = [w], []
    for count in range(10):
        expected.append(np.sum(CURVATURE * np.mean(way, 0) ** 2) / 2)
        noise = np.asarray(jax.random.normal(jax.random.fold_in(key, count), (2,)))
        w = w - 0.1 * CURVATURE * (w - 0.1 * noise)
        way.append(w)
    expected.append(np.sum(CURVATURE * np.mean(way, 0) ** 2) / 2)
    np.testing.assert_allclose(finalist.curves[0, 0], expected, rtol=1e-4)


def test_a_fixed_value_may_be_a_tuple():
    def adam(learning_rate, betas):
        return aj.adam(learning_rate, b1=betas[0], b2=betas[1])

    def finalist(factory, **fixed):
        space = {"Adam": (factory, {**RATES, **fixed})}
        result = aj.compare(space, make(), 2, seeds=1, tuning_seeds=1, studies=1)
        return result.finalists["bowl"]["Adam"]

    found = finalist(adam, betas=(0.8, 0.99))
    assert found.settings[0]["betas"] == (0.8, 0.99)
    np.testing.assert_allclose(found.curves, finalist(aj.adam, b1=0.8, b2=0.99).curves, rtol=1e-6)
