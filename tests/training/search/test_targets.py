"""When a target is reached, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from adaptive_jax.training.search import targets

MARKS = np.array([0, 10, 20, 30])


def steps_to(target, *curves, hold=1):
    return targets.steps_to(target, np.array(curves), MARKS, hold).tolist()


def test_the_first_evaluation_that_is_low_enough():
    assert steps_to(2.0, [4.0, 2.0, 1.0, 3.0], [4.0, 3.0, 2.5, 2.0], [4.0, 3.0, 2.5, 2.1]) == [
        10,
        30,
        np.inf,
    ]
    assert steps_to(9.0, [4.0, 2.0, 1.0, 5.0]) == [
        0
    ]  # It is there from the start, and stays there.


def test_reached_and_then_lost_is_not_reached():
    assert steps_to(2.0, [4.0, 1.0, np.nan, np.inf], [4.0, 1.0, 0.5, np.nan]) == [np.inf, np.inf]
    assert steps_to(2.0, [4.0, 1.0, 1.0, 1e9]) == [np.inf]  # Worse than it began.
    assert steps_to(2.0, [4.0, 1.0, 1.0, 3.9]) == [10]  # Noise is no loss.


def test_evaluations_in_a_row():
    curve = [4.0, 1.0, 3.0, 1.0]
    assert steps_to(2.0, curve) == [10]
    assert steps_to(2.0, curve, [4.0, 3.0, 1.0, 1.0], [4.0, 3.0, 3.0, 1.0], hold=2) == [
        np.inf,
        20,
        np.inf,
    ]
    assert steps_to(2.0, [1.0] * 4, hold=4) == [0]


def test_axes_in_front_stay():
    curves = np.full((2, 3, 4), 1.0)
    assert targets.steps_to(2.0, curves, MARKS).shape == (2, 3)


def test_a_target_is_what_the_best_has_before_the_end():
    slow = np.array([[9.0, 8, 7, 6, 5]] * 3)
    quick = np.array([[9.0, 5, 3, 2, 1], [9, 6, 4, 3, 2], [9, 7, 5, 4, 3]])
    found = targets.made({"slow": slow, "quick": quick})
    assert found.value == 3  # The median of 2, 3, 4.
    assert found.source.startswith("quick after 75% of the steps")
    # No lower than where it ends, if noise would have it so.
    assert targets.made({"noisy": np.array([[9.0, 5, 3, 1, 2]])}).value == 2


@pytest.mark.parametrize("lost", [np.nan, np.inf])
def test_without_any_that_ends_there_is_none(lost):
    found = targets.made({"lost": np.array([[1.0, lost, lost]])})
    assert np.isneginf(found.value)
    assert str(found) == "none (no optimizer came to an end in the study for it)"
