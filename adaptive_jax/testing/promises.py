"""What a promise is, a sentence with a check, and how one that does not hold is told."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


class BrokenPromise(AssertionError):
    """A promise that does not hold: which one, for what, and how it broke."""


def check_promises(
    what: Any,
    promises: Mapping[str, Callable[[Any], None]],
    subject: Any,
    expected: Mapping[str, str] | None = None,
) -> None:
    """Raises a `BrokenPromise` unless subject keeps the promises: all but the expected ones.

    what: what the messages call the subject, by its repr.
    expected: promises that are not meant for it, with the reasons. One that holds is an error too.
    """
    expected = {} if expected is None else expected
    if not isinstance(expected, Mapping):
        raise TypeError(
            "expected maps promises to reasons, such as {'it works under vmap': 'it calls NumPy'}; "
            f"got {expected!r:.200} of type {type(expected).__name__}."
        )
    for promise, why in expected.items():
        _check_expected(promise, why, promises)
    for promise, check in promises.items():
        try:
            check(subject)
        except Exception as error:
            if promise not in expected:
                raise BrokenPromise(f"{what!r} breaks a promise: {promise}. {error}") from error
        else:
            if promise in expected:
                raise BrokenPromise(
                    f"{what!r}: {promise!r} is expected to break, but holds: take it out of expected. "
                    f"(The reason there: {expected[promise]})"
                )


def _check_expected(promise: Any, why: Any, promises: Mapping[str, Any]) -> None:
    if promise not in promises:
        close = difflib.get_close_matches(str(promise), promises, n=3, cutoff=0.3)
        raise ValueError(
            f"expected names {promise!r}, which is no promise. "
            f"{'The closest are' if close else 'The promises are'} {list(close or promises)}."
        )
    if not isinstance(why, str) or not why.strip():
        raise ValueError(
            f"expected[{promise!r}] must say why the promise is not meant, in a sentence; got {why!r}."
        )


def require(condition: Any, message: str) -> None:
    """Raises an AssertionError with the message unless the condition holds."""
    if not condition:
        raise AssertionError(message)


def require_close(
    got: Any, expected: Any, what: str, tolerance: float = 1e-5, advice: str = ""
) -> None:
    """Raises unless two trees have one structure, the same shapes, and the same numbers up to tolerance.

    advice: what to do then.
    """
    require(
        jax.tree.structure(got) == jax.tree.structure(expected),
        f"{what}: {jax.tree.structure(got)} in place of {jax.tree.structure(expected)}.",
    )
    for (path, x), y in zip(
        jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(expected), strict=True
    ):
        x, y = (np.asarray(z).astype(np.complex128) for z in (x, y))
        require(
            x.shape == y.shape
            and np.allclose(x, y, rtol=tolerance, atol=tolerance, equal_nan=True),
            f"{what}: at {jax.tree_util.keystr(path)} it gives {x}, not {y}.{advice and ' '}{advice}",
        )


def not_finite(tree: Any) -> list[str]:
    """The paths of the arrays that hold an infinity or NaN."""
    return [
        jax.tree_util.keystr(path)
        for path, x in jax.tree_util.tree_leaves_with_path(tree)
        if jnp.issubdtype(jnp.result_type(x), jnp.inexact) and not np.isfinite(np.asarray(x)).all()
    ]


def signature(tree: Any) -> Any:
    """Structure, shapes, dtypes and weak types, as jit sees them: of arrays, or of their shapes."""
    return jax.tree.map(
        lambda x: (np.shape(x), np.dtype(jax.dtypes.result_type(x)).name, is_weak(x)), tree
    )


def is_weak(x: Any) -> bool:
    """Whether an array, or what `jax.eval_shape` says of one, gives way to the dtypes of others."""
    return x.weak_type if isinstance(x, jax.ShapeDtypeStruct) else jax.typeof(x).weak_type
