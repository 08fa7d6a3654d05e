"""Settings drawn at random."""

from __future__ import annotations

import re

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import adaptive_jax as aj


def test_distributions():
    drawn = aj.draw(
        4096,
        seed=1,
        rate=aj.LogUniform(1e-4, 1.0),
        decay=aj.Uniform(0.5, 0.9),
        kind=aj.Choice("a", "b", "c"),
    )
    assert stats.kstest(np.log10(drawn["rate"]), stats.uniform(-4, 4).cdf).pvalue > 0.01
    assert stats.kstest(drawn["decay"], stats.uniform(0.5, 0.4).cdf).pvalue > 0.01
    counts = [drawn["kind"].count(kind) for kind in "abc"]
    assert max(counts) - min(counts) <= 2  # a Sobol sequence is even
    again = aj.draw(4096, seed=1, rate=aj.LogUniform(1e-4, 1.0), decay=aj.Uniform(0.5, 0.9))
    other = aj.draw(4096, seed=2, rate=aj.LogUniform(1e-4, 1.0))
    assert not np.array_equal(again["rate"], other["rate"])
    random = aj.draw(4096, method="random", rate=aj.LogUniform(1e-4, 1.0))["rate"]
    assert stats.kstest(np.log10(random), stats.uniform(-4, 4).cdf).pvalue > 0.01
    assert aj.draw(5, b1=aj.Uniform(0, 1))["b1"].shape == (5,)


def test_what_a_complement_of_is_log_uniform():
    near_one = aj.LogUniform.complement(0.9, 0.9999)
    for method in ("sobol", "random"):
        b2 = aj.draw(4096, method=method, b2=near_one)["b2"]
        assert ((b2 >= 0.9) & (b2 <= 0.9999)).all()
        assert stats.kstest(np.log10(1 - b2), stats.uniform(-4, 3).cdf).pvalue > 0.01
    # A grid that is even in it, in the order of b.
    grid = near_one.at(np.linspace(0, 1, 4))
    np.testing.assert_allclose(grid, [0.9, 0.99, 0.999, 0.9999], rtol=1e-12)
    assert repr(near_one) == "LogUniform.complement(0.9, 0.9999)"
    assert near_one == aj.LogUniform.complement(0.9, 0.9999) != aj.LogUniform(0.9, 0.9999)


def test_a_complement_in_a_sweep_and_in_a_comparison():
    near_one = aj.LogUniform.complement(0.9, 0.9999)
    drawn = aj.draw(4, b2=near_one)
    result = aj.sweep(lambda b2: jnp.abs(b2 - 0.999), table=drawn)
    np.testing.assert_array_equal(result.settings["b2"], drawn["b2"])
    with pytest.raises(
        TypeError, match=r"b2=LogUniform.complement\(0.9, 0.9999\) is a distribution"
    ):
        aj.sweep(lambda b2: b2, b2=near_one)
    problem = aj.problems.quadratic(3)
    space = {"learning_rate": 0.1, "b2": near_one}
    compared = aj.compare({"Adam": (aj.adam, space)}, problem, budget=2, seeds=2, steps=3)
    assert "b2=0.9" in str(compared)


@pytest.mark.parametrize(
    ("low", "high", "message", "advice"),
    [
        (0.9, 1.0, "must be from 0 to below 1, and low no more than high", 0),
        (0.99, 0.9, "low no more than high", 0),
        (-0.1, 0.9, "must be from 0 to below 1", 0),
        (0.9, float("nan"), "must be from 0 to below 1", 0),
        (
            1e-4,
            0.1,
            r"1 - b between 0.0001 and 0.1, write LogUniform.complement\(0.9, 0.9999\); for",
            2,
        ),
        (0, 0.4, r"none of these is near 1: for b as small as this, Uniform\(0, 0.4\)", 1),
    ],
)
def test_a_complement_of_numbers_out_of_range(low, high, message, advice):
    with pytest.raises(ValueError, match=message) as error:
        aj.LogUniform.complement(low, high)
    advised = re.findall(r"(?<=write |this, )\w[\w.]*\([^)]*\)", str(error.value))
    assert len(advised) == advice
    for text in advised:
        assert aj.draw(2, b=eval(f"aj.{text}"))["b"].shape == (2,)


def test_a_complement_of_no_numbers():
    with pytest.raises(TypeError, match="low and high must be numbers"):
        aj.LogUniform.complement("0.9", 0.99)
