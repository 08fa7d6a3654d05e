"""Optimizers beside one of them, from finalists made by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from adaptive_jax.training.search import differences
from adaptive_jax.training.search.finalists import Finalist

MARKS = {"bowl": np.arange(0, 101, 10)}


def finalist(steps, finals, begun=8.0):
    """Of so many studies x seeds."""
    finals = np.asarray(finals, float)
    curves = np.stack([np.full_like(finals, begun), finals], axis=-1)
    return Finalist(({},) * len(finals), (), (), np.zeros(0), curves, np.asarray(steps, float), 0)


def beside(own, other, tune_for="steps"):
    entered = {"bowl": {"base": other, "own": own}}
    return differences.differences(entered, MARKS, "base", tune_for)


ONES = np.ones((3, 3))


def test_a_study_counts_with_the_median_of_its_pairs():
    finals = np.arange(1, 10).reshape(3, 3)
    own = finalist([[20, 40, 60], [30, 30, 30], [80, 20, 40]], finals)
    other = finalist([[40, 40, 40], [30, 60, 30], [40, 40, 40]], finals)
    (row,) = beside(own, other).rows
    # The ratios: 1/2, 1, 3/2; 1, 1/2, 1; 2, 1/2, 1. Their medians are 1 in all.
    assert (row.wins, row.ties, row.losses) == (0, 3, 0)
    assert row.steps.middle == pytest.approx(1)
    assert row.p == 1
    assert row.p_holm == 1


def test_what_never_gets_there_counts_with_all_its_steps():
    never = np.full((3, 3), np.inf)
    found = beside(finalist(never, ONES), finalist(np.full((3, 3), 50), ONES))
    assert found.rows[0].steps.middle == pytest.approx(2)
    assert found.rows[0].losses == 3
    assert "A run that never reached the target counts with all its steps" in str(found)
    # A run that starts at its target: as if at the first evaluation.
    found = beside(finalist(np.zeros((3, 3)), ONES), finalist(np.full((3, 3), 50), ONES))
    assert found.rows[0].steps.middle == pytest.approx(1 / 5)


def test_final_values_that_are_not_all_positive_have_differences():
    own, other = np.array([[-1.0, -1], [-2, -2], [-1.5, 3]]), ONES[:, :2]
    steps = np.full((3, 2), 50)
    found = beside(finalist(steps, own), finalist(steps, other), "final")
    by_study = [-2, -3, -0.25]
    (row,) = found.rows
    assert not row.final.is_ratio
    test = stats.ttest_1samp(by_study, 0.0)
    assert row.p == pytest.approx(test.pvalue)
    np.testing.assert_allclose([row.final.low, row.final.high], test.confidence_interval())
    assert (row.wins, row.losses) == (3, 0)
    text = str(found)
    assert "final value (× ratio or + difference, 95 %)" in text
    assert "-1.8 (-5.3 to 1.8)" in text


def test_a_run_that_diverged_counts_with_what_it_began_with():
    steps = np.full((3, 1), 50)
    own = finalist(steps, [[np.nan], [2.0], [2.0]])
    found = beside(own, finalist(steps, ONES[:, :1]), "final")
    assert found.rows[0].final.middle == pytest.approx((8 * 2 * 2) ** (1 / 3))
    assert "A run that diverged counts with the value that it began with." in str(found)


def test_the_same_run_again_is_no_evidence():
    """Fixed settings and nothing drawn: three studies of one run each."""
    own, other = (finalist(np.full((3, 2), steps), np.ones((3, 2))) for steps in (50, 30))
    (row,) = beside(own, other).rows
    assert row.steps.middle == pytest.approx(5 / 3)
    assert np.isnan([row.p, row.p_holm]).all()
    assert "there is no luck, and no p" in str(beside(own, other))
    noisy = np.ones((3, 2)) + np.arange(6).reshape(3, 2)
    assert beside(finalist(np.full((3, 2), 50), noisy), other).rows[0].p < 0.05


@pytest.mark.parametrize(
    ("p", "said"), [(0.0499, "0.050"), (0.0501, "0.051"), (1e-5, "< 0.001"), (1.0, "1.000")]
)
def test_p_never_looks_smaller_than_it_is(p, said):
    assert differences.p_text(p) == said


def test_a_run_that_is_nowhere_finite_has_no_final_difference():
    """Where it began is no number to count it with; the steps are compared all the same."""
    lost = np.where(np.eye(3), np.inf, 1.0)
    own = finalist(np.full((3, 3), 20), lost, begun=np.nan)
    found = beside(own, finalist(np.full((3, 3), 40), ONES), "final")
    (row,) = found.rows
    assert np.isnan([row.final.middle, row.p, row.p_holm]).all()
    assert (row.wins, row.ties, row.losses) == (0, 0, 0)
    assert row.steps.middle == pytest.approx(1 / 2)
    assert "is not finite at its beginning nor at its end, final values cannot be comp" in str(
        found
    )
    assert found.table().rows[0][2] == "-"
