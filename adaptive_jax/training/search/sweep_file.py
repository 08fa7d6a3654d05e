"""A sweep in one file of NumPy arrays, with nothing pickled: reading it runs no code."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

FORMAT = 1
"""Of the file. What is read has to have the same."""
_FACTS = "adaptive_jax.sweep"


def write(
    path: str | os.PathLike[str], settings: dict[str, Any], results: dict[str, Any], facts: Any
) -> None:
    """Writes the file as a whole, or not at all.

    settings: a column for each name.
    results: trees of arrays, by name.
    facts: what JSON can hold.
    """
    place = Path(path).expanduser()
    if place.is_dir() or not place.parent.is_dir():
        why = "is a folder" if place.is_dir() else f"is in {place.parent}, which is no folder"
        raise ValueError(f"path={str(path)!r} {why}: give the name of a file, such as 'sweep.npz'.")
    arrays: dict[str, np.ndarray] = {}
    columns = {name: _column(name, column, arrays) for name, column in settings.items()}
    trees = {name: _tree(name, tree, arrays) for name, tree in results.items()}
    described = {"format": FORMAT, "settings": columns, "results": trees, "facts": facts}
    arrays[_FACTS] = np.array(json.dumps(described))
    temporary = place.with_name(f".{place.name}.{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            savez: Any = np.savez  # Its keywords are the arrays.
            savez(file, **arrays)
        os.replace(temporary, place)
    finally:
        temporary.unlink(missing_ok=True)


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Any], Any]:
    """The settings, the results and the facts that were written."""
    place = Path(path).expanduser()
    if place.is_dir():
        raise ValueError(f"path={str(path)!r} is a folder: give the file that Sweep.save wrote.")
    try:
        with np.load(place, allow_pickle=False) as file:
            arrays = dict(file) if _FACTS in file else {}
    except (zipfile.BadZipFile, ValueError, EOFError, AttributeError, TypeError) as error:
        # A file of one array alone is one for NumPy, and not what can be closed.
        raise ValueError(f"{os.fspath(path)!r} is no file that Sweep.save wrote: {error}") from None
    if not arrays:
        raise ValueError(f"{os.fspath(path)!r} has arrays, and is no file that Sweep.save wrote.")
    described = json.loads(str(arrays[_FACTS]))
    if described["format"] != FORMAT:
        raise ValueError(
            f"{os.fspath(path)!r} is of format {described['format']}, and this version reads format "
            f"{FORMAT}: read it with the adaptive_jax that wrote it."
        )
    settings = {name: _read_tree(each, arrays) for name, each in described["settings"].items()}
    results = {name: _read_tree(each, arrays) for name, each in described["results"].items()}
    return settings, results, described["facts"]


def _column(name: str, column: Any, arrays: dict[str, np.ndarray]) -> Any:
    """How a column is described: an array, or a list of plain values."""
    if isinstance(column, np.ndarray):
        return _array(f"settings.{name}", column, arrays)
    for value in column:
        if not _is_plain(value):
            raise ValueError(
                f"settings[{name!r}] holds {value!r:.200}, which no file can hold, other than numbers, "
                "strings, None, True and False. Write what it is called: dataclasses.replace(result, "
                f"settings={{**result.settings, {name!r}: [str(x) for x in result.settings[{name!r}]]}})"
                ".save(path)."
            )
    return {"plain": list(column)}


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return type(value) is list and all(map(_is_plain, value))
    return value is None or type(value) in (bool, int, float, str)


def _tree(name: str, tree: Any, arrays: dict[str, np.ndarray]) -> Any:
    """How a tree of dicts, lists, tuples, None and arrays is described."""
    if tree is None:
        return {"plain": None}
    if isinstance(tree, np.ndarray):
        return _array(name, tree, arrays)
    if type(tree) is dict and all(isinstance(key, str) for key in tree):
        return {"dict": {key: _tree(f"{name}.{key}", each, arrays) for key, each in tree.items()}}
    if type(tree) in (list, tuple):
        kind = type(tree).__name__
        return {kind: [_tree(f"{name}.{i}", each, arrays) for i, each in enumerate(tree)]}
    what = type(tree).__name__ if type(tree) is not dict else "dict whose names are no strings"
    raise ValueError(
        f"{name} holds a {what}, and a file holds dicts, lists, tuples and arrays: leave the outputs out, "
        "dataclasses.replace(result, outputs=None).save(path), or put others in their place."
    )


def _array(name: str, array: np.ndarray, arrays: dict[str, np.ndarray]) -> Any:
    if array.dtype.hasobject:
        raise ValueError(f"{name} is an array of Python objects: give one of numbers.")
    # Two names may come to the same one: {"a": {"b": …}, "a.b": …}.
    key = f"{len(arrays)} {name}"
    arrays[key] = array
    return {"array": key, "dtype": str(array.dtype)}


def _read_tree(described: Any, arrays: dict[str, np.ndarray]) -> Any:
    ((kind, inside),) = ((k, x) for k, x in described.items() if k != "dtype")
    if kind == "array":
        array, dtype = arrays[inside], jnp.dtype(described["dtype"])
        # NumPy has no name for bfloat16, and writes its bits.
        return array if array.dtype == dtype else array.view(dtype)
    if kind == "plain":
        return inside
    if kind == "dict":
        return {name: _read_tree(each, arrays) for name, each in inside.items()}
    every: Iterator[Any] = (_read_tree(each, arrays) for each in inside)
    return list(every) if kind == "list" else tuple(every)
