"""A transformation on trial: steps that it takes, made once for all checks that look at them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .._core.lifted import Lifted
from .._core.rule import Rule
from .._core.transformation import Transformation, data_of
from .._core.wrapper import walk

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
        self.update = self.step if self.is_one_program else jax.jit(self.step)

    def step(self, gradients: Any, state: Any, params: Any) -> tuple[Any, Any]:
        """An update, with the extra arguments that its rules ask for."""
        return self.tx.update(gradients, state, params, **self.extra_args(gradients))

    def extra_args(self, gradients: Any) -> dict[str, Any]:
        """Those that its rules ask for, made up: the same ones for all gradients of the same shapes."""
        kinds = {name: kind for rule in self.rules for name, kind in rule.extra_args.items()}
        made = {
            name: jax.tree.map(_between, gradients) if kind == "array" else np.float32(0.75)
            for name, kind in kinds.items()
        }
        # For optax's chains, which do not hand on the gradient as it came.
        is_asked = any(rule.needs_gradient for rule in self.rules)
        return made | {"grad": gradients} if is_asked else made

    @functools.cached_property
    def rules(self) -> list[Rule]:
        """All rules of this library in it."""
        return [
            rule for data, *_ in walk(self.tx) if isinstance(data, Lifted) for rule in data.rules
        ]

    @functools.cached_property
    def takes_only_matrices(self) -> bool:
        """Whether `init` refuses arrays that are no matrices, and no others."""
        if isinstance(self.tx, Transformation) and not any(rule.matrix for rule in self.rules):
            return False

        def is_taken(params: Any) -> bool:
            try:
                jax.eval_shape(self.tx.init, params)
            except (TypeError, ValueError):
                return False
            return True

        return not is_taken(random_params()) and is_taken(random_matrices())

    def params(self, dtype: Any = np.float32) -> dict[str, Any]:
        """A tree of arrays that it takes."""
        return (random_matrices if self.takes_only_matrices else random_params)(dtype)

    def params_in(self, dtype: Any) -> dict[str, Any]:
        """A tree in a dtype: in float32 of all shapes, in others one matrix if shapes do not matter.

        Other dtypes are converted around the same maths.
        """
        if dtype == np.float32 or self.depends_on_shapes:
            return self.params(dtype)
        return cast(one_matrix(), dtype)

    @functools.cached_property
    def depends_on_shapes(self) -> bool:
        """Whether a rule says that arrays of other shapes are something else to it, or may do so."""
        return not self.is_one_program or any(
            rule.matrix or any(slot.shape is not None for slot in rule.slots.values())
            for rule in self.rules
        )

    def init(self, params: Any) -> Any:
        """The state at first, as one program."""
        return jax.jit(self.tx.init)(params)

    def traced(self, params: Any) -> Any:
        """What an update makes, in shapes and dtypes: they are known without a program."""
        state = jax.eval_shape(self.tx.init, params)
        return jax.eval_shape(self.step, random_gradients(params, 0), state, params)

    @functools.cached_property
    def plain(self) -> Run:
        """Some steps of a tree."""
        params = self.params()
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
        step: Any = jax.jit(lambda updates, state, params: self.step(updates, state, params))
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


def random_matrices(dtype: Any = np.float32) -> dict[str, Any]:
    """The same for what takes matrices alone: one, several in an array, and those of one number or none."""
    generator = np.random.default_rng(0)
    shapes = {"matrix": (3, 4), "stack": (2, 2, 3), "number": (1, 1)}
    tree = {name: _normal(generator, shape, dtype) for name, shape in shapes.items()}
    nested = [_normal(generator, shape, dtype) for shape in ((0, 2), (2, 2))]
    return {**tree, "nested": [None, tuple(nested)]}


def one_matrix() -> dict[str, Any]:
    """One array: for what more arrays, which cost more programs or longer ones, would say no more."""
    return {"matrix": random_params()["matrix"], "none": None}


def _normal(generator: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    values = generator.normal(size=shape)
    if jnp.issubdtype(dtype, jnp.complexfloating):
        values = values + 1j * generator.normal(size=shape)
    return jax.device_put(np.asarray(values, dtype))


def _between(x: Any) -> np.ndarray:
    """Numbers from 0.5 to 1.5 in the shape and dtype of an array."""
    return np.linspace(0.5, 1.5, x.size).reshape(x.shape).astype(x.dtype)


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
