"""Which arrays a rule selects: what a mask may be, and how a rule says that it has one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import jax
import numpy as np
from jax.core import Tracer
from jax.tree_util import keystr

from . import errors
from .pytrees import describe


@dataclass(frozen=True)
class Selection:
    """The arrays that a mask selects: a function of the parameters, or a tree of bools.

    It is static data, so a tree is kept as its leaves and its structure, which hash.
    """

    function: Callable[[Any], Any] | None
    leaves: tuple[bool, ...] = ()
    treedef: Any = None
    argument: str = "mask"

    @classmethod
    def of(cls, mask: Any, argument: str = "mask") -> Selection:
        """The selection of what a user gives as a mask, by the name of the argument."""
        if isinstance(mask, Selection):
            return mask
        # A module that can be called but is a pytree is a tree of bools.
        if callable(mask) and jax.tree_util.all_leaves([mask]):
            return cls(mask, argument=argument)
        leaves, treedef = jax.tree_util.tree_flatten(mask)
        _check_bools(argument, mask)
        return cls(None, tuple(bool(leaf) for leaf in leaves), treedef, argument)

    def tree(self, params: Any) -> Any:
        """A tree of bools, whose structure is a prefix of that of params."""
        if self.function is None:
            return jax.tree_util.tree_unflatten(self.treedef, self.leaves)
        with errors.of_function(f"{self.argument}={self!r}", "a value of the parameters, which"):
            tree = self.function(params)
        _check_bools(self.argument, tree)
        return tree

    def __repr__(self) -> str:
        if self.function is not None:
            return getattr(self.function, "__name__", type(self.function).__name__)
        return repr(jax.tree_util.tree_unflatten(self.treedef, self.leaves))


def _check_bools(argument: str, mask: Any) -> None:
    """Raises a TypeError unless every leaf of a mask is True or False."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(mask):
        if isinstance(leaf, Tracer):
            raise TypeError(
                f"{argument}{keystr(path)} is {describe(leaf)} and depends on the values of the "
                "parameters: a mask is made once, of their names, shapes and dtypes, and its leaves are "
                "Python's True and False. For a selection by value multiply the gradients by it, before the "
                "update."
            )
        # An array of shape () is one too, as in optax, where its value is known.
        is_array = isinstance(leaf, (np.ndarray, jax.Array)) and leaf.shape == ()
        if not (isinstance(leaf, (bool, np.bool_)) or (is_array and leaf.dtype == bool)):
            raise TypeError(
                f"{argument}{keystr(path)} is {describe(leaf)}: a mask is a tree of True and False whose "
                "structure is that of the parameters or a prefix of it, or a function that makes one "
                "from them."
            )


Mask = Annotated[Any, Selection]
"""Which arrays a rule is for: a tree of bools, a prefix of one, a function of the parameters that makes
one, or None for all. What it says of the array at hand, `update` finds in `ctx.selected`."""
