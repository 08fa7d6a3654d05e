"""Every row of the table of departures: what other implementations compute, and what ours do."""

from __future__ import annotations

import jax
import pytest

import adaptive_jax as aj
from tests.departures import ROWS


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * row.slow) for name, row in ROWS.items()],
)
def test_departure(name):
    row = ROWS[name]
    if not row.is_installed:
        pytest.skip(f"{row.imports} is not installed")
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        row.shows()


def test_rows_are_of_algorithms_that_are_here():
    assert ROWS
    assert {row.algorithm for row in ROWS.values()} <= {*vars(aj)}
    for row in ROWS.values():
        assert row.departs, row
        assert "\n" not in row.departs, row
        assert not row.departs.endswith("."), "a cell of a table, and no sentence"
