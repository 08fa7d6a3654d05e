"""Rprop: which numbers it takes."""

import pytest

import adaptive_jax as aj


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"eta_minus": 1.2}, r"eta_minus=1\.2 is out of range in Rprop: .* a number in \[0, 1\]"),
        ({"eta_plus": 0.5}, r"eta_plus=0\.5 is out of range in Rprop: .* a finite number >= 1"),
        ({"min_step_size": 1.0, "max_step_size": 0.1},
         r"max_step_size=0\.1 is out of range in Rprop: it must be at least min_step_size=1\.0"),
    ],
)  # fmt: skip
def test_numbers_out_of_range_are_refused_by_name(settings, message):
    for make in (aj.rprop, aj.scale_by_rprop):
        with pytest.raises(ValueError, match=message):
            make(0.1, **settings)
