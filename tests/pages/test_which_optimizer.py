"""The page on which optimizer to take says what was measured, and its figures are what it calls them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from benchmarks import leaderboard as script

pytest.importorskip("sklearn")


def run(finals, tried=((0.3, 0.1),), rates=((1e-3, 1e-2),)):
    """A run of some studies."""
    return {
        "finals": finals,
        "steps": [[10.0] * len(each) for each in finals],
        "tried": [{"rates": list(x), "finals": list(y)} for x, y in zip(rates, tried, strict=True)],
    }


def test_the_page_is_made_of_what_was_measured():
    every = script.results()
    assert script.PAGE.exists() == script.PICTURE.exists() == bool(every)
    if every:
        again = "python tests/benchmarks/leaderboard.py --page"
        assert script.PAGE.read_text(encoding="utf-8") == script.page(every), again
        assert every["settings"] == script.FULL
        for each in every["problems"].values():
            for found in each["runs"].values():
                shape = script.FULL["studies"], script.FULL["seeds"]
                assert np.shape(found["finals"]) == np.shape(found["steps"]) == shape


def test_ranks_are_shared_and_what_diverged_is_last():
    runs = {
        "a": run([[0.2, 0.2, 0.2], [0.1, 0.3, 9.0]]),
        "b": run([[0.2, 0.2, 0.2], [0.2, 0.2, 0.2]]),
        "c": run([["nan", "inf", 0.1], [0.1, 0.1, 0.1]]),
    }
    found = script.ranks({"runs": runs}, ["a", "b", "c"])
    np.testing.assert_array_equal(found, [[1.5, 3], [1.5, 2], [3, 1]])
    standing = script.standing({"problems": {"p": {"runs": runs}}}, ["a", "b", "c"], ["p"])
    assert list(standing) == ["b", "c", "a"]
    assert standing["b"] == pytest.approx(
        (1.75, 12.7062 * math.sqrt(0.125) / math.sqrt(2)), rel=1e-4
    )


def test_what_tuning_is_worth_and_how_wide_the_range_is():
    tried = (0.4, 0.2, 0.3, "inf"), (0.1, 0.2, 0.05, 0.3)
    found = run([[0.1]], tried, rates=((1,) * 4,) * 2)
    np.testing.assert_allclose(script.worth_of_tuning(found), [0.25, 0.15, 0.125, 0.125])
    assert script.decades(found, 0.2) == script.DECADES * 4 / 8
    assert script.decades(run([[0.1]], rates=((),)), 0.2) is None


def test_rates_are_counted_where_any_gets_to_the_target():
    tried = ((0.3, 0.1),)
    near, far = run([[0.1]], tried), run([[0.1]], tried) | {"steps": [["inf"]]}
    problems = {
        name: {"runs": {"sgd": found}, "target": target}
        for name, found, target in (("near", near, 0.2), ("far", far, 0.01))
    }
    row = script.table({"problems": problems}, ["sgd"], ["near", "far"])[-1]
    assert row == f"| `sgd` | 1.0 | 0.1 (10) | 0.1 (–) | {script.DECADES / 2} | 3.8e-06 |"


def test_every_optimizer_is_run_or_left_out_with_a_reason():
    every = list(script.names())
    assert set(script.ASKED_FOR) <= set(every)
    assert not set(every) & set(script.LEFT_OUT)
    for name in every:
        factory, space = script.entry(name, 10)
        assert space.keys() <= {"learning_rate"}
        assert factory(**dict.fromkeys(space, 0.1)).init
    pairs = list(script.pieces())
    assert len(pairs) == len(set(pairs))
    assert {name for _, name in pairs} == set(every)
