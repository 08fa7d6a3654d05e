"""The arguments of a sweep, checked: a column of settings for each one of train, and the others."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from ..._core import arguments, pytrees
from . import runs
from .distributions import Distribution
from .result import is_numeric
from .table import plain


def checked_options(
    batch_size: Any,
    memory: Any,
    maximize: Any,
    step: Any,
    batches: Any,
    evaluate: Any,
    keep_params: Any,
) -> int | None:
    """Raises for an option that is none. The batch size as an int, or None."""
    if batch_size is not None:
        hint = f" None is as many as memory holds. {_in_table('batch_size')}"
        batch_size = arguments.whole("batch_size", batch_size, 1, hint=hint)
    if memory is not None and not (arguments.is_number(memory) and memory > 0):
        raise ValueError(f"memory={memory!r} must be a number of bytes above 0, or None.")
    if not isinstance(maximize, bool):
        raise TypeError(f"maximize={maximize!r} must be True or False.")
    if step is not None and not callable(step):
        raise TypeError(f"step={step!r:.200} must be what train_step returns. {_in_table('step')}")
    if (step is None) != (batches is None):
        raise ValueError("step and batches go together: give both, or neither.")
    if evaluate is not None and not callable(evaluate):
        raise TypeError(
            f"evaluate={evaluate!r:.200} must be a function of the parameters. {_in_table('evaluate')}"
        )
    if evaluate is not None and step is None:
        raise ValueError(
            "evaluate is for a sweep with step and batches: without, train returns what it is judged by."
        )
    if not isinstance(keep_params, bool):
        raise TypeError(f"keep_params={keep_params!r:.200} must be True or False.")
    if keep_params and step is None:
        raise ValueError(
            "keep_params is for a sweep with step and batches: without, train returns what is kept, so "
            "let it return its parameters too, {'loss': loss, 'params': params}."
        )
    return batch_size


def _in_table(name: str) -> str:
    """What to do about an argument of train with the name of an option."""
    return f'(Values for an argument of train of this name go in a table: table={{"{name}": […]}}.)'


def checked_seeds(seeds: Any) -> np.ndarray:
    """The seeds, of how many or of themselves."""
    try:
        values = np.asarray(seeds)
    except TypeError:  # Keys of JAX.
        values = np.empty((0,))
    if values.ndim == 0 and values.dtype.kind in "iu" and values > 0:
        return np.arange(int(values), dtype=np.int32)
    if values.ndim != 1 or values.dtype.kind not in "iu" or not values.size:
        raise ValueError(
            f"seeds={seeds!r} must be how many, a whole number of 1 or more, or whole numbers in one "
            "dimension."
        )
    if len(np.unique(values)) < len(values):
        raise ValueError(f"seeds={seeds!r} has a seed twice, which would be the same run again.")
    _check_range("seeds", values, np.int32)
    return values.astype(np.int32)


def _check_range(name: str, values: np.ndarray, dtype: Any) -> None:
    """Raises a ValueError if numbers do not fit into the dtype that JAX will give them."""
    with np.errstate(over="ignore"):
        kept = values.astype(dtype)
    wrong = (
        kept != values if values.dtype.kind in "iu" else np.isfinite(values) != np.isfinite(kept)
    )
    if np.any(wrong):
        raise ValueError(
            f"{name}={values[wrong][0]} does not fit into {np.dtype(dtype)}: give a smaller number, or "
            "jax.config.update('jax_enable_x64', True)."
        )


def are_by_seed(batches: Any) -> bool:
    """Whether batches are a function of the seed."""
    return callable(batches) and not hasattr(batches, "__iter__")


def stacked_batches(batches: Any, seeds: np.ndarray) -> Any:
    """All batches in one tree, with an axis for the steps; of a function, a `runs.BatchesBySeed`."""
    if not are_by_seed(batches):
        return _stacked("batches", batches)
    every = [_stacked(f"batches(seed={seed})", batches(seed)) for seed in seeds.tolist()]
    described = [jax.tree.map(pytrees.describe, each) for each in every]
    for seed, each in zip(seeds.tolist(), described, strict=True):
        if each != described[0]:
            raise ValueError(
                f"batches(seed={seed}) comes to {each}, and batches(seed={seeds[0]}) to {described[0]}, "
                "with an axis for the steps in front: each seed needs as many batches, of the same shapes."
            )
    return runs.BatchesBySeed(seeds, jax.tree.map(lambda *x: np.stack(x), *every))


def _stacked(what: str, batches: Any) -> Any:
    try:
        every = list(batches)
    except TypeError:
        raise TypeError(
            f"{what} is {batches!r:.200} of type {type(batches).__name__}: it must be the batches, a list "
            "say, or a function from a seed to them."
        ) from None
    if not every:
        raise ValueError(f"{what} has no batch in it.")
    try:
        return jax.tree.map(lambda *x: np.stack(x), *jax.device_get(every))
    except ValueError as error:
        raise ValueError(
            f"{what} must all have one structure and one shape, to be steps of one program: {error}"
        ) from None


def columns_of(
    table: Mapping[str, Any] | None, axes: Mapping[str, Any], static: Sequence[str]
) -> tuple[dict[str, Any], dict[str, bool]]:
    """A column per argument with one value per setting, and whether its values choose code."""
    if isinstance(static, str):
        static = (static,)
    if isinstance(table, Distribution):
        raise TypeError(
            f"table={table!r} must say of what: table=aj.draw(64, learning_rate={table!r})."
        )
    try:
        given: dict[str, Any] = {} if table is None else dict(table)
    except (TypeError, ValueError):
        raise TypeError(
            "table must be a dict from a name to its column, such as what aj.draw returns, got "
            f"{table!r:.200}."
        ) from None
    rows = {name: _axis(name, column, static) for name, column in given.items()}
    if len({len(column) for column in rows.values()}) > 1:
        raise ValueError(
            "the columns of a table are settings side by side, and must have one length: "
            f"{', '.join(f'{name} has {len(column)}' for name, column in rows.items())}. For every "
            f"combination, give axes: sweep(train, {', '.join(f'{name}=…' for name in rows)})."
        )
    if twice := set(rows) & set(axes):
        raise ValueError(f"{sorted(twice)} are both in the table and an axis: give each once.")
    grid = {name: _axis(name, values, static) for name, values in axes.items()}
    for name, column in {**rows, **grid}.items():
        if not len(column):
            raise ValueError(f"{name} has no values.")
    if unknown := [name for name in static if name not in rows and name not in grid]:
        raise ValueError(
            f"static={tuple(static)!r} names {unknown}, and the axes are {[*rows, *grid]}."
        )
    lengths = [range(len(next(iter(rows.values()))))] if rows else []
    lengths += [range(len(column)) for column in grid.values()]
    places = np.array(list(itertools.product(*lengths)), dtype=int).T
    columns = {name: _taken(column, places[0]) for name, column in rows.items()}
    offset = 1 if rows else 0
    for number, (name, column) in enumerate(grid.items()):
        columns[name] = _taken(column, places[offset + number])
    return columns, {name: not is_numeric(column) for name, column in columns.items()}


def _axis(name: str, values: Any, static: Sequence[str]) -> Any:
    """An array of numbers, or a list of what chooses code."""
    if isinstance(values, Distribution):
        raise TypeError(
            f"{name}={values!r} is a distribution: draw from it, table=aj.draw(64, {name}={values!r})."
        )
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(values)):
        raise TypeError(
            f"{name} is {pytrees.describe(values)} that is being traced: call sweep outside of jit, vmap "
            "and grad."
        )
    if isinstance(values, (str, Mapping)) or callable(values) or not np.iterable(values):
        values = [values]
    if isinstance(values, (list, tuple)) and all(isinstance(each, tuple) for each in values):
        return [plain(value) for value in values]  # Such as betas=[(0.9, 0.99), (0.9, 0.999)].
    try:
        array = np.asarray(values if hasattr(values, "dtype") else list(values))
    except ValueError:  # Lists of different lengths, say.
        return [plain(value) for value in values]
    if array.dtype.kind not in "iuf" or name in static:
        return [plain(value) for value in values]
    if array.ndim != 1:
        raise ValueError(
            f"{name} has the shape {array.shape}: an axis has one dimension, a number per setting."
        )
    _check_range(name, array, jax.dtypes.canonicalize_dtype(array.dtype))
    return array


def _taken(column: Any, places: np.ndarray) -> Any:
    return column[places] if isinstance(column, np.ndarray) else [column[i] for i in places]


def check_arguments(
    train: Callable[..., Any],
    columns: Mapping[str, Any],
    seeds: int,
    options: Collection[str],
    by_seed: bool,
) -> bool:
    """Raises unless train takes these arguments, and gets all that it needs. Whether it takes a seed.

    options: the names of the arguments of `sweep` itself, which train may have too.
    by_seed: whether the batches are a function of the seed.
    """
    if not callable(train):
        raise TypeError(f"train={train!r} must be a function from a setting to its result.")
    name = getattr(train, "__name__", "train")
    parameters = inspect.signature(train).parameters
    takes_all = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    known = [
        each.name
        for each in parameters.values()
        if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)
    ]
    if "seed" in columns:
        raise ValueError(
            "seed is no axis: give the seeds as seeds=…, every setting gets all of them."
        )
    unknown = [] if takes_all else [each for each in columns if each not in known]
    if unknown:
        raise ValueError(
            f"{name} has no argument {', '.join(map(repr, unknown))}: it takes {', '.join(known)}."
        )
    missing = [
        each
        for each in known
        if parameters[each].default is inspect.Parameter.empty
        and each not in columns
        and each != "seed"
    ]
    if missing:
        raise ValueError(
            f"{name} needs {', '.join(map(repr, missing))}: give values for each, such as "
            f"{missing[0]}=[…]. {_in_table(missing[0]) if missing[0] in options else ''}".rstrip()
        )
    takes_seed = "seed" in known or takes_all
    if not takes_seed and not by_seed and seeds > 1:
        raise ValueError(
            f"{name} has no argument 'seed', so its {seeds} seeds would give the same run: add one, and "
            "draw from jax.random.key(seed)."
        )
    return takes_seed
