"""The loss function as the user wrote it, and what it must return."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import maths
from .._core import pytrees
from .returned import shown


@dataclass(frozen=True)
class Loss:
    """A loss function as the user wrote it."""

    function: Callable[..., Any]
    has_aux: bool
    compute_dtype: Any

    @functools.cached_property
    def wants(self) -> tuple[str, ...]:
        """What it takes of the state, by the names of its arguments."""
        known = [each.name for each in self._parameters]
        return tuple(name for name in ("rng", "model_state") if name in known)

    @property
    def needs(self) -> list[str]:
        """The arguments without default that it has to be called with, by position."""
        positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        return [
            each.name
            for each in self._parameters
            if each.default is each.empty
            and each.kind in positional
            and each.name not in self.wants
        ]

    @property
    def _parameters(self) -> list[inspect.Parameter]:
        """Its arguments; none where Python does not know them."""
        try:
            return list(inspect.signature(self.function).parameters.values())
        except (TypeError, ValueError):
            return []

    def __call__(self, params: Any, model_state: Any, batch: Any, rng: Any, scale: Any) -> Any:
        """The loss times scale; and the loss, the new model state and aux."""
        if self.compute_dtype is not None:
            params, batch = jax.tree.map(self._cast, (params, batch))
        given = {"rng": rng, "model_state": model_state}
        result = self.function(params, batch, **{name: given[name] for name in self.wants})
        expected = ["loss"]
        expected += ["new_model_state"] if "model_state" in self.wants else []
        expected += ["aux"] if self.has_aux else []
        if len(expected) == 1:
            result = (result,)
        if not isinstance(result, (tuple, list)) or len(result) != len(expected):
            raise TypeError(
                f"the loss function must return {', '.join(expected)}, as its arguments and "
                f"has_aux={self.has_aux} say; it returned {shown(result)}."
            )
        values = dict(zip(expected, result, strict=True))
        loss = values["loss"]
        if loss is None or isinstance(loss, (tuple, list, dict)):
            advice = (
                "Is its return missing?"
                if loss is None
                else "With has_aux=True it may return (loss, aux)."
            )
            raise TypeError(f"the loss function returned {shown(loss)} for the loss. {advice}")
        check_one_number("the loss", loss)
        new_state = values.get("new_model_state", model_state)
        check_same_shapes("the new model state", new_state, "the model state", model_state)
        loss = jnp.asarray(loss, maths.compute_dtype(jnp.result_type(loss)))
        return loss * scale.astype(loss.dtype), (loss, new_state, values.get("aux"))

    def _cast(self, x: Any) -> Any:
        is_float = jnp.issubdtype(jnp.result_type(x), jnp.floating)
        return jnp.asarray(x, self.compute_dtype) if is_float else x


def check_one_number(what: str, loss: Any) -> None:
    """Raises a TypeError for a loss, described as what, that is no real number of shape ()."""
    if np.shape(loss) or not jnp.issubdtype(jnp.result_type(loss), jnp.floating):
        raise TypeError(
            f"{what} is {pytrees.describe(loss)}: it must be one real number, such as the mean over the "
            "batch."
        )


def check_same_shapes(what: str, tree: Any, other_what: str, other: Any) -> None:
    """Raises a ValueError, with the paths, for trees of different shapes or dtypes."""

    def kinds(tree: Any) -> Any:
        return {
            jax.tree_util.keystr(path): (np.shape(x), jnp.result_type(x))
            for path, x in jax.tree_util.tree_leaves_with_path(tree)
        }

    new, old = kinds(tree), kinds(other)
    if jax.tree.structure(tree) != jax.tree.structure(other) or new != old:
        paths = [path for path in {**old, **new} if new.get(path) != old.get(path)]
        shown = "; ".join(f"at {path}: {new.get(path)}, not {old.get(path)}" for path in paths[:5])
        raise ValueError(f"{what} differs from {other_what} {shown or 'in its structure'}.")
