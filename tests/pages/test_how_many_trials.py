"""The page about trials says what was measured, and its statistics are those of all draws."""

from __future__ import annotations

import itertools
import math

import jax
import numpy as np
import pytest
from benchmarks import how_many_trials as script

import adaptive_jax as aj


def test_the_page_is_made_of_what_was_measured():
    every = script.results()
    assert script.PAGE.exists() == script.PICTURE.exists() == bool(every)
    if every:
        again = "python tests/benchmarks/how_many_trials.py --page"
        assert script.PAGE.read_text(encoding="utf-8") == script.page(every), again


def test_everything_on_the_page_ran_with_the_same_budget_and_the_same_seeds():
    known = {problem.name: problem.steps for problem in script.problems()}
    for title, of in script.results().items():
        assert of["steps"] == known[title]
        assert np.shape(of["first"]) == (len(script.SEEDS),)
        assert len(of["studies"]) == script.STUDIES
        for each in of["studies"]:
            assert np.shape(each["finals"]) == (max(script.TRIALS), len(script.SEEDS))
        assert {len(finals) for finals in of["free"].values()} == {len(script.SEEDS)}


def problem_of(trials, seeds, studies=2):
    """Numbers such as are measured, one run of them diverged."""
    random = np.random.default_rng(0)
    finals = random.uniform(size=(studies, trials, seeds))
    finals[0, 1, 0] = np.nan
    return {
        "first": [0.9] * seeds,
        "studies": [
            {"chosen_by": random.permutation(trials).tolist(), "finals": each.tolist()}
            for each in finals
        ],
        "free": {},
    }


def best_of(of, n):
    """What the best of n reaches, for all ways to draw them one after the other."""
    values = []
    for each in of["studies"]:
        for drawn in itertools.combinations(range(len(each["finals"])), n):
            best = min(drawn, key=lambda i: each["chosen_by"][i])
            values += [0.9 if math.isnan(x) else min(x, 0.9) for x in each["finals"][best]]
    return np.array(values)


@pytest.mark.parametrize("n", [1, 2, 5, 7])
def test_what_the_best_of_n_reaches_is_that_of_all_ways_to_draw_n(n):
    of = problem_of(trials=7, seeds=3)
    np.testing.assert_allclose(script.expected(of)[:, n - 1].mean(), best_of(of, n).mean())
    middle = np.sort(best_of(of, n))[(len(best_of(of, n)) - 1) // 2]
    assert script.median(of)[n - 1] == middle


def test_worth_is_where_the_curve_is_as_low():
    curve = 1 / np.arange(1, 65)
    assert script.worth(1 / 10, curve) == 10
    np.testing.assert_allclose(script.worth(3.0, np.array([4.0, 2.0])), 2**0.5)
    assert script.worth(1.0, curve) == 1
    assert script.worth(1.1, curve) == 0
    assert script.worth(1 / 65, curve) == math.inf
    assert [script.trials(x) for x in (0.0, 1.0, 10.0, math.inf)] == ["<1", "1.0", "10", ">64"]


def test_what_ends_where_the_best_of_four_does_is_worth_four_trials():
    of = problem_of(trials=64, seeds=10, studies=4)
    for each in of["studies"]:
        values = (1 + np.array(each["chosen_by"])) / 70
        each["finals"] = (values[:, None] + np.zeros(10)).tolist()
    four = script.expected(of)[:, 3].mean()
    of["free"] = {
        "as the best of four": [four] * 10,
        "as none": [0.0] * 10,
        "lost": [math.nan] * 10,
    }
    found = script.worths(of)
    np.testing.assert_allclose(found["as the best of four"].mean, 4)
    np.testing.assert_allclose(found["as the best of four"].low, 4)
    assert found["as none"].low == math.inf
    assert found["lost"].high == 0


def test_a_run_is_that_of_a_loop():
    problem = aj.problems.quadratic(dimension=3, condition=10.0)
    found = script.trained(problem, lambda: aj.sgd(0.5), [7, 8])
    for seed, value in zip([7, 8], found[0], strict=True):
        params = problem.init(jax.random.split(jax.random.key(seed))[0])
        descend = jax.jit(lambda x: x - 0.5 * jax.grad(problem.loss)(x, jax.random.key(0)))
        for _ in range(problem.steps):
            params = descend(params)
        np.testing.assert_allclose(value, problem.evaluate(params), rtol=1e-4, atol=1e-12)


@pytest.mark.slow
def test_a_run_goes_on_where_it_was_stopped(tmp_path):
    problem = aj.problems.Problem(
        "distance",
        lambda key: jax.random.normal(key, (2,)),
        lambda params, key: (params**2).sum(),
        lambda params: (params**2).sum(),
        steps=3,
    )
    path = tmp_path / "results.json"
    script.run([problem], ["AdamW at 0.001"], 1, [5, 6], path)
    before = script.results(path)["distance"]
    script.run([problem], ["AdamW at 0.001", "SPS"], 2, [5, 6], path)
    after = script.results(path)["distance"]
    assert after["studies"][:1] == before["studies"]
    assert after["studies"][1]["learning_rates"] != before["studies"][0]["learning_rates"]
    assert after["free"]["AdamW at 0.001"] == before["free"]["AdamW at 0.001"]
    assert list(after["free"]) == ["AdamW at 0.001", "SPS"]
    written = path.read_bytes()
    script.run([problem], ["AdamW at 0.001", "SPS"], 2, [5, 6], path)
    assert path.read_bytes() == written
    with pytest.raises(SystemExit, match="with 3 steps and 2 seeds, and it is 3 and 3 now"):
        script.run([problem], [], 2, [5, 6, 7], path)
