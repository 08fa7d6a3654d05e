"""Going on with a run that was saved."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from ..._core import arguments
from .. import versions
from ..agreement import check_alike, facts_of, spans_processes, together
from .entries import Saved, entries_of, is_equal
from .folder import check_order, opened, orbax_checkpoint, remember
from .messages import check, notice
from .pairs import shown_number
from .placement import abstract, as_in_state, check_room, fresh, placing, room
from .plan import Plan, plan_of


def restore_checkpoint(
    directory: str | Path,
    state: Any,
    *,
    step: int | None = None,
    hyperparameters: str | None = None,
) -> Any:
    """The state that was saved, in place of one that is made like it.

    A run that goes on from it takes the steps, bit for bit, of the run that was never stopped. What
    version 0.1.0 saved is brought into the layout that states have now.

    Args:
      directory: the folder of the run.
      state: a state like the one that was saved, as at the start of the run; or its shapes, as
        `jax.eval_shape` gives them. Arrays come back with the sharding that they have in it; those
        without one, as shapes are, with the one that was saved if its devices are there, or else
        whole.
      step: the step to go back to; None for the newest.
      hyperparameters: whose learning rate, weight decay and so on to go on with, where the checkpoint
        and the state differ: "saved", or "given" for those of the state. None is "saved" with a
        warning that names both. With "given" a number may have become a schedule, which goes on at
        the count of its optimizer, or a schedule a number, and a weight decay or a clipping of an
        optimizer may be there or not (a member of `aj.chain` may not). Numbers in the functions of
        optax's optimizers, and schedules, are code and in no checkpoint: those of the state are in
        force, and "saved" is refused where they differ.

    Returns:
      The state of that step. A Python number comes back as one.

    Raises:
      ImportError: without Orbax.
      FileNotFoundError: where there is no checkpoint.
      ValueError: for a checkpoint of another optimizer, other shapes or another layout, by the names of
        the entries that differ; for more than the devices have room for; for processes that restore
        into different states, or do not see the same folder.
    """
    orbax = orbax_checkpoint()
    check_order("restore_checkpoint", directory)
    directory = Path(directory).expanduser()
    if hyperparameters is not None:
        arguments.one_of("hyperparameters", hyperparameters, ("saved", "given"))
    step = None if step is None else arguments.whole("step", step, 0)
    are_together = spans_processes(state)
    with together("restore_checkpoint"):
        chosen = _chosen(orbax, directory, step)
        facts = {
            "the newest step in the folder": f"{chosen}",
            **(facts_of(state, bits=False) if are_together else {}),
        }
    if are_together:
        check_alike(f"What is restored from {directory}", facts)
    with opened(orbax, directory, None) as manager:
        layout = manager.restore(chosen, args=orbax.args.Composite(layout=orbax.args.JsonRestore()))
        with together("restore_checkpoint"):
            saved = Saved(**layout["layout"])
            run = versions.older(saved.version, state, saved.entries)
            entries = entries_of(run)
            plan = plan_of(saved, run, entries)
            check(plan, entries, hyperparameters)
            like = {source: entries[name] for name, source in plan.sources.items()}
            place = placing(like.values(), lambda: manager.item_metadata(chosen)["state"])
            wanted = {
                name: abstract(name, like.get(name), shape, dtype, place)
                for name, (shape, dtype) in saved.entries.items()
                if 0 not in shape
            }
            check_room(wanted, room())
        restored = manager.restore(
            chosen, args=orbax.args.Composite(state=orbax.args.StandardRestore(wanted))
        )["state"]
    remember(directory / str(chosen), is_restored=True)
    values = _values(plan, saved, entries, restored)
    changed = [
        name
        for name in plan.numbers
        if not is_equal(saved.value(plan.sources[name], restored), entries[name])
    ]
    texts = [
        f"{name.rpartition('.')[2]} is {shown_number(values[name])} in the checkpoint and "
        f"{shown_number(entries[name])} in the state"
        for name in changed
    ]
    notice(plan, list(dict.fromkeys(texts)), hyperparameters)
    if hyperparameters == "given":
        values |= {
            name: fresh(x, x) if isinstance(x := entries[name], jax.Array) else x
            for name in changed
        }
    restored_run = jax.tree.unflatten(jax.tree.structure(run), [values[name] for name in entries])
    return versions.newer(saved.version, state, restored_run)


def _chosen(orbax: Any, directory: Path, step: int | None) -> int:
    """The step to restore: the newest one, unless another is asked for."""
    if not directory.is_dir():
        raise FileNotFoundError(f"{directory} is no folder: there is no checkpoint to restore.")
    steps = orbax.utils.checkpoint_steps(directory.absolute())
    chosen = max(steps, default=-1) if step is None else step
    if chosen not in steps:
        has = f"; it has those of the steps {sorted(steps)}" if steps else ""
        which = "" if step is None else f" of step {step}"
        raise FileNotFoundError(f"{directory} has no checkpoint{which}{has}.")
    return chosen


def _values(
    plan: Plan, saved: Saved, entries: Mapping[str, Any], restored: Mapping[str, Any]
) -> dict[str, Any]:
    """The entries of the state, of what was restored: first those that a checkpoint has."""
    values = {
        name: as_in_state(saved.value(source, restored), entries[name])
        if source in restored
        else jnp.zeros(entries[name].shape, entries[name].dtype)  # It has no elements.
        for name, source in plan.sources.items()
    }
    for name, make in plan.made.items():
        values[name] = make(values, restored)
    return values
