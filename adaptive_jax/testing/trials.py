"""A transformation on trial: steps that it takes, made once for all checks that look at them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .._core.lifted import Lifted
from .._core.transformation import data_of

STEPS = 3


class Run(NamedTuple):
    """Some steps: the updates of each, and the state at first and after each."""

    updates: list[Any]
    states: list[Any]


def take_steps(update: Callable[..., Any], state: Any, params: Any) -> Run:
    """`STEPS` updates with random gradients, the parameters always the same."""
    run = Run([], [state])
    for step in range(STEPS):
        updates, state = update(random_gradients(params, step), state, params)
        run.updates.append(updates)
        run.states.append(state)
    return run


class Trial:
    """A transformation with what more than one promise looks at, made when the first one does."""

    def __init__(self, tx: Any) -> None:
        self.tx = tx
        self.is_one_program = isinstance(data_of(tx), Lifted)
        # Otherwise, every operation on every shape and dtype is a program of its own.
        self.update = tx.update if self.is_one_program else jax.jit(tx.update)

    def init(self, params: Any) -> Any:
        """The state at first, as one program."""
        return jax.jit(self.tx.init)(params)

    @functools.cached_property
    def plain(self) -> Run:
        """Some steps of a tree."""
        params = random_params()
        return take_steps(self.update, self.tx.init(params), params)

    @functools.cached_property
    def plain_matrix(self) -> Run:
        """Some steps of one array."""
        params = one_matrix()
        return take_steps(self.update, self.tx.init(params), params)

    @functools.cached_property
    def jitted_matrix(self) -> tuple[Run, int]:
        """The same under jit, and the number of programs that it took."""
        # A new function, for which nothing is compiled yet.
        step: Any = jax.jit(lambda updates, state, params: self.tx.update(updates, state, params))
        params = one_matrix()
        return take_steps(step, self.tx.init(params), params), step._cache_size()


def of_trial(check: Callable[[Trial], None]) -> Callable[[Any], None]:
    """A check that also takes a transformation, alone."""

    @functools.wraps(check)
    def checked(tx: Any) -> None:
        check(tx if isinstance(tx, Trial) else Trial(tx))

    return checked


# Data is made by NumPy, which compiles nothing.


def random_params(dtype: Any = np.float32) -> dict[str, Any]:
    """Arrays of several ranks, a zero-size one among them, in a nest with a None."""
    generator = np.random.default_rng(0)
    shapes = {"matrix": (3, 4), "vector": (5,), "scalar": ()}
    tree = {name: _normal(generator, shape, dtype) for name, shape in shapes.items()}
    nested = [_normal(generator, shape, dtype) for shape in ((0, 2), (2,))]
    return {**tree, "nested": [None, tuple(nested)]}


def one_matrix() -> dict[str, Any]:
    """One array: for what more arrays, which cost more programs or longer ones, would say no more."""
    return {"matrix": random_params()["matrix"], "none": None}


def _normal(generator: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    values = generator.normal(size=shape)
    if jnp.issubdtype(dtype, jnp.complexfloating):
        values = values + 1j * generator.normal(size=shape)
    return jax.device_put(np.asarray(values, dtype))


def random_gradients(params: Any, seed: int) -> Any:
    """Normal numbers in the shapes and dtypes of params."""
    generator = np.random.default_rng(seed)
    return jax.tree.map(lambda x: _normal(generator, x.shape, x.dtype), params)


def full_of(value: float, tree: Any) -> Any:
    """A tree of arrays like those of another one, each full of value."""
    return jax.tree.map(lambda x: jax.device_put(np.full(x.shape, value, x.dtype)), tree)


def cast(tree: Any, dtype: Any) -> Any:
    """A tree in another dtype."""
    return jax.tree.map(lambda x: jax.device_put(np.asarray(x).astype(dtype)), tree)


def stacked(*trees: Any) -> Any:
    """Trees as one, along a new first axis."""
    return jax.tree.map(lambda *x: jax.device_put(np.stack(x)), *trees)
