"""What `jax.export` must know to write this library's pytrees to a file, and to read them again."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import sys
from typing import Any, TypeVar

import jax
import numpy as np
import optax
from jax import export

_PREFIX = "adaptive_jax:"


_Class = TypeVar("_Class", bound=type)


def state(cls: _Class, name: str | None = None) -> _Class:
    """Registers a NamedTuple, unless somebody did before. A decorator."""
    with contextlib.suppress(ValueError):
        export.register_namedtuple_serialization(
            cls, serialized_name=_PREFIX + (name or cls.__name__)
        )
    return cls


def node(cls: _Class) -> _Class:
    """Registers a class that is a pytree node. A decorator, above that of JAX.

    Of two classes of one name, in a notebook say, the first one stays. This library's own are named
    without their modules, which may change.
    """
    module = "" if cls.__module__.startswith("adaptive_jax.") else f"{cls.__module__}."
    name = f"{_PREFIX}{module}{cls.__qualname__}"
    with contextlib.suppress(ValueError):
        export.register_pytree_node_serialization(
            cls,
            serialized_name=name,
            serialize_auxdata=lambda aux: json.dumps(_plain(aux)).encode(),
            deserialize_auxdata=lambda data: _restored(json.loads(data)),
        )
    return cls


@functools.cache
def states_of_optax() -> None:
    """Registers those that wrappers have. When they are first used: till then, users may do it."""
    for cls in (
        optax.EmptyState,
        optax.MaskedNode,
        optax.MaskedState,
        optax.MonitorState,
        optax.MultiStepsState,
        optax.PartitionState,
    ):
        state(cls)
    with contextlib.suppress(ValueError):  # A schedule is one.
        export.register_pytree_node_serialization(
            jax.tree_util.Partial,
            serialized_name="jax.tree_util.Partial",
            serialize_auxdata=lambda aux: json.dumps(_plain(aux)).encode(),
            deserialize_auxdata=lambda data: _restored(json.loads(data)),
        )


# Options and functions, as JSON. It is not pickled: whoever reads a file must not run what is in it.


def _plain(value: Any) -> Any:
    """The value in lists, dicts, strings and numbers."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if type(value) in (tuple, list):
        return {type(value).__name__: [_plain(each) for each in value]}
    if type(value) is dict:
        return {"dict": [[_plain(key), _plain(each)] for key, each in value.items()]}
    if isinstance(value, jax.tree_util.PyTreeDef):
        return {"structure": _plain(value.unflatten(range(value.num_leaves)))}
    if isinstance(value, np.dtype):
        return {"dtype": value.name}
    name = f"{getattr(value, '__module__', None)}:{getattr(value, '__qualname__', None)}"
    if _found(name) is value:
        return {"name": name}
    kind = type(value)
    name = f"{kind.__module__}:{kind.__qualname__}"
    if _found(name) is kind and isinstance(value, str):
        return {"text": [name, str(value)]}
    if _found(name) is kind and dataclasses.is_dataclass(kind):
        fields = {each.name: _plain(getattr(value, each.name)) for each in dataclasses.fields(kind)}
        return {"object": [name, fields]}
    what = repr(value)
    if isinstance(value, optax.GradientTransformation):
        what = f"{getattr(value.update, '__qualname__', '…').partition('.')[0]} of optax"
    raise ValueError(
        f"jax.export writes an optimizer that is an argument or a result, and {what:.200} in it cannot be "
        "written: it is not found at the top level of a module. Define it there; or close over the "
        "optimizer, and export a function of arrays alone, such as jax.tree.leaves(state)."
    )


def _restored(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind in ("tuple", "list"):
        return (tuple if kind == "tuple" else list)(map(_restored, content))
    if kind == "dict":
        return {_restored(key): _restored(each) for key, each in content}
    if kind == "structure":
        return jax.tree.structure(_restored(content))
    if kind == "dtype":
        return np.dtype(content)
    name = content if kind == "name" else content[0]
    found: Any = _found(name)
    if found is None:
        raise ValueError(f"{name.replace(':', '.')} is not known here: import its module first.")
    if kind == "name":
        return found
    if kind == "text" and issubclass(found, str):
        return str.__new__(found, content[1])
    if kind == "object" and dataclasses.is_dataclass(found):
        new: Any = object.__new__(found)  # type: ignore[arg-type]
        new.__dict__.update({field: _restored(each) for field, each in content[1].items()})
        return new
    raise ValueError(f"{name.replace(':', '.')} is no class of options.")


def _found(name: str) -> Any:
    """What is called so in a module that has been imported; None if nothing is."""
    module, _, path = name.partition(":")
    found: Any = sys.modules.get(module)
    for part in path.split("."):
        found = getattr(found, part, None)
    return found
