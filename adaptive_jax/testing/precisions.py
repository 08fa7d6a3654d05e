"""What a rule promises about dtypes: the maths, the state and the updates, and complex numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .promises import is_weak, require, require_close, signature
from .trials import Trial, cast, of_trial, random_gradients

if hasattr(jax, "enable_x64"):
    enable_x64 = jax.enable_x64
else:  # Before jax 0.8.
    from jax.experimental import enable_x64  # type: ignore[attr-defined]


@of_trial
def _check_dtypes(trial: Trial) -> None:
    for dtype in (jnp.float16, jnp.bfloat16):
        name, low = np.dtype(dtype).name, trial.params_in(dtype)
        high, gradients = cast(low, np.float32), random_gradients(low, 0)
        wide_gradients = cast(gradients, np.float32)
        first = trial.init(low)
        updates, state = trial.update(gradients, first, low)
        wide_updates, _ = trial.update(wide_gradients, trial.init(high), high)
        _require_dtypes(updates, gradients, "update")
        precision = 2 * float(jnp.finfo(dtype).eps)
        require_close(
            updates, cast(wide_updates, dtype), f"{name} maths is not float32 maths", precision
        )
        _, mixed = jax.eval_shape(trial.step, wide_gradients, first, low)
        require(
            signature(mixed) == signature(state) == signature(first),
            f"With {name} parameters, the dtype of the gradients changes the state.",
        )


@of_trial
def _check_float64(trial: Trial) -> None:
    with enable_x64(True):
        updates, state = trial.traced(params := trial.params(np.float64))
        _require_dtypes(updates, params, "update")
        leaves = jax.tree_util.tree_leaves_with_path(state)
        narrow = [path for path, x in leaves if x.dtype == jnp.float32 and x.ndim]
        require(not narrow, f"The state of float64 parameters is float32 at {narrow}.")
        updates, state = trial.traced(params := trial.params(np.float32))
        _require_dtypes(updates, params, "update")
        wide = [leaf.dtype for leaf in jax.tree.leaves(state) if leaf.dtype == jnp.float64]
        require(not wide, "With x64 enabled, the state of float32 parameters is float64.")


@of_trial
def _check_complex(trial: Trial) -> None:
    params = trial.params(np.complex64)
    try:
        state = jax.eval_shape(trial.tx.init, params)
    except (TypeError, ValueError) as error:
        require("complex" in str(error), f"Complex parameters are refused without a name: {error}")
        return
    try:
        updates, new = trial.traced(params)
    except (TypeError, ValueError) as error:
        raise AssertionError(
            f"{error} (A rule for real arrays says takes_complex = False.)"
        ) from error
    _require_dtypes(updates, params, "update")
    require(
        signature(state) == signature(new), "An update changes the state of complex parameters."
    )


def _require_dtypes(got: Any, like: Any, what: str) -> None:
    for (path, x), y in zip(
        jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(like), strict=True
    ):
        require(
            x.dtype == y.dtype and not is_weak(x),
            f"The {what} at {jax.tree_util.keystr(path)} is {x.dtype}, its gradient {y.dtype}.",
        )


PRECISION_PROMISES: dict[str, Callable[[Any], None]] = {
    "its maths is in float32 at least, and an update has its gradient's dtype": _check_dtypes,
    "float64 stays float64, and float32 stays float32": _check_float64,
    "complex parameters work, or are refused by name": _check_complex,
}
