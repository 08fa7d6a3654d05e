"""Many training runs in one compiled call: over hyperparameters, and over seeds."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from ..._core import arguments, pytrees
from ..progress import progress_bar
from . import runs
from .distributions import Distribution
from .table import Table, counted, plain, shown, with_spread

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
        order = self.ranking()[: None if rows is None else arguments.whole("rows", rows, 0)]
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
        from ... import plotting

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
    batch_size = _check_options(batch_size, memory, maximize, step, batches)
    seed_values = _seeds(seeds)
    columns, is_static = _columns(table, axes, static)
    takes_seed = _check_arguments(train, columns, len(seed_values))
    # Runs have a mesh of their own: that of `with jax.set_mesh(mesh):` is not theirs.
    with jax.set_mesh(_NO_MESH):
        stacked = None if batches is None else _stack(batches)
        plans = list(_plans(train, step, objective, takes_seed, columns, is_static, seed_values))
        traced = [runs.trace(plan, stacked) for plan in plans]
        runs.check_outlines([each.outline for each in traced], plans)
        settings, count = sum(len(plan.rows) for plan in plans), len(seed_values)
        flat_outline, treedef = jax.tree.flatten(traced[0].outline)
        runs.check_results(flat_outline, settings * count)
        programs = [
            runs.program(each, plan, stacked, batch_size, memory)
            for each, plan in zip(traced, plans, strict=True)
        ]

        results = [np.empty((settings * count, *each.shape), each.dtype) for each in flat_outline]
        with progress_bar(progress, settings * count, unit="run") as bar:
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
        return Sweep(
            columns,
            seed_values,
            judged,
            outputs,
            maximize,
            runs.objective_name(objective, outputs),
        )


_NO_MESH = jax.sharding.Mesh(np.empty((), object), ())  # None is one only since jax 0.10.


_OPTIONS = frozenset(inspect.signature(sweep).parameters) - {"axes"}


def _check_options(
    batch_size: Any, memory: Any, maximize: Any, step: Any, batches: Any
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
    return batch_size


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
            f"{name} is {pytrees.describe(values)} that is being traced: call sweep outside of jit, vmap "
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
    known: list[runs.Choices] = []
    numbers = []
    for value in column:
        choice = runs.Choices({"": value})
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


def _plans(
    train: Callable[..., Any],
    step: Callable[..., Any] | None,
    objective: str | Callable[[Any], Any] | None,
    takes_seed: bool,
    columns: Mapping[str, Any],
    is_static: Mapping[str, bool],
    seeds: np.ndarray,
) -> Iterator[runs.Plan]:
    """One plan for each combination of the values that choose code."""
    length = len(next(iter(columns.values()))) if columns else 1
    numbers = {name: _numbered(columns[name]) for name in columns if is_static[name]}
    groups: dict[tuple[int, ...], list[int]] = {}
    for row in range(length):
        groups.setdefault(tuple(each[row] for each in numbers.values()), []).append(row)
    for rows in groups.values():
        choices = runs.Choices({name: columns[name][rows[0]] for name in numbers})
        varied = {
            name: np.repeat(column[rows], len(seeds))
            for name, column in columns.items()
            if not is_static[name]
        }
        run = runs.Run(train, step, objective, choices, takes_seed)
        yield runs.Plan(rows, run, varied, np.tile(seeds, len(rows)))
