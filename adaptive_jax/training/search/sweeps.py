"""Many training runs in one compiled call: over hyperparameters, and over seeds."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from ..agreement import check_alike, together
from ..progress import progress_bar
from . import runs, shares
from .columns import (
    are_by_seed,
    check_arguments,
    checked_options,
    checked_seeds,
    columns_of,
    stacked_batches,
)
from .result import Sweep, is_numeric


def sweep(
    train: Callable[..., Any],
    *,
    seeds: int | Sequence[int] = 1,
    table: Mapping[str, Any] | None = None,
    static: Sequence[str] = (),
    objective: str | Callable[[Any], Any] | None = None,
    maximize: bool = False,
    step: Callable[[Any, Any], tuple[Any, Any]] | None = None,
    batches: Iterable[Any] | Callable[[int], Iterable[Any]] | None = None,
    evaluate: Callable[[Any], Any] | None = None,
    keep_params: bool = False,
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

    With several processes all of them call it, with the same arguments. Each does a share of the runs on
    its own devices, and all return the same result. An error in one of them ends the call in all.

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
        from what it returns to a number. None for "evaluation" with `evaluate`, else for "loss", or
        for the one array that there is. Of a curve, the last value.
      maximize: True where more is better.
      step: what `train_step` returns: then the run is one step per batch, and its result the metrics.
      batches: the batches for `step`, the same for every run; or a function from a seed, a Python int, to
        the batches of its runs, for an order of the data that differs as well:
        `lambda seed: data[np.random.default_rng(seed).permutation(len(data)).reshape(-1, 32)]`. Those of
        all seeds are in memory at once; where that is too much, give the places in the data as batches,
        and let the loss look them up.
      evaluate: a function of the parameters, such as the loss of held-out data or an `aj.Evaluation`, with
        `step`: the metric "evaluation" is what it gives after the last step, at the parameters to evaluate
        with, `TrainState.eval_params()`. The loss of a step is that of the parameters that are trained.
        Data that settings are selected by are not those to report: keep a third part.
      keep_params: True to keep these parameters, with `step`: `outputs["params"]`, with settings and seeds
        in front of each array.
      batch_size: how many runs at a time; None for as many as `memory` holds. On a CPU each core takes
        its share of them; it is no quicker with more than 64, and a tenth of the runs is enough for it,
        so that the progress bar moves.
      memory: bytes per device to stay within, by XLA's own account; None for three quarters of what is
        free.
      progress: True for a progress bar, False for none; None for one where tqdm is installed and the
        output is a terminal. Of several processes, the first has one, for its share.
      **axes: the values of each argument of train, in one dimension: every combination is run. A
        single value is the same for all runs.

    Returns:
      A `Sweep`: `.best()`, and `.best(confirm=10)` with fresh seeds, `.table()`, `.plot()`, `.save(path)`,
      `.objective`, `.outputs`. A run that diverges is kept as such.

    Raises:
      ValueError, TypeError: before anything is run, for an argument that train does not have or does
        not get, for columns of different lengths, for a train that needs an axis to be static, by its
        name, and for a setting that needs more memory than there is. With several processes, for an
        argument, a program or an array it reads that is not the same in all of them, by its name, and for
        an array on devices of several.
      RuntimeError: for what failed in another process.

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
    with together("sweep"):
        if batches is not None and not are_by_seed(batches) and np.iterable(batches):
            batches = [*batches]  # They may be needed again.
        prepared = prepare(
            train,
            axes,
            seeds=seeds,
            table=table,
            static=static,
            objective=objective,
            maximize=maximize,
            step=step,
            batches=batches,
            evaluate=evaluate,
            keep_params=keep_params,
            batch_size=batch_size,
            memory=memory,
        )
        facts = prepared.facts() if jax.process_count() > 1 else {}
    check_alike("The sweep", facts)

    columns = prepared.columns

    def again(index: int, seeds: Sequence[int]) -> Sweep:
        return sweep(
            train,
            seeds=seeds,
            table={name: column[index : index + 1] for name, column in columns.items()},
            static=[name for name, column in columns.items() if not is_numeric(column)],
            objective=objective,
            maximize=maximize,
            step=step,
            batches=batches,
            evaluate=evaluate,
            keep_params=keep_params,
            batch_size=batch_size,
            memory=memory,
            progress=progress,
        )

    result = prepared.run(progress)
    return dataclasses.replace(result, again=again) if prepared.depends_on_seed else result


@dataclass(frozen=True, eq=False)
class Prepared:
    """A sweep whose arguments are checked, and whose runs are traced: nothing is compiled.

    batches: stacked.
    depends_on_seed: whether another seed may be another result.
    """

    columns: dict[str, Any]
    seeds: np.ndarray
    objective: str | Callable[[Any], Any] | None
    maximize: bool
    batches: Any
    batch_size: int | None
    memory: float | None
    plans: list[runs.Plan]
    traced: list[runs.Traced]
    depends_on_seed: bool

    def facts(self) -> dict[str, str]:
        """What it is, to be compared between processes."""
        judged = {"maximize": self.maximize, "objective": self.objective}
        return shares.facts(self.columns, self.seeds, judged, self.batches, self.plans, self.traced)

    def run(self, progress: bool | None) -> Sweep:
        """All runs. Of several processes each does a share."""
        count = len(self.seeds)
        settings = sum(len(plan.rows) for plan in self.plans)
        places = np.concatenate(
            [
                np.add.outer(np.array(plan.rows) * count, np.arange(count)).ravel()
                for plan in self.plans
            ]
        )
        divided = shares.shares(len(places))
        own = divided[jax.process_index()]
        flat_outline, treedef = jax.tree.flatten(self.traced[0].outline)
        results = [np.empty((len(places), *each.shape), each.dtype) for each in flat_outline]
        with jax.set_mesh(_NO_MESH), shares.apart("sweep") as look:
            work = [
                (plan, runs.program(each, plan, self.batches, self.batch_size, self.memory))
                for each, plan in _within(own, self.traced, self.plans)
            ]
            with progress_bar(progress, len(own), unit="run") as bar:
                done = own.start
                for plan, program in work:
                    for piece in program.pieces(plan, self.batches):
                        look()
                        leaves = jax.tree.leaves(piece)
                        here = places[done : done + len(leaves[0])]
                        for result, leaf in zip(results, leaves, strict=True):
                            result[here] = leaf
                        done += len(here)
                        bar.update(len(here))
        for result in results:
            shares.hand_over(result, [places[each.start : each.stop] for each in divided])
        results = [result.reshape(settings, count, *result.shape[1:]) for result in results]
        judged, outputs = jax.tree.unflatten(treedef, results)
        return Sweep(
            self.columns,
            self.seeds,
            judged,
            outputs,
            self.maximize,
            runs.objective_name(self.objective, outputs),
        )


def prepare(
    train: Callable[..., Any],
    axes: Mapping[str, Any],
    *,
    seeds: int | Sequence[int] = 1,
    table: Mapping[str, Any] | None = None,
    static: Sequence[str] = (),
    objective: str | Callable[[Any], Any] | None = None,
    maximize: bool = False,
    step: Callable[[Any, Any], tuple[Any, Any]] | None = None,
    batches: Iterable[Any] | Callable[[int], Iterable[Any]] | None = None,
    evaluate: Callable[[Any], Any] | None = None,
    keep_params: bool = False,
    batch_size: int | None = None,
    memory: float | None = None,
) -> Prepared:
    """Raises what `sweep` raises before it compiles. The arguments are those of it."""
    batch_size = checked_options(batch_size, memory, maximize, step, batches, evaluate, keep_params)
    by_seed = are_by_seed(batches)
    objective = runs.EVALUATION if objective is None and evaluate is not None else objective
    seed_values = checked_seeds(seeds)
    columns, is_static = columns_of(table, axes, static)
    takes_seed = check_arguments(train, columns, len(seed_values), _OPTIONS, by_seed)
    # Runs have a mesh of their own: that of `with jax.set_mesh(mesh):` is not theirs.
    with jax.set_mesh(_NO_MESH):
        stacked = None if batches is None else stacked_batches(batches, seed_values)
        # What chooses code is not known yet.
        run = runs.Run(train, step, evaluate, keep_params, objective, runs.Choices({}), takes_seed)
        plans = list(_plans(run, columns, is_static, seed_values))
        traced = [runs.trace(plan, stacked) for plan in plans]
    outlines = [each.outline for each in traced]
    runs.check_outlines(outlines, plans)
    runs.check_results(jax.tree.leaves(outlines[0]), sum(len(plan.seeds) for plan in plans))
    return Prepared(
        columns,
        seed_values,
        objective,
        maximize,
        stacked,
        batch_size,
        memory,
        plans,
        traced,
        takes_seed or by_seed,
    )


def _within(
    own: range, traced: Sequence[runs.Traced], plans: Sequence[runs.Plan]
) -> Iterator[tuple[runs.Traced, runs.Plan]]:
    """What is traced, and its runs that are among these, in the order of all plans."""
    first = 0
    for each, plan in zip(traced, plans, strict=True):
        count = len(plan.seeds)
        start, stop = max(own.start - first, 0), min(own.stop - first, count)
        if start < stop:
            yield each, plan.part(start, stop)
        first += count


_NO_MESH = jax.sharding.Mesh(np.empty((), object), ())  # None is one only since jax 0.10.


_OPTIONS = frozenset(inspect.signature(sweep).parameters) - {"axes"}


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


def _plans(
    run: runs.Run,
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
        chosen = dataclasses.replace(run, choices=choices)
        yield runs.Plan(rows, chosen, varied, np.tile(seeds, len(rows)))
