"""Studies: settings and seeds drawn afresh in each, tuned, and the best of each run on."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ... import maths
from ...problems import Problem
from ...transforms.evaluate import eval_params
from .intervals import medians
from .result import Sweep
from .sweeps import Prepared, prepare, sweep
from .targets import steps_to

FOR_TARGET = -1
"""The number of the study that makes a target, beside those that are judged, from 0."""

RUN = "seed of the run"
"""The column of the seeds: with blanks in it, the name of no argument."""


def number(seed: int, *parts: Any) -> int:
    """A seed for one thing of a comparison, independent of those for all others."""
    text = json.dumps([seed, *parts])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def seeds_of(seed: int, study: int, count: int) -> np.ndarray:
    """The seeds of the runs of a study: the same for all optimizers."""
    first = np.random.default_rng(number(seed, study)).integers(2**31 - 1 - count)
    return np.arange(first, first + count, dtype=np.int32)


def train(
    factory: Callable[..., Any],
    problem: Problem,
    marks: np.ndarray,
    is_reported: bool,
    /,
    **given: Any,
) -> jax.Array:
    """The curve of a run: what the problem is judged by, at the steps in marks.

    is_reported: whether it is to be reported, and not to choose a setting by.
    """
    evaluate = problem.reported if is_reported else problem.evaluate
    setting = {name: value for name, value in given.items() if name not in (RUN, "seed")}
    first_key, key = jax.random.split(jax.random.key(given[RUN]))
    tx = optax.with_extra_args_support(factory(**setting))
    params = problem.init(first_key)

    def step(count: Any, carry: Any) -> Any:
        params, state = carry
        step_key = jax.random.fold_in(key, count)

        def loss(params: Any) -> jax.Array:
            return problem.loss(params, step_key)

        value, gradients = jax.value_and_grad(loss)(params)
        gradients = maths.ascent(gradients)
        extra_args = {"value": value, "grad": gradients, "value_fn": loss}
        updates, state = tx.update(gradients, state, params, **extra_args)
        return optax.apply_updates(params, updates), state

    def stretch(carry: Any, ends: Any) -> Any:
        carry = jax.lax.fori_loop(ends[0], ends[1], step, carry)
        return carry, evaluate(eval_params(tx, *carry))

    ends = jnp.stack([jnp.asarray(marks[:-1]), jnp.asarray(marks[1:])], axis=1)
    first = params, tx.init(params)
    _, curve = jax.lax.scan(stretch, first, ends)
    return jnp.concatenate([evaluate(eval_params(tx, *first))[None], curve])


@dataclasses.dataclass(frozen=True)
class Space:
    """What is tried of one optimizer on one problem.

    tables: the columns of the settings of each study; without columns where all is fixed.
    fixed: the settings that are the same in all.
    """

    tables: tuple[dict[str, Any], ...]
    fixed: dict[str, Any]

    def prepared(self, run: Callable[..., Any], seeds: np.ndarray) -> Prepared:
        """The runs of its tuning, traced."""
        return prepare(run, {}, table=self._table(seeds))

    def tuned(self, run: Callable[..., Any], seeds: np.ndarray) -> list[Sweep]:
        """Every setting of every study with the seeds of it, in one call: a `Sweep` for each study.

        seeds: studies x seeds.
        """
        found = sweep(run, table=self._table(seeds), progress=False)
        curves, names = found.outputs[:, 0], [name for name in found.settings if name != RUN]
        parts, first = [], 0
        for table, own in zip(self.tables, seeds, strict=True):
            count = _length(table) * len(own)
            rows = range(first, first + count, len(own))
            settings = {name: taken(found.settings[name], rows) for name in names}
            of_study = curves[first : first + count].reshape(-1, len(own), curves.shape[1])
            parts.append(Sweep(settings, own, of_study[..., -1], of_study, False, "final value"))
            first += count
        return parts

    def _table(self, seeds: np.ndarray) -> dict[str, Any]:
        """A row for each run. What is fixed is in it too, and may have the name of an option of `sweep`."""
        columns: dict[str, Any] = {}
        for name in self.tables[0]:
            parts = [
                taken(each[name], np.repeat(np.arange(_length(each)), seeds.shape[1]))
                for each in self.tables
            ]
            columns[name] = joined(parts)
        lengths = [_length(each) for each in self.tables]
        runs = [np.tile(own, count) for count, own in zip(lengths, seeds, strict=True)]
        rows = np.concatenate(runs)
        return columns | {RUN: rows} | {key: [x] * len(rows) for key, x in self.fixed.items()}


def run_on(
    run: Callable[..., Any], tunings: Sequence[Sweep], chosen: Sequence[int], seeds: np.ndarray
) -> np.ndarray:
    """The curves of the chosen setting of each study, studies x seeds x evaluations.

    seeds: studies x seeds.
    """
    columns = {
        name: joined(
            [
                taken(each.settings[name], np.full(seeds.shape[1], row))
                for each, row in zip(tunings, chosen, strict=True)
            ]
        )
        for name in tunings[0].settings
    }
    found = sweep(run, table=columns | {RUN: seeds.ravel()}, progress=False)
    return found.outputs[:, 0].reshape(*seeds.shape, -1)


def best(tuning: Sweep, tune_for: str, target: float, marks: np.ndarray, hold: int) -> int:
    """Which setting of a study is run on: by the medians of its seeds, the fewest diverged first."""
    final = medians(tuning.objective)
    steps = medians(steps_to(target, tuning.outputs, marks, hold))
    first, second = (steps, final) if tune_for == "steps" else (final, steps)
    return int(np.lexsort((second, first, tuning.diverged))[0])


def _length(table: Mapping[str, Any]) -> int:
    return len(next(iter(table.values()))) if table else 1


def taken(column: Any, rows: Any) -> Any:
    """Some rows of a column, which is an array or a list."""
    return column[np.asarray(rows)] if isinstance(column, np.ndarray) else [column[i] for i in rows]


def joined(columns: Sequence[Any]) -> Any:
    """Columns one below the other."""
    if all(isinstance(each, np.ndarray) for each in columns):
        return np.concatenate(columns)
    return [value for each in columns for value in each]
