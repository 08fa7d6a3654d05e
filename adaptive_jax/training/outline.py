"""An optimizer apart from its numbers, which are sent to the device once."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import maths
from .._core.lifted import are_decays


class Outline:
    """An optimizer without its numbers. Compared by identity, which is quick: one of each is made."""

    def __init__(self, treedef: Any, is_float: tuple[bool, ...]) -> None:
        self._treedef, self._is_float = treedef, is_float
        self._is_decay = are_decays(treedef.unflatten(is_float))

    def numbers(self, leaves: Sequence[Any]) -> tuple[jax.Array, ...]:
        """Its numbers as arrays: those of Python in one, with 1 minus each, which is exact so."""
        pairs = list(zip(leaves, self._is_float, strict=True))
        floats = [leaf for leaf, is_float in pairs if is_float]
        dtype = jax.dtypes.canonicalize_dtype(np.float64)
        both = _put(np.array([floats, [1.0 - each for each in floats]], dtype))
        return both, *[jnp.asarray(leaf) for leaf, is_float in pairs if not is_float]

    def optimizer(self, numbers: Sequence[jax.Array]) -> Any:
        """The optimizer with these numbers."""
        values, complements = (iter(jnp.unstack(each)) for each in numbers[0])
        others = iter(numbers[1:])
        leaves = []
        for is_float, is_decay in zip(self._is_float, self._is_decay, strict=True):
            if not is_float:
                leaves.append(next(others))
                continue
            value, complement = next(values), next(complements)
            leaves.append(maths.DecayRate(value, complement) if is_decay else value)
        return self._treedef.unflatten(leaves)


@functools.partial(jax.jit, inline=True)
def _put(numbers: Any) -> Any:
    """Numbers on the device. In half of the time that `jnp.asarray` takes."""
    return numbers
