"""What a function of the user's returned, in a few words for an error message."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._core import pytrees


def shown(value: Any) -> str:
    """What a value is, but for arrays: None, a tuple of two."""
    if value is None:
        return "None"
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"


_ARRAYS = (bool, int, float, np.generic, np.ndarray, jax.Array)


def outlined(value: Any) -> str:
    """What a value is, in a few words: the parts of a tuple, the dtype and shape of an array."""
    if isinstance(value, tuple):
        return f"({', '.join(map(outlined, value))})"
    return pytrees.describe(value) if isinstance(value, _ARRAYS) else shown(value)


def is_real_number(value: Any) -> bool:
    """Whether a value is one real number, of Python, NumPy or JAX: bool, integer or floating."""
    if not isinstance(value, _ARRAYS) or np.shape(value):
        return False
    dtype = jnp.result_type(value)
    return dtype == jnp.bool_ or any(jnp.issubdtype(dtype, x) for x in (jnp.integer, jnp.floating))
