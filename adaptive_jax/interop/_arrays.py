"""Arrays of another library: copied, checked, and laid out as here or as there."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import keystr

from .._core import pytrees


def paths(params: Any) -> dict[str, Any]:
    """The leaves of a tree by their paths, as in "layers/0/kernel"."""
    with_path = jax.tree_util.tree_leaves_with_path(params)
    return {keystr(path, simple=True, separator="/"): leaf for path, leaf in with_path}


def array(value: Any, what: str) -> np.ndarray:
    """A copy of a tensor of PyTorch, a variable of Keras, or an array, in float32 at least."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        # NumPy has no bfloat16 of PyTorch's.
        value = (value.float() if str(value.dtype) == "torch.bfloat16" else value).numpy()
    try:
        value = np.array(getattr(value, "value", value))  # A variable of Keras holds an array.
    except Exception as error:
        raise TypeError(f"{what} is a {type(value).__name__}: expected an array.") from error
    if not jnp.issubdtype(value.dtype, jnp.number):
        raise TypeError(f"{what} is {pytrees.describe(value)}: expected an array of numbers.")
    if jnp.issubdtype(value.dtype, jnp.floating) and jnp.finfo(value.dtype).bits < 32:
        value = value.astype(np.float32)
    if not np.isfinite(value).all():
        raise ValueError(
            f"{what} has {np.sum(~np.isfinite(value))} entries that are not finite: the saved run was "
            "broken already. Go back to an earlier checkpoint."
        )
    return value


def number(value: Any, what: str) -> float:
    """One number."""
    value = array(value, what)
    if value.shape != ():
        raise ValueError(f"{what} has the shape {value.shape}: expected one number.")
    return float(value)


def to_here(value: Any, axes: tuple[int, ...] | None, what: str) -> np.ndarray:
    """A copy of an array there, in the layout here."""
    value = array(value, what)
    if axes is None:
        return value
    if value.ndim != len(axes):
        raise ValueError(f"{what} has the shape {value.shape}: the axes are {axes}.")
    return np.transpose(value, axes)


def to_there(value: np.ndarray, axes: tuple[int, ...] | None) -> np.ndarray:
    """An array here in the layout there."""
    # Not np.ascontiguousarray, which gives a single number an axis.
    return value if axes is None else np.array(np.transpose(value, np.argsort(axes)), order="C")
