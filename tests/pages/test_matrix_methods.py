"""The page about matrix methods says what was measured, and what was compiled needs no host."""

from __future__ import annotations

import numpy as np
import pytest
from benchmarks import compare_matrix_methods as script


def recorded():
    return script.results(), *script.figures()


def test_the_page_is_made_of_what_was_measured():
    assert script.PAGE.read_text() == script.page(*recorded()), (
        "python tests/benchmarks/compare_matrix_methods.py --page"
    )
    assert script.PICTURE.exists()


def test_each_method_had_the_same_budget():
    for of in script.results().values():
        for found in of["methods"].values():
            assert np.shape(found["curves"]) == (script.SEEDS, script.EVALUATIONS + 1)
            assert 1e-4 < found["learning_rate"] < 1


def test_all_methods_of_a_problem_start_alike():
    for of in script.results().values():
        starts = [np.array(found["curves"])[:, 0] for found in of["methods"].values()]
        np.testing.assert_allclose(starts, np.broadcast_to(starts[0], np.shape(starts)), rtol=1e-5)


def test_what_is_compiled_for_accelerators_stays_there_in_float32():
    figures = recorded()[1]["figures"]
    assert {"muon", "shampoo", "soap", "psgd_kron"} <= {each["optimizer"] for each in figures}
    assert ("muon", "tpu:v5e:2x2") in {(each["optimizer"], each["target"]) for each in figures}
    assert not any(each["float64"] or each["host_calls"] or each["collectives"] for each in figures)


def test_a_refresh_is_seen_in_the_mean_and_the_maximum():
    methods = recorded()[2]["methods"]
    for name in ("soap", "shampoo"):
        of_all, spread = (methods[title]["processor"] for title in (name, f"{name}, spread"))
        assert of_all["max"] > of_all["mean"] > of_all["median"]
        assert spread["max"] / spread["mean"] < of_all["max"] / of_all["mean"]
    assert methods["soap"]["temporaries"] <= 35e6


def test_muon_needs_less_memory_than_optaxs():
    assert recorded()[3]["temporaries"]["ratio"] <= 0.3


@pytest.mark.parametrize(
    ("values", "said"),
    [((0.012, 0.003), "worse"), ((-0.012, 0.003), "better"), ((0.002, 0.003), "within noise")],
)
def test_what_is_within_noise_is_said_so(values, said):
    assert script.verdict(*values) == said


def test_differences_are_taken_seed_by_seed():
    seeds = np.arange(10.0)
    found, other = ({"curves": [[9.0, x] for x in values]} for values in (seeds + 1, seeds))
    assert script.difference(found, other) == (1.0, 0.0)
    np.testing.assert_allclose(script.interval(seeds), (4.5, 2.1659), rtol=1e-4)
    np.testing.assert_array_equal(script.steps_to(0.5, other, 100)[:2], [2.0, np.inf])
