"""Strict settings for every test."""

import jax
import pytest


@pytest.fixture(autouse=True)
def strict_jax():
    """No silent promotion of dtypes or of ranks."""
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield
