"""Settings drawn at random."""

from __future__ import annotations

import numpy as np
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
