"""Many training runs in one compiled call: over hyperparameters, and over seeds."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import itertools
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from . import _check, maths, training
from ._table import Table, counted, shown, with_spread
from .distributions import Distribution

# ---------------------------------------------------------------------------------------------------
# The result


@dataclass(frozen=True, repr=False, eq=False)
class Sweep:
    """What `sweep` returns: every setting, what each run gave, and which setting was best.

    settings: from the name of each axis to its column, one value per setting.
    seeds: the seeds that every setting ran with.
    objective: what the settings are judged by, in NumPy, settings x seeds; inf or NaN where a run
      diverged.
    outputs: what train returned, in NumPy arrays with two more axes in front, settings x seeds.
    maximize: whether more is better.
    name: what the objective is called.
    """

    settings: dict[str, Any]
    seeds: np.ndarray
    objective: np.ndarray
    outputs: Any
    maximize: bool = False
    name: str = "objective"

    @property
    def diverged(self) -> np.ndarray:
        """How many seeds of each setting gave an infinite or no number."""
        return np.sum(~np.isfinite(self.objective), axis=1)

    @property
    def mean(self) -> np.ndarray:
        """The mean objective of each setting over its seeds; NaN if one of them diverged."""
        finite = np.where(np.isfinite(self.objective), self.objective, np.nan)
        return np.mean(finite.astype(np.float64), axis=1)

    @property
    def deviation(self) -> np.ndarray:
        """The standard deviation over the seeds; NaN for a single one."""
        if len(self.seeds) < 2:
            return np.full(len(self.objective), np.nan)
        finite = np.where(np.isfinite(self.objective), self.objective, np.nan)
        return np.std(finite.astype(np.float64), axis=1, ddof=1)

    def ranking(self) -> np.ndarray:
        """The settings by their number, the best mean first; those with a diverged seed last."""
        score = -self.mean if self.maximize else self.mean
        return np.lexsort((np.where(np.isnan(score), np.inf, score), self.diverged > 0))

    def setting(self, index: int) -> dict[str, Any]:
        """The setting of this number, as arguments: `aj.adam(**result.setting(3))`."""
        return {name: plain(column[index]) for name, column in self.settings.items()}

    def best(self) -> dict[str, Any]:
        """The setting with the best mean objective, as arguments: `aj.adam(**result.best())`.

        Raises:
          ValueError: if every setting has a seed that diverged.
        """
        first = int(self.ranking()[0])
        if self.diverged[first]:
            raise ValueError(
                f"each of the {len(self.objective)} settings has a seed that diverged (the fewest: "
                f"{self.diverged.min()} of {len(self.seeds)}): there is no best one. Look at "
                "result.table(), and try smaller learning rates."
            )
        return self.setting(first)

    def table(self, rows: int | None = 10) -> Table:
        """The settings, best first, with the mean ± standard deviation over the seeds.

        rows: how many to show; None for all.
        """
        order = self.ranking()[:rows]
        mean, deviation, diverged = self.mean, self.deviation, self.diverged
        cells = []
        for i in order:
            text = with_spread(float(mean[i]), float(deviation[i]))
            if diverged[i]:
                text = f"{diverged[i]} of {len(self.seeds)} diverged"
            cells.append((*(shown(column[i]) for column in self.settings.values()), text))
        heading = self.name if len(self.seeds) == 1 else f"{self.name}, mean ± deviation"
        caption = (
            f"{counted(len(self.objective), 'setting')}, {counted(len(self.seeds), 'seed')} each"
        )
        if np.any(diverged):
            failed = counted(int(np.sum(diverged > 0)), "setting")
            caption += f"; {failed} with a seed that diverged"
        if len(order) < len(self.objective):
            caption += f"; the best {len(order)} are shown"
        return Table((*self.settings, heading), tuple(cells), caption + ".")

    def __repr__(self) -> str:
        return repr(self.table())

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()

    def plot(self, axis: str | None = None, *, by: str | None = None, ax: Any = None) -> Any:
        """The objective against one axis, with its spread over the seeds and what diverged marked.

        axis: the axis to draw against; None for "learning_rate", or the first axis of numbers.
        by: an axis that gets a line per value; None for the one other axis of few values. Of the axes
          that are left, each point takes the best setting.
        ax: matplotlib's Axes to draw into; None for new ones.

        Returns the Axes.
        """
        from . import plotting

        several = [name for name, column in self.settings.items() if _distinct(column) > 1]
        numeric = [name for name in several if _is_numeric(self.settings[name])]
        if axis is None:
            axis = "learning_rate" if "learning_rate" in numeric else next(iter(numeric), None)
        if axis is None:
            raise ValueError(
                "no axis has several numbers to draw the objective against: "
                f"{f'several values have {several}' if several else 'there is one setting'}."
            )
        if axis not in self.settings:
            raise ValueError(f"axis={axis!r} is no axis: this sweep has {list(self.settings)}.")
        others = [name for name in several if name != axis]
        if by is None and len(others) == 1 and _distinct(self.settings[others[0]]) <= 7:
            by = others[0]
        if by is not None and (by not in self.settings or by == axis):
            raise ValueError(f"by={by!r} is no other axis: this sweep has {list(self.settings)}.")
        position = {int(i): place for place, i in enumerate(self.ranking())}
        groups: dict[str, dict[Any, int]] = {}
        for i in range(len(self.objective)):
            line = groups.setdefault(
                "" if by is None else f"{by}={shown(self.settings[by][i])}", {}
            )
            x = plain(self.settings[axis][i])
            if x not in line or position[i] < position[line[x]]:
                line[x] = i
        for label, line in groups.items():
            chosen = [line[x] for x in sorted(line)]
            ax = plotting.sensitivity(
                np.array(sorted(line)),
                self.objective[chosen],
                name=axis,
                label=label or None,
                maximize=self.maximize,
                ax=ax,
            )
        ax.set_ylabel(self.name)
        return ax

    def to_pandas(self) -> Any:
        """A `pandas.DataFrame` with one row per run: its setting, its seed, its numbers."""
        try:
            import pandas
        except ImportError:
            raise ImportError("to_pandas needs pandas: pip install pandas.") from None
        count = len(self.seeds)
        columns: dict[str, Any] = {
            name: [plain(value) for value in column for _ in range(count)]
            for name, column in self.settings.items()
        }
        columns["seed"] = np.tile(self.seeds, len(self.objective))
        columns["objective"] = self.objective.ravel()
        if isinstance(self.outputs, Mapping):
            for name, value in self.outputs.items():
                if isinstance(value, np.ndarray) and value.ndim == 2 and name not in columns:
                    columns[name] = value.ravel()
        return pandas.DataFrame(columns)


def plain(value: Any) -> Any:
    """A Python number for one of NumPy's; everything else as it is."""
    return value.item() if isinstance(value, np.generic) else value


def _is_numeric(column: Any) -> bool:
    return isinstance(column, np.ndarray) and column.dtype.kind in "iuf"


def _distinct(column: Any) -> int:
    return len({shown(value) if not isinstance(value, np.generic) else value for value in column})


# ---------------------------------------------------------------------------------------------------
# The sweep


def sweep(
    train: Callable[..., Any],
    *,
    seeds: int | Sequence[int] = 1,
    table: Mapping[str, Any] | None = None,
    static: Sequence[str] = (),
    objective: str | Callable[[Any], Any] | None = None,
    maximize: bool = False,
    step: Callable[[Any, Any], tuple[Any, Any]] | None = None,
    batches: Iterable[Any] | None = None,
    batch_size: int | None = None,
    memory: float | None = None,
    progress: bool | None = None,
    **axes: Any,
) -> Sweep:
    """Trains with every setting and every seed, in one compiled call.

    The runs are the members of one `jax.vmap`, shared between the devices that there are, in as many
    pieces as memory asks for. Numbers are data: all of them are one compilation. Strings, functions,
    None, True and False choose code: each is a compilation, and a loop around the rest. train is traced
    in every call, and compiled only if it has become another program. Since its numbers are traced, an
    optimizer cannot refuse one that is out of range.

    Args:
      train: `train(learning_rate, …, seed)`, a JAX function from a setting to its result: a loss, a
        curve of losses, or a dict of such. It needs no `seed` if one run per setting is enough. With
        `step`, it makes a `TrainState`. What takes XLA long to compile on a CPU are random numbers: a
        single draw for all weights is quicker than one for each array.
      seeds: how many runs each setting gets, with `seed` from 0; or the seeds themselves.
      table: settings in columns of one length, such as those of `draw`. Every row meets every
        combination of the axes.
      static: names of axes whose values train needs as Python values, to choose a shape by or to
        branch on.
      objective: what to judge by: the name of an entry of the dict that train returns, or a function
        from what it returns to a number. None for "loss", or for the one array that there is. Of a
        curve, the last value.
      maximize: True where more is better.
      step: what `train_step` returns: then the run is one step per batch, and its result the metrics.
      batches: the batches for `step`, the same for every run.
      batch_size: how many runs at a time; None for as many as `memory` holds. On a CPU each core takes
        its share of them; it is no quicker with more than 64, and a tenth of the runs is enough for it,
        so that the progress bar moves.
      memory: bytes per device to stay within, by XLA's own account; None for three quarters of what is
        free.
      progress: True for a progress bar, False for none; None for one where tqdm is installed and the
        output is a terminal.
      **axes: the values of each argument of train, in one dimension: every combination is run. A
        single value is the same for all runs.

    Returns:
      A `Sweep`: `.best()`, `.table()`, `.plot()`, `.objective`, `.outputs`. A run that diverges is
      kept as such.

    Raises:
      ValueError, TypeError: before anything is run, for an argument that train does not have or does
        not get, for columns of different lengths, for a train that needs an axis to be static, by its
        name, and for a setting that needs more memory than there is.

    Example:
      >>> import adaptive_jax as aj, jax, jax.numpy as jnp, optax
      >>> def train(learning_rate, seed):
      ...     tx, w = aj.sgd(learning_rate), jax.random.normal(jax.random.key(seed), (3,))
      ...     state = tx.init(w)
      ...     for _ in range(5):
      ...         updates, state = tx.update(w, state)
      ...         w = optax.apply_updates(w, updates)
      ...     return jnp.sum(w**2) / 2
      >>> result = aj.sweep(train, learning_rate=[0.1, 0.5, 1.0, 3.0], seeds=2)
      >>> result.best()
      {'learning_rate': 1.0}
    """
    _check_options(batch_size, memory, maximize, step, batches)
    stacked = None if batches is None else _stack(batches)
    seed_values = _seeds(seeds)
    columns, is_static = _columns(table, axes, static)
    takes_seed = _check_arguments(train, columns, len(seed_values))
    plans = list(_plans(train, step, objective, takes_seed, columns, is_static, seed_values))
    traced = [_trace(plan, stacked) for plan in plans]
    _check_outlines([each.outline for each in traced], plans)
    settings, count = sum(len(plan.rows) for plan in plans), len(seed_values)
    flat_outline, treedef = jax.tree.flatten(traced[0].outline)
    _check_results(flat_outline, settings * count)
    programs = [
        _program(each, plan, stacked, batch_size, memory)
        for each, plan in zip(traced, plans, strict=True)
    ]

    results = [np.empty((settings * count, *each.shape), each.dtype) for each in flat_outline]
    with training.progress_bar(progress, settings * count, unit="run") as bar:
        for plan, program in zip(plans, programs, strict=True):
            places = np.add.outer(np.array(plan.rows) * count, np.arange(count)).ravel()
            for piece in program.pieces(plan, stacked):
                leaves = jax.tree.leaves(piece)
                here, places = np.split(places, [len(leaves[0])])
                for result, leaf in zip(results, leaves, strict=True):
                    result[here] = leaf
                bar.update(len(here))
    results = [result.reshape(settings, count, *result.shape[1:]) for result in results]
    judged, outputs = jax.tree.unflatten(treedef, results)
    return Sweep(columns, seed_values, judged, outputs, maximize, _name(objective, outputs))


_OPTIONS = frozenset(inspect.signature(sweep).parameters) - {"axes"}


def _check_options(batch_size: Any, memory: Any, maximize: Any, step: Any, batches: Any) -> None:
    if batch_size is not None and (
        not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1
    ):
        raise ValueError(
            f"batch_size={batch_size!r} must be a whole number of runs, 1 or more, or None. "
            f"{_in_table('batch_size')}"
        )
    if memory is not None and (not isinstance(memory, (int, float)) or not memory > 0):
        raise ValueError(f"memory={memory!r} must be a number of bytes above 0, or None.")
    if not isinstance(maximize, bool):
        raise TypeError(f"maximize={maximize!r} must be True or False.")
    if step is not None and not callable(step):
        raise TypeError(f"step={step!r:.200} must be what train_step returns. {_in_table('step')}")
    if (step is None) != (batches is None):
        raise ValueError("step and batches go together: give both, or neither.")


def _in_table(name: str) -> str:
    """What to do about an argument of train with the name of an option."""
    return f'(Values for an argument of train of this name go in a table: table={{"{name}": […]}}.)'


def _seeds(seeds: Any) -> np.ndarray:
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


def _stack(batches: Iterable[Any]) -> Any:
    every = list(batches)
    if not every:
        raise ValueError("batches has no batch in it.")
    try:
        return jax.tree.map(lambda *x: np.stack(x), *jax.device_get(every))
    except ValueError as error:
        raise ValueError(
            f"batches must all have one structure and one shape, to be steps of one program: {error}"
        ) from None


def _columns(
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
    return columns, {name: not _is_numeric(column) for name, column in columns.items()}


def _axis(name: str, values: Any, static: Sequence[str]) -> Any:
    """An array of numbers, or a list of what chooses code."""
    if isinstance(values, Distribution):
        raise TypeError(
            f"{name}={values!r} is a distribution: draw from it, table=aj.draw(64, {name}={values!r})."
        )
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(values)):
        raise TypeError(
            f"{name} is {_check.describe(values)} that is being traced: call sweep outside of jit, vmap "
            "and grad."
        )
    if isinstance(values, (str, Mapping)) or callable(values) or not np.iterable(values):
        values = [values]
    try:
        array = np.asarray(values if hasattr(values, "dtype") else list(values))
    except ValueError:  # Lists of different lengths, say.
        return list(values)
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


def _numbered(column: Sequence[Any]) -> list[int]:
    """A number for each value, the same for equal ones, which need not hash."""
    known: list[_Choices] = []
    numbers = []
    for value in column:
        choice = _Choices({"": value})
        if choice not in known:
            known.append(choice)
        numbers.append(known.index(choice))
    return numbers


def _check_arguments(train: Callable[..., Any], columns: Mapping[str, Any], seeds: int) -> bool:
    """Raises unless train takes these arguments, and gets all that it needs. Whether it takes a seed."""
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
            f"{missing[0]}=[…]. {_in_table(missing[0]) if missing[0] in _OPTIONS else ''}".rstrip()
        )
    takes_seed = "seed" in known or takes_all
    if not takes_seed and seeds > 1:
        raise ValueError(
            f"{name} has no argument 'seed', so its {seeds} seeds would give the same run: add one, and "
            "draw from jax.random.key(seed)."
        )
    return takes_seed


class _Choices:
    """Arguments that choose code: compared by their values, which need not hash."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.values = values

    def __hash__(self) -> int:
        return hash(tuple(self.values))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Choices) or self.values.keys() != other.values.keys():
            return False
        return all(_same(self.values[name], other.values[name]) for name in self.values)

    def __str__(self) -> str:
        return ", ".join(f"{name}={shown(value)}" for name, value in self.values.items())


def _same(one: Any, other: Any) -> bool:
    try:
        return one is other or (type(one) is type(other) and bool(one == other))
    except (TypeError, ValueError):  # Arrays, say.
        return False


def _name(objective: Any, outputs: Any) -> str:
    """What the objective is called: its entry in the outputs, or the name of its function."""
    if isinstance(objective, str):
        return objective
    if objective is not None:
        name = getattr(objective, "__name__", "<lambda>")
        return "objective" if name == "<lambda>" else name
    if isinstance(outputs, Mapping) and len(outputs) == 1:
        return str(next(iter(outputs)))
    return "loss" if isinstance(outputs, Mapping) and "loss" in outputs else "objective"


@dataclass(frozen=True)
class _Run:
    """One training run, a function of its numbers, and what it is judged by."""

    train: Callable[..., Any]
    step: Callable[..., Any] | None
    objective: str | Callable[[Any], Any] | None
    choices: _Choices
    takes_seed: bool

    def __call__(self, numbers: dict[str, Any], seed: Any, batches: Any) -> tuple[Any, Any]:
        """The objective, and what train returned."""
        arguments = {**numbers, **self.choices.values}
        if self.takes_seed:
            arguments["seed"] = seed
        result = self.train(**arguments)
        if self.step is not None:
            if not isinstance(result, training.TrainState):
                raise TypeError(
                    f"with step, train makes a TrainState, and returned {type(result).__name__}: "
                    "return aj.TrainState.create(params, tx)."
                )
            result = self._metrics(result, batches)
        outputs = jax.tree.map(jnp.asarray, result)
        return self._judged(outputs), outputs

    def _metrics(self, state: training.TrainState, batches: Any) -> Any:
        """One step per batch. The optimizer does not change, and keeps numbers of Python such."""
        assert self.step is not None
        step, tx = self.step, state.tx

        def body(state: training.TrainState, batch: Any) -> Any:
            state, metrics = step(state.replace(tx=tx), batch)
            return dataclasses.replace(state, tx=None), metrics

        return jax.lax.scan(body, dataclasses.replace(state, tx=None), batches)[1]

    def _judged(self, outputs: Any) -> jax.Array:
        value = outputs
        if callable(self.objective):
            value = self.objective(outputs)
            value = jnp.asarray(value) if isinstance(value, (int, float, np.number)) else value
        elif isinstance(outputs, Mapping):
            name = _name(self.objective, outputs)
            if name not in outputs:
                raise ValueError(
                    f"objective={self.objective!r}, and train returns the entries {list(outputs)}: name "
                    "the one to judge by, or give a function of them."
                )
            value = outputs[name]
        elif self.objective is not None:
            raise ValueError(
                f"objective={self.objective!r} names an entry, and train returns no dict but "
                f"{_what(outputs)}: leave it out, or give a function of what train returns."
            )
        if (
            not hasattr(value, "shape")
            or value.ndim > 1
            or value.size == 0
            or value.dtype.kind == "c"
        ):
            if isinstance(value, training.TrainState):
                remedy = "give step=aj.train_step(…) and batches=…"
            elif isinstance(value, list):
                remedy = "return jnp.stack(losses)"
            else:
                remedy = "give objective, the name of an entry or a function of what train returns"
            raise ValueError(
                f"a run is judged by one real number or a curve of them, and this is {_what(value)}: "
                f"{remedy}."
            )
        return (value[-1] if value.ndim else value).astype(maths.compute_dtype(value.dtype))


def _what(value: Any) -> str:
    return _check.describe(value) if hasattr(value, "shape") else f"a {type(value).__name__}"


@dataclass(frozen=True)
class _Plan:
    """The runs of one program: which settings, their numbers and their seeds, one entry per run."""

    rows: list[int]
    run: _Run
    numbers: dict[str, np.ndarray]
    seeds: np.ndarray

    def piece(self, start: int, size: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """The numbers and seeds of some runs. After the last one it comes again: a size, a program."""
        places = np.minimum(np.arange(start, start + size), len(self.seeds) - 1)
        return {name: values[places] for name, values in self.numbers.items()}, self.seeds[places]


def _plans(
    train: Callable[..., Any],
    step: Callable[..., Any] | None,
    objective: str | Callable[[Any], Any] | None,
    takes_seed: bool,
    columns: Mapping[str, Any],
    is_static: Mapping[str, bool],
    seeds: np.ndarray,
) -> Iterator[_Plan]:
    """One plan for each combination of the values that choose code."""
    length = len(next(iter(columns.values()))) if columns else 1
    numbers = {name: _numbered(columns[name]) for name in columns if is_static[name]}
    groups: dict[tuple[int, ...], list[int]] = {}
    for row in range(length):
        groups.setdefault(tuple(each[row] for each in numbers.values()), []).append(row)
    for rows in groups.values():
        choices = _Choices({name: columns[name][rows[0]] for name in numbers})
        varied = {
            name: np.repeat(column[rows], len(seeds))
            for name, column in columns.items()
            if not is_static[name]
        }
        run = _Run(train, step, objective, choices, takes_seed)
        yield _Plan(rows, run, varied, np.tile(seeds, len(rows)))


class _Traced:
    """A run as JAX traced it, with the arrays that it closes over as arguments of their own.

    Traced in each call, since train may have changed by what it reads: a global, or another cell of a
    notebook. Equal to another that is the same program, and so compiled once.
    """

    def __init__(self, jaxpr: Any, outline: Any, arguments: Any) -> None:
        self.jaxpr, self.constants, self.outline = jaxpr.jaxpr, jaxpr.consts, outline
        self.treedef = jax.tree.structure(outline)
        lowered = jax.jit(lambda *every: self(*every)).lower(self.constants, *arguments)
        self.program = lowered.as_text(), self.treedef

    def __call__(self, constants: Any, *arguments: Any) -> Any:
        run = jaxpr_as_fun(ClosedJaxpr(self.jaxpr, constants))
        return jax.tree.unflatten(self.treedef, run(*jax.tree.leaves(arguments)))

    def __hash__(self) -> int:
        return hash(self.program)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Traced) and self.program == other.program


def _trace(plan: _Plan, batches: Any) -> _Traced:
    """One run, traced: nothing is compiled."""
    varied, run = plan.numbers, plan.run

    def trace(concrete: Sequence[str], seed: int | None = None) -> tuple[Any, ...]:
        known = {name: plain(varied[name][0]) for name in concrete}
        traced = {
            name: jax.ShapeDtypeStruct((), jax.dtypes.canonicalize_dtype(values.dtype))
            for name, values in varied.items()
            if name not in known
        }
        any_seed = jax.ShapeDtypeStruct((), np.int32)
        arguments = traced, any_seed, jax.tree.map(jax.typeof, batches)

        def one(numbers: Any, traced_seed: Any, batches: Any) -> Any:
            return run({**numbers, **known}, traced_seed if seed is None else seed, batches)

        return *jax.make_jaxpr(one, return_shape=True)(*arguments), arguments

    def works(*arguments: Any) -> bool:
        try:
            trace(*arguments)
        except Exception:
            return False
        return True

    try:
        traced = trace(())
    except Exception as error:
        needed = list(varied)
        because = f"({type(error).__name__}: {str(error).strip().partition(chr(10))[0]})"
        if not works(needed):
            if run.takes_seed and works(needed, 0):
                raise ValueError(
                    "train needs the value of its seed while it is traced: draw random numbers from "
                    f"jax.random.key(seed), not with NumPy. {because}"
                ) from error
            raise
        for name in varied:
            fewer = [each for each in needed if each != name]
            needed = fewer if works(fewer) else needed
        values = ", ".join(f"{name!r}" for name in needed)
        instead = ""
        if isinstance(error, jax.errors.TracerBoolConversionError):
            instead = ", or write the branch with jnp.where"
        elif isinstance(error, jax.errors.TracerArrayConversionError):
            instead = ", or write jnp where it is np: what NumPy computes is no part of a compiled program"
        raise ValueError(
            f"train needs the value of {values} while it is traced, to choose a shape by or to branch "
            f"on: give static=({values},), which compiles once per value{instead}. {because}"
        ) from error
    return _Traced(*traced)


def _check_outlines(outlines: Sequence[Any], plans: Sequence[_Plan]) -> None:
    for outline, plan in zip(outlines, plans, strict=True):
        if outline != outlines[0]:
            first, this = (
                jax.tree.map(_check.describe, each[1]) for each in (outlines[0], outline)
            )
            raise ValueError(
                f"train returns {first} with {plans[0].run.choices}, and {this} with {plan.run.choices}: "
                "results in one table must have one shape. Return what is common to all, or sweep each by "
                "itself."
            )


def _check_results(outlines: Sequence[Any], runs: int) -> None:
    needed = runs * sum(math.prod(each.shape) * each.dtype.itemsize for each in outlines)
    free = 0.75 * _free_host_bytes()
    if needed > free:
        raise ValueError(
            f"the results of {counted(runs, 'run')} would take {_shown_bytes(needed)} of the host's "
            f"memory, and {_shown_bytes(free)} are free: let train return less, such as losses and no "
            "parameters."
        )


@dataclass(frozen=True)
class _Program:
    """Compiled runs: how many in a call, and in how many threads it is called at once."""

    compiled: Any
    constants: Any
    size: int
    threads: int

    def pieces(self, plan: _Plan, batches: Any) -> Iterator[Any]:
        """The results of a plan's runs on the host, piece by piece, in order."""
        total = len(plan.seeds)
        if self.threads > 1:
            batches = jax.device_put(batches)

        def run(start: int, arguments: Any) -> Any:
            piece = jax.device_get(self.compiled(self.constants, *arguments, batches))
            return jax.tree.map(lambda x: x[: total - start], piece)

        starts = range(0, total, self.size)
        every = (plan.piece(start, self.size) for start in starts)
        if self.threads == 1:
            yield from map(run, starts, every)
            return
        with ThreadPoolExecutor(self.threads) as executor:
            # Here and not in the threads, which do not see `with jax.enable_x64():`.
            every = [jax.device_put(each) for each in every]
            try:
                yield from executor.map(run, starts, every)
            finally:
                executor.shutdown(cancel_futures=True)  # Ctrl-C waits for what runs, and no more.


def _program(
    traced: _Traced, plan: _Plan, batches: Any, batch_size: int | None, memory: float | None
) -> _Program:
    """The compiled runs, as many at a time as is quick and fits."""
    devices = jax.local_devices()
    mesh = Mesh(np.array(devices), ("runs",)) if len(devices) > 1 else None
    everywhere = devices[0] if mesh is None else NamedSharding(mesh, PartitionSpec())
    constants = jax.device_put(traced.constants, everywhere)
    budget = _free_bytes(devices) if memory is None else memory
    runs = len(plan.seeds)
    size, threads = min(batch_size or runs, runs), 1
    if devices[0].platform == "cpu":
        if mesh is None:
            # XLA runs a small network on one core, however many there are.
            threads = min(_cores(), size)
            size = size // threads if size < runs else -(-runs // threads)
        if batch_size is None:
            size = min(size, max(64 * len(devices), -(-runs // 10)))
    while True:
        per_device = -(-size // len(devices))
        size = per_device * len(devices)
        threads = min(threads, -(-runs // size))
        piece = plan.piece(0, size)
        compiled = _runs.lower(traced, mesh, constants, *piece, batches).compile()
        needed = _bytes(compiled)
        if needed * threads <= budget:
            return _Program(compiled, constants, size, threads)
        if batch_size is not None or (per_device == 1 and threads == 1):
            at_a_time = per_device * threads
            advice = (
                "give a smaller batch_size, or leave it out"
                if batch_size is not None and at_a_time > 1
                else "let train return less, or make the model or its batches smaller"
            )
            raise ValueError(
                f"{counted(at_a_time, 'run')} at a time would take {_shown_bytes(needed * threads)} of "
                f"memory per device, and {_shown_bytes(budget)} are "
                f"{'free' if memory is None else 'allowed by memory='}: {advice}."
            )
        fitting = int(0.95 * budget / threads / (needed / per_device))
        if threads > 1 and (fitting == 0 or per_device == 1):
            threads = 1
        else:
            size = max(1, min(fitting, per_device - 1)) * len(devices)


def _cores() -> int:
    """The cores of a CPU that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # Not on macOS and Windows.
        return os.cpu_count() or 1


@functools.partial(jax.jit, static_argnums=(0, 1))
def _runs(
    run: _Traced, mesh: Mesh | None, constants: Any, numbers: Any, seeds: Any, batches: Any
) -> Any:
    """Many runs at once. Jitted here, once: the same sweep, called again, compiles nothing."""
    many = jax.vmap(run, in_axes=(None, 0, 0, None))
    if mesh is None:
        return many(constants, numbers, seeds, batches)
    split, everywhere = PartitionSpec("runs"), PartitionSpec()
    return jax.shard_map(
        many,
        mesh=mesh,
        in_specs=(everywhere, split, split, everywhere),
        out_specs=split,
        check_vma=False,  # Runs know nothing of each other.
    )(constants, numbers, seeds, batches)


def _bytes(compiled: Any) -> int:
    """What a program needs on each device, by XLA's own account."""
    analysis = compiled.memory_analysis()
    if analysis is None:
        return 0
    return (
        analysis.temp_size_in_bytes
        + analysis.argument_size_in_bytes
        + analysis.output_size_in_bytes
        - analysis.alias_size_in_bytes
    )


def _free_bytes(devices: Sequence[Any]) -> float:
    """Three quarters of what is free on each device; no limit where nobody says."""
    stats = devices[0].memory_stats() or {}
    if "bytes_limit" not in stats:
        return 0.75 * _free_host_bytes() / len(devices)
    return 0.75 * min(
        each["bytes_limit"] - each.get("bytes_in_use", 0)
        for each in (device.memory_stats() for device in devices)
    )


def _free_host_bytes() -> float:
    try:
        with open("/proc/meminfo") as file:
            lines = dict(line.split(":") for line in file)
        return 1024 * int(lines["MemAvailable"].split()[0])
    except (OSError, KeyError):
        try:
            return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        except (AttributeError, ValueError, OSError):
            return math.inf


def _shown_bytes(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.3g} {unit}"
        count /= 1000
    raise AssertionError
