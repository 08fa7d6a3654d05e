"""Checks of arguments that are numbers or options, for everything that is called."""

from __future__ import annotations

import math
import operator
from collections.abc import Collection
from typing import Any

import jax.numpy as jnp
import numpy as np


def one_of(argument: str, value: Any, allowed: Collection[Any]) -> None:
    """Raises a ValueError if an option has none of its values."""
    if value not in allowed:
        raise ValueError(
            f"{argument}={value!r} is not known: it must be one of "
            f"{', '.join(repr(option) for option in allowed)}."
        )


def floating(argument: str, dtype: Any) -> Any:
    """The dtype; a ValueError if it is not a real floating-point one."""
    try:
        if jnp.issubdtype(jnp.dtype(dtype), jnp.floating):
            return jnp.dtype(dtype)
    except TypeError:
        pass
    raise ValueError(f"{argument}={dtype!r} must be a floating-point dtype, such as jnp.bfloat16.")


def is_number(value: Any) -> bool:
    """Whether a value is a real number of Python or NumPy."""
    numeric = isinstance(value, (int, float, np.floating, np.integer))
    return numeric and not isinstance(value, bool)


def whole(argument: str, value: Any, least: int, where: str = "", hint: str = "") -> int:
    """The value as a Python int, be it Python's, NumPy's or JAX's; a ValueError for all others.

    So that what is static hashes, compares and prints as one kind of number. True is none.
    """
    try:
        is_bool = isinstance(value, (bool, np.bool_))  # NumPy 2.0 has an index for its own.
        found = least - 1 if is_bool else operator.index(value)
    except TypeError:
        found = least - 1
    if found < least:
        raise ValueError(
            f"{argument}={value!r}{where} must be a whole number, {least} or more.{hint}"
        )
    return found


def number(argument: str, value: Any, least: float) -> None:
    """Raises a ValueError unless the value is a finite number and large enough."""
    if not is_number(value):
        raise ValueError(f"{argument}={value!r} must be a number, {least:g} or more.")
    if not least <= value < math.inf:
        raise ValueError(f"{argument}={value!r} must be finite, and {least:g} or more.")


def target(value: Any, whose: str = "") -> None:
    """Raises a ValueError unless the value is None or a number."""
    if value is not None and (not is_number(value) or math.isnan(value)):
        raise ValueError(
            f"target={value!r}{whose} must be a number or None. Each problem can have its own: "
            "dataclasses.replace(problem, target=0.1)."
        )
