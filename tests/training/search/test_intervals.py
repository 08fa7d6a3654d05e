"""Intervals over studies: against SciPy and published tables, and how often they hold the truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
from benchmarks import false_claims
from scipy import stats

from adaptive_jax.training.search import intervals


@pytest.mark.parametrize(("count", "low"), [(5, None), (6, 0), (10, 1), (20, 5), (100, 39)])
def test_order_statistics_around_a_median(count, low):
    """Hahn & Meeker, Statistical Intervals (1991), table A.15a."""
    assert intervals.order_statistic(count) == low


def test_six_studies_need_no_distribution():
    found = intervals.over_studies(np.array([3.0, 1, 2, 9, 5, np.inf]), logarithmic=True)
    assert (found.middle, found.low, found.high) == (4, 1, np.inf)


def test_few_studies_have_students_t():
    values = np.array([2.0, 3, 5, 4])
    plain = stats.ttest_1samp(values, 0.0).confidence_interval()
    found = intervals.over_studies(values, logarithmic=False)
    np.testing.assert_allclose([found.low, found.high], plain)
    assert found.middle == 3.5
    logarithms = stats.ttest_1samp(np.log(values), 0.0).confidence_interval()
    found = intervals.over_studies(values, logarithmic=True)
    np.testing.assert_allclose(np.log([found.low, found.high]), logarithms)
    assert found.middle == pytest.approx(stats.gmean(values))


def test_intervals_of_a_few_values_cover_what_they_claim():
    random = np.random.default_rng(0)
    normal = random.normal(size=(2000, 10))
    skewed = np.exp(1.5 * random.normal(size=(2000, 10)))
    bimodal = np.where(random.random((2000, 10)) < 0.6, 0.0, 5.0) + 0.1 * random.normal(
        size=(2000, 10)
    )
    low, high = np.array([intervals.mean_interval(each) for each in normal]).T
    assert 0.93 < np.mean((low < 0) & (high > 0)) < 0.97
    expected = stats.ttest_1samp(normal[0], 0).confidence_interval()
    np.testing.assert_allclose((low[0], high[0]), expected, rtol=1e-12)
    for values, median in ((normal, 0.0), (skewed, 1.0), (bimodal, np.median(bimodal))):
        low, high = np.array([intervals.median_interval(each) for each in values]).T
        assert 0.96 < np.mean((low <= median) & (high >= median)) < 0.99  # 97.9 % of ten
    assert intervals.median_interval(normal[0, :5]) == (-math.inf, math.inf)


def test_ends_beyond_all_floats():
    """Two studies, one of which is all but lost: e to the 878 is none."""
    found = intervals.over_studies(np.array([1e-30, 1e30]), logarithmic=True)
    assert (found.low, found.high) == (0, np.finfo(float).max)
    assert intervals.with_interval(found) == "1.0 (0 to 1.8e+308)"
    found = intervals.paired(np.array([-150.0, 0.0]), is_ratio=True)
    assert (found.middle, found.high) == (np.exp(-75), np.finfo(float).max)


def test_what_is_not_known_is_not_said():
    for values in ([4.0], [4.0, np.inf, 3.0]):
        assert not intervals.over_studies(np.array(values), logarithmic=True).is_known
    assert (
        intervals.over_studies(np.array([4.0, np.inf, np.inf]), logarithmic=True).middle == np.inf
    )
    assert np.isnan(intervals.paired(np.array([0.3]), is_ratio=True).p)
    # The same in each study: equal, or nothing that a spread could judge.
    assert intervals.paired(np.zeros(3), is_ratio=True).p == 1
    assert np.isnan(intervals.paired(np.full(3, 0.5), is_ratio=False).p)


def test_steps_are_known_to_an_evaluation():
    """That all studies have the same step does not mean that it is exact."""
    found = intervals.over_studies(np.full(4, 100.0), logarithmic=True, least=10.0)
    half = stats.t.ppf(0.975, 3) * 10 / np.sqrt(12) / 2
    np.testing.assert_allclose(found.high - 100, half, rtol=0.05)
    found = intervals.paired(np.full(4, 0.1), is_ratio=True, least=0.1)
    assert found.p == pytest.approx(2 * stats.t.sf(2, 3))


def test_holm():
    """By hand, 0.01, 0.03, 0.04 times 3, 2, 1, none below the one before; and what is unknown."""
    found = intervals.holm(np.array([0.04, np.nan, 0.01, 0.03]))
    np.testing.assert_allclose(found, [0.06, np.nan, 0.03, 0.06])
    np.testing.assert_array_equal(intervals.holm(np.array([0.9, 0.8])), [1, 1])
    assert intervals.holm(np.array([])).size == 0


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (0.12345, 0.13456, "0.123 to 0.135"),
        (0.99996, 1.00003, "0.999960 to 1.000030"),
        (1.23, 987.6, "1.2 to 990"),
        (-0.0123, 0.0456, "-0.013 to 0.046"),
        (1.23e-9, 4.56e-3, "1.2e-9 to 0.0046"),
        (123.4, np.inf, "120 to never"),
        (0.0, 0.012, "0 to 0.012"),
        (2.0, 2.0, "2 to 2"),
        (-1.23456, -1.23456, "-1.235 to -1.234"),
        (0.28437, 0.42111, "0.28 to 0.43"),
        (-0.0123, 0.0004, "-0.013 to 0.00040"),
    ],
)
def test_ends_are_rounded_outward(low, high, said):
    assert intervals.outward(low, high) == said


def test_no_interval_shrinks_as_text():
    rng = np.random.default_rng(0)
    for low, width in np.exp(rng.normal(scale=8, size=(300, 2))):
        for start in (low, -low):
            ends = [float(each) for each in intervals.outward(start, start + width).split(" to ")]
            assert ends[0] <= start
            assert ends[1] >= start + width
            # By less than a tenth of it, where float32 knows as much, or the second digit of the end.
            for end, exact in zip(ends, (start, start + width), strict=True):
                assert abs(end - exact) <= max(0.1 * width, 1e-7 * abs(exact)) * 1.001


def test_a_failure_that_is_seen():
    """Of n runs of which a share p fails, none does with (1 - p)^n: 5 %."""
    assert (1 - intervals.seen_failure(10)) ** 10 == pytest.approx(0.05)


@pytest.mark.parametrize("world", false_claims.WORLDS)
def test_intervals_hold_the_truth(world):
    """From six studies on in every world. With five where it is claimed: normal and lognormal ones."""
    five, ten = (false_claims.coverage(world, studies, 600) for studies in (5, 10))
    assert ten > 0.955
    assert 0.92 < five < 0.985


def test_an_optimizer_seldom_differs_from_itself():
    found = false_claims.false_claims(5, 800)
    assert 0.03 <= found["steps"] <= 0.07
    assert 0.03 <= found["final"] <= 0.07
    assert found["one study, steps"] > 0.12  # What one study alone would claim.


def test_a_difference_is_found_as_often_as_by_the_paired_test():
    found = false_claims.power(10, 1.5, 400)
    assert found["library"] > 0.95 * found["paired"] > 0.5
    assert found["no overlap"] < 0.6 * found["library"]
