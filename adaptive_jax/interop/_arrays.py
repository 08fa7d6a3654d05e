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


def factors_to_here(
    rows: Any, columns: Any, axes: tuple[int, ...] | None, what: str
) -> tuple[np.ndarray, np.ndarray]:
    """Means of squares over the last axis and over the one before it, in the layout here.

    rows, columns: of the shapes (…, m) and (…, n) there.
    """
    rows, columns = array(rows, f"the rows of {what}"), array(columns, f"the columns of {what}")
    return _factors(rows, columns, axes, what)


def factors_to_there(
    rows: np.ndarray, columns: np.ndarray, axes: tuple[int, ...] | None, what: str
) -> tuple[np.ndarray, np.ndarray]:
    """The reverse of `factors_to_here`."""
    back = None if axes is None else tuple(map(int, np.argsort(axes)))
    return _factors(rows, columns, back, what)


def _factors(
    rows: np.ndarray, columns: np.ndarray, axes: tuple[int, ...] | None, what: str
) -> tuple[np.ndarray, np.ndarray]:
    if axes is None:
        return rows, columns
    last = len(axes) - 1
    if rows.ndim != last or set(axes[-2:]) != {last - 1, last}:
        raise ValueError(
            f"{what} is kept as means over its last two axes, both there and here: with the axes {axes} "
            "these are others here, and nothing can be made of the saved ones."
        )
    of_rows, of_columns = (
        np.transpose(rows[..., None], axes), np.transpose(columns[..., None, :], axes)
    )  # fmt: skip
    if axes[-1] != last:  # Transposed: what were rows there are columns here.
        of_rows, of_columns = of_columns, of_rows
    # In C's order, which torch.from_numpy and a checkpoint keep.
    return np.array(of_rows[..., 0], order="C"), np.array(of_columns[..., 0, :], order="C")
