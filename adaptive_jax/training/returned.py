"""What a function of the user's returned, in a few words for an error message."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from .._core import pytrees


def shown(value: Any) -> str:
    """What a value is, but for arrays: None, a tuple of two."""
    if value is None:
        return "None"
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"


def outlined(value: Any) -> str:
    """What a value is, in a few words: the parts of a tuple, the dtype and shape of an array."""
    if isinstance(value, tuple):
        return f"({', '.join(map(outlined, value))})"
    is_number = isinstance(value, (bool, int, float, np.generic, np.ndarray, jax.Array))
    return pytrees.describe(value) if is_number else shown(value)
