"""What a sweep returns."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure
from scipy import stats
from swept_run import diverging

import adaptive_jax as aj


def test_what_diverges_is_kept_and_is_never_the_best():
    result = aj.sweep(diverging, learning_rate=[0.25, 0.5, 2.0], seeds=3)
    np.testing.assert_array_equal(result.diverged, [0, 0, 2])
    np.testing.assert_allclose(result.mean[:2], [0.35, 0.6], rtol=1e-6)
    np.testing.assert_allclose(result.deviation[:2], [0.1, 0.1], rtol=1e-5)
    assert np.isnan(result.mean[2])
    np.testing.assert_array_equal(result.ranking(), [0, 1, 2])
    assert result.best() == {"learning_rate": 0.25}
    most = aj.sweep(diverging, learning_rate=[0.25, 0.5, 2.0], seeds=3, maximize=True)
    assert most.best() == {"learning_rate": 0.5}
    shown = str(result.table())
    assert "2 of 3 diverged" in shown
    assert "0.350 ± 0.100" in shown
    assert "1 setting with a seed that diverged" in shown
    assert result._repr_html_().count("<tr>") == 4
    every = aj.sweep(diverging, learning_rate=[2.0, 3.0], seeds=3)
    with pytest.raises(ValueError, match="the 2 settings has a seed that diverged"):
        every.best()


def test_the_picture_has_a_line_for_each_value_of_the_other_axis():
    def run(learning_rate, width, seed):
        best = 0.1 * width
        return (jnp.log10(learning_rate / best)) ** 2 + 0.01 * width + 0.001 * seed.astype(float)

    rates = np.array([0.01, 0.1, 0.3, 1.0])
    result = aj.sweep(run, learning_rate=rates, width=[1.0, 3.0], seeds=3)
    ax = result.plot(ax=Figure().subplots())
    stars = [line.get_xydata()[0] for line in ax.lines if line.get_marker() == "*"]
    # The median seed is the second one.
    np.testing.assert_allclose(stars, [(0.1, 0.011), (0.3, 0.031)], rtol=1e-5)
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["width=1 (best: 0.1)", "width=3 (best: 0.3)"]
    ax = result.plot("width", by="learning_rate", ax=Figure().subplots())
    assert len(ax.get_legend().get_texts()) == 4
    # Too many lines: the best of the widths for each rate.
    many = aj.sweep(run, learning_rate=rates, width=np.arange(1.0, 9.0), seeds=3)
    ax = many.plot(ax=Figure().subplots())
    expected = [
        min(np.log10(rate / (0.1 * width)) ** 2 + 0.01 * width + 0.001 for width in range(1, 9))
        for rate in rates
    ]
    np.testing.assert_allclose(ax.lines[0].get_ydata(), expected, rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="by='depth' is no other axis"):
        result.plot(by="depth")


def test_a_pandas_frame_has_a_row_per_run():
    pytest.importorskip("pandas")

    def run(learning_rate, seed, kind):
        return {
            "loss": learning_rate * (seed + 1).astype(float),
            "curve": jnp.ones(3),
            "other": seed,
        }

    result = aj.sweep(run, learning_rate=[0.5, 1.0], kind=["a", "b"], seeds=2)
    assert "loss, mean ± deviation" in str(result)
    assert result.plot(ax=Figure().subplots()).get_ylabel() == "loss"
    frame = result.to_pandas()
    assert list(frame.columns) == ["learning_rate", "kind", "seed", "objective", "loss", "other"]
    assert frame["kind"].tolist() == ["a", "a", "b", "b"] * 2
    np.testing.assert_allclose(frame["objective"], [0.5, 1, 0.5, 1, 1, 2, 1, 2])
    assert frame["other"].tolist() == [0, 1] * 4


def test_what_cannot_be_told_from_the_best_is_said():
    """By the differences of equal seeds: the intervals of all four overlap widely."""

    def run(rate, seed):
        luck = 10 * jax.random.normal(jax.random.key(seed))
        own = 0.1 * jax.random.normal(jax.random.key(seed + 100 * rate.astype(int)))
        return luck + own + jnp.where(rate > 2, 1.0, 0.0)

    result = aj.sweep(run, rate=[1.0, 2.0, 3.0, 4.0], seeds=6)
    best = int(result.ranking()[0])
    assert {best, *result.ties().tolist()} == {0, 1}
    for i in (2, 3):
        test = stats.ttest_rel(result.objective[i], result.objective[best])
        assert test.pvalue < 0.05
    shown = str(result)
    assert "1 other cannot be told from it (95 %, differences paired by seed)" in shown
    assert "is on average better than what comes of it again: best(confirm=10) runs it" in shown
    single = aj.sweep(run, rate=[1.0, 2.0, 3.0], seeds=1)
    assert single.ties().size == 0
    assert "told from it" not in str(single)
    lost = aj.sweep(diverging, learning_rate=[0.25, 0.3, 2.0, 3.0], seeds=3)
    assert lost.ties().size == 0
    assert "Each other one differs from it by more than chance" in str(lost)
    assert aj.sweep(diverging, learning_rate=[2.0, 3.0], seeds=3).ties().size == 0


def test_a_best_one_at_the_end_of_what_was_tried_is_said():
    result = aj.sweep(lambda rate, b1: rate + b1, rate=[0.1, 0.2, 0.3], b1=[0.5, 0.9])
    assert "Its rate, 0.1, is the smallest that was tried." in str(result)
    assert "b1," not in str(result)  # Of two values the best is always at an end.
    inside = aj.sweep(lambda rate: (rate - 0.2) ** 2, rate=[0.1, 0.2, 0.3])
    assert "that was tried" not in str(inside)
