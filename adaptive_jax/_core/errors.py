"""What to write instead, where a function of the user's needs the value of what is being traced."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import jax


@contextlib.contextmanager
def of_function(what: str, of: str = "") -> Iterator[None]:
    """Says what to write instead where a user's function needs the value of what is being traced.

    of: what its argument is called, "the count, which".
    """
    try:
        yield
    except _NOT_KNOWN as error:
        number, array = of or "a number that", of or "an array that"
        if isinstance(error, jax.errors.TracerBoolConversionError):
            does, instead = f"branches on {number}", "jnp.where"
        elif isinstance(error, jax.errors.TracerArrayConversionError):
            does, instead = f"gives NumPy {array}", "jnp for np"
        elif isinstance(error, jax.errors.TracerIntegerConversionError):
            does, instead = f"looks something up by {number}", "jnp.array(table)[index]"
        else:
            does = f"makes a Python number of {array}"
            instead = "jnp for math, and no float(), int() or .item()"
        reason = str(error).partition("\n")[0]
        raise TypeError(
            f"{what} {does} is not known before the step runs: write {instead}. "
            f"({type(error).__name__}: {reason})"
        ) from error


_NOT_KNOWN = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)
