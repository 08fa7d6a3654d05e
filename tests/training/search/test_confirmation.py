"""The best setting run again with fresh seeds: what is selected is biased, what is confirmed is not."""

from __future__ import annotations

import math
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from swept_run import diverging

import adaptive_jax as aj


def noise(seed):
    return jax.random.normal(jax.random.key(seed))


def test_what_is_selected_is_biased_and_what_is_confirmed_is_not():
    """Of settings that are all alike: the truth is 0, and the best mean of 16 is 1.8 deviations off."""

    def alike(study, setting, seed):
        return noise(seed + 100 * setting + 10_000 * study)

    selected, confirmed, covered = [], [], 0
    for study in range(40):
        result = aj.sweep(alike, study=study, setting=np.arange(16), seeds=3, progress=False)
        best = result.best(confirm=10)
        assert best == result.best()
        np.testing.assert_array_equal(best.sweep.seeds, np.arange(3, 13))
        selected.append(best.selected * 3**0.5)
        confirmed.append(best.mean * 10**0.5)
        covered += best.interval[0] < 0 < best.interval[1]
    assert -2.1 < np.mean(selected) < -1.4
    assert abs(np.mean(confirmed)) < 3 / 40**0.5
    assert covered >= 33  # of 40, at 95 %: fewer in one of a thousand


def test_it_is_the_setting_and_what_came_of_it():
    def train(learning_rate, kind, seed):
        return jnp.square(learning_rate - 0.3) + float(kind == "b") + 0.1 * noise(seed)

    result = aj.sweep(train, learning_rate=[0.1, 0.3, 3.0], kind=["a", "b"], seeds=[5, 0])
    best = result.best(confirm=8)
    assert dict(best) == {"learning_rate": 0.3, "kind": "a"}
    assert aj.sgd(best["learning_rate"])
    np.testing.assert_array_equal(best.sweep.seeds, [1, 2, 3, 4, 6, 7, 8, 9])
    expected = [train(0.3, "a", seed) for seed in best.sweep.seeds]
    np.testing.assert_allclose(best.objective, expected, rtol=1e-5)
    np.testing.assert_allclose(best.mean, np.mean(expected), rtol=1e-5)
    np.testing.assert_allclose(best.median, np.median(expected), rtol=1e-5)
    np.testing.assert_allclose(best.selected, result.mean.min(), rtol=1e-6)
    shown = str(best)
    assert "selected      2" in shown
    assert "confirmed      8" in shown
    assert "the best of 6 means, which is on average better" in shown
    assert best._repr_html_().count("<tr>") == 3
    again = pickle.loads(pickle.dumps(best))
    assert again == best
    assert again.interval == best.interval


def test_fresh_seeds_that_diverge_are_counted_and_no_mean_is_made_up():
    result = aj.sweep(
        lambda rate, seed: jnp.where(seed > 3, jnp.inf, rate), rate=[1.0, 2.0], seeds=2
    )
    best = result.best(confirm=10)
    assert math.isnan(best.mean)
    assert math.isnan(best.interval[0])
    assert best.median == math.inf
    assert "8 of 10 diverged" in str(best)
    most = aj.sweep(
        lambda rate, seed: jnp.where(seed == 7, -jnp.inf, rate + 0.1 * seed.astype(float)),
        rate=[1.0, 2.0], seeds=2, maximize=True,
    ).best(confirm=11)  # fmt: skip
    assert dict(most) == {"rate": 2.0}
    ordered = np.sort(most.objective)
    np.testing.assert_allclose(most.median, ordered[5])
    np.testing.assert_allclose(most.median_interval, (ordered[1], ordered[9]))


def test_what_cannot_be_confirmed_says_what_to_do(tmp_path):
    result = aj.sweep(diverging, learning_rate=[0.25, 0.5], seeds=3)
    for wrong in (1, 0, 2.5, True, "10"):
        with pytest.raises(
            ValueError, match=r"confirm=.* must be a whole number, 2 or more\. A single"
        ):
            result.best(confirm=wrong)
    result.save(tmp_path / "sweep.npz")
    read = aj.Sweep.load(tmp_path / "sweep.npz")
    with pytest.raises(
        ValueError, match=r"read from a file.* seeds=\[3, 4, …\] and the setting alone"
    ):
        read.best(confirm=10)
    fresh = aj.sweep(diverging, **{name: [x] for name, x in read.best().items()}, seeds=[3, 4, 5])
    np.testing.assert_array_equal(fresh.objective[0], result.best(confirm=3).objective)
    without = aj.sweep(lambda rate: rate, rate=[1.0, 2.0])
    with pytest.raises(ValueError, match="its train takes no seed"):
        without.best(confirm=10)
    none = aj.sweep(diverging, learning_rate=[2.0, 3.0], seeds=3)
    with pytest.raises(ValueError, match="there is no best one"):
        none.best(confirm=10)


def test_seeds_that_make_no_difference_say_nothing_of_chance():
    def alike(learning_rate, seed):
        del seed
        return learning_rate * 1.0

    result = aj.sweep(alike, learning_rate=[0.1, 0.2, 0.3], seeds=3)
    shown = str(result)
    assert "The seeds make no difference: all runs of a setting gave the same number" in shown
    assert "more than chance" not in shown
    assert "on average better" not in shown
    assert len(result.ties()) == 0
    best = result.best(confirm=8)
    assert math.isnan(best.interval[0])
    assert best.median_interval == (-math.inf, math.inf)
    text = str(best)
    assert "All fresh seeds gave the same number: there is no interval" in text
    assert " to " not in text
    assert "Selected: the best of" not in text
    assert pickle.loads(pickle.dumps(best))._repr_html_() == best._repr_html_()

    def saturated(
        learning_rate, seed
    ):  # A setting that always gets all right, beside one that varies.
        return jnp.where(learning_rate > 0.5, 1.0, jnp.abs(noise(seed)) / 10)

    result = aj.sweep(saturated, learning_rate=[0.1, 1.0], seeds=3, maximize=True)
    assert "The seeds make no difference" not in str(result)
    best = result.best(confirm=8)
    assert math.isnan(best.interval[0])
    assert best.median_interval == (1, 1)
    assert "All fresh seeds gave the same number" in str(best)


def test_a_curve_is_said_to_be_judged_by_its_last_value():
    def curve(learning_rate, seed):
        return {"loss": learning_rate + jnp.arange(5.0) * noise(seed), "norm": noise(seed)}

    axes = {"learning_rate": [0.1, 0.2]}
    result = aj.sweep(curve, seeds=2, **axes)
    assert "; loss is the last of 5 values of a run." in str(result)
    assert "the last of" not in str(aj.sweep(curve, seeds=2, objective="norm", **axes))
    assert "the last of" not in str(
        aj.sweep(curve, seeds=2, objective=lambda found: jnp.min(found["loss"]), **axes)
    )
