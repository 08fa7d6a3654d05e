"""An optax transformation that is data, and other libraries' transformations beside it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import jax
import optax
from jax.tree_util import Partial

from . import closures, export
from .arguments import is_number
from .extra import ARRAYS_BEFORE, FIRST_GRADIENT
from .placement import beside
from .rule import Rule


@export.node
@jax.tree_util.register_pytree_with_keys_class
class Transformation(optax.GradientTransformationExtraArgs):
    """An optax gradient transformation that is data: what `init` and `update` share is one pytree."""

    __slots__ = ()

    @classmethod
    def of(cls, data: Any) -> Transformation:
        """The transformation of a pytree with optax's two methods: rules, a chain, or a wrapper.

        data: has `init(params)` and `update(updates, state, params=None, **extra_args)`.
        """
        return cls(Partial(_init, data), Partial(_update, data))

    @property
    def data(self) -> Any:
        """What it was made of."""
        return self.update.args[0]  # type: ignore[attr-defined]

    def tree_flatten_with_keys(self) -> Any:
        """Its leaves are there once, although both functions hold them: they can be donated."""
        return ((jax.tree_util.GetAttrKey("update"), self.data),), None

    def tree_flatten(self) -> Any:
        """The same without keys, which is quicker."""
        return (self.data,), None

    @classmethod
    def tree_unflatten(cls, _: None, children: Any) -> Transformation:
        """The transformation, of new leaves."""
        return cls.of(*children)

    def __repr__(self) -> str:
        return repr(self.data)


def _init(data: Any, params: Any) -> Any:
    return beside(params, data.init(params))


def _update(
    data: Any, updates: Any, state: Any, params: Any = None, **extra_args: Any
) -> tuple[Any, Any]:
    return data.update(updates, state, params, **extra_args)


def data_of(transformation: Any) -> Any:
    """What a transformation of this library was made of; any other one is its own data."""
    return transformation.data if isinstance(transformation, Transformation) else transformation


def data_behind(function: Any) -> Any:
    """What a transformation was made of whose `init` or `update` it is; None for other functions."""
    is_own = isinstance(function, Partial) and function.func in (_init, _update)
    return function.args[0] if is_own else None


@export.node
@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["values"], meta_fields=["emptied"]
)
@dataclass(frozen=True, repr=False)
class Foreign:
    """Another library's transformation: static, and equal to any other wrapping of the same one.

    values: the traced numbers that its functions close over, which are data.
    emptied: the transformation without them.
    """

    emptied: optax.GradientTransformation
    values: tuple[Any, ...]

    @property
    def transformation(self) -> optax.GradientTransformation:
        """The transformation itself."""
        return closures.put_back(self.emptied, self.values)

    def init(self, params: Any) -> Any:
        return self.transformation.init(params)

    @property
    def takes(self) -> Collection[str] | None:
        """The names of the extra arguments that its `update` takes; None if it takes all."""
        return _extra_args(self.transformation)

    def update(self, updates: Any, state: Any, params: Any = None, **extra_args: Any) -> Any:
        transformation = self.transformation
        if extra_args:
            taken = _extra_args(transformation)
            extra_args = {
                k: x
                for k, x in extra_args.items()
                if (taken is None or k in taken) and k not in (FIRST_GRADIENT, ARRAYS_BEFORE)
            }
        return transformation.update(updates, state, params, **extra_args)

    def __repr__(self) -> str:
        return getattr(self.emptied.update, "__qualname__", "…").partition(".")[0]


def _extra_args(transformation: optax.GradientTransformation) -> Collection[str] | None:
    """The names of the extra arguments that an `update` takes; None if it takes all."""
    if not isinstance(transformation, optax.GradientTransformationExtraArgs):
        return ()
    try:
        parameters = inspect.signature(transformation.update).parameters
    except (TypeError, ValueError):
        return None
    takes_all = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    return None if takes_all else parameters


def member(transformation: Any, what: str) -> Any:
    """A transformation as part of another one that is a pytree."""
    export.states_of_optax()
    if isinstance(transformation, (Transformation, Foreign)):
        return transformation
    if isinstance(transformation, optax.MultiSteps):
        transformation = transformation.gradient_transformation()
    if isinstance(transformation, optax.GradientTransformation):
        try:
            return Foreign(*closures.take_out(transformation))
        except closures.Unreachable as error:
            raise TypeError(
                f"{what} got {Foreign(transformation, ())!r}, which holds a traced number in {error}: it "
                "cannot be made data, and would still be there after the end of jit or vmap. Take the "
                "jit out of it, or hand the number over as a hyperparameter in the state, "
                "optax.inject_hyperparams(factory)(learning_rate=…)."
            ) from None
    hint = ""
    if isinstance(transformation, Rule):
        hint = " Rules are put together by aj.transform."
    elif inspect.isfunction(transformation):
        hint = f" Call it: {transformation.__name__}(…)."
    elif is_number(transformation):
        hint = (
            f" If that is a learning rate, give an optimizer with it: aj.adamw({transformation})."
        )
    elif what == "chain" and isinstance(transformation, (list, tuple)):
        hint = " Give the members one by one, with a star: aj.chain(*members)."
    kind, shown = type(transformation).__name__, repr(transformation)
    got = f"{shown} of type {kind}" if len(shown) <= 200 else f"a {kind}"  # Not half an array.
    raise TypeError(f"{what} takes optax gradient transformations, got {got}.{hint}")
