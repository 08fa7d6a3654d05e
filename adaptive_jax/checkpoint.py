"""Saving a run and going on with it, by Orbax: every entry under its name, and checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from . import _check, _rule, _versions
from ._rule import Rule


def save_checkpoint(
    directory: str | Path, state: Any, *, step: int | None = None, keep: int | None = None
) -> None:
    """Saves a `TrainState`, or any other pytree of arrays and numbers, in a folder of its step.

    Whole or not at all: a process that is killed while it saves leaves the older checkpoints as they
    are. What is saved are arrays and numbers, hyperparameters among them. Functions, such as schedules,
    are code, and come from `restore_checkpoint`'s argument.

    Args:
      directory: the folder of the run; it is made. The checkpoint is in its subfolder `step`.
      state: what to save.
      step: the number of the step; None for that of a `TrainState`.
      keep: how many of the newest checkpoints to keep; None for all.

    Raises:
      ImportError: without Orbax.
      ValueError: for a step that is missing, or that has been saved already.

    Example:
      >>> import adaptive_jax as aj, jax, jax.numpy as jnp, tempfile
      >>> state = aj.TrainState.create({"w": jnp.ones(3)}, aj.adam(1e-3))
      >>> with tempfile.TemporaryDirectory() as directory:
      ...     aj.save_checkpoint(directory, state)
      ...     again = aj.restore_checkpoint(directory, state)
      >>> print(again.params["w"], again.tx)
      [1. 1. 1.] adam(learning_rate=0.001, b1=0.9, b2=0.999, eps=1e-08, eps_root=0.0)
    """
    orbax = _orbax()
    if step is None:
        if not hasattr(state, "step"):
            raise ValueError("step is missing: only a TrainState knows its own.")
        step = state.step
    step = _check.whole("step", step, 0)
    keep = None if keep is None else _check.whole("keep", keep, 1)
    entries = _entries(state)
    layout = {
        "entries": {name: _kind(leaf) for name, leaf in entries.items()},
        "rules": _rules(state),
        "version": _versions.LAYOUT,
    }
    # Orbax saves no arrays without elements, and needs none.
    arrays = {name: _plain(leaf) for name, leaf in entries.items() if np.size(leaf)}
    with _manager(orbax, directory, keep) as manager:
        if step in manager.all_steps():
            raise ValueError(
                f"{Path(directory) / str(step)} is there already: it is not overwritten."
            )
        manager.save(
            step,
            args=orbax.args.Composite(
                state=orbax.args.StandardSave(arrays), layout=orbax.args.JsonSave(layout)
            ),
        )
    _remember(Path(directory) / str(step))


def restore_checkpoint(directory: str | Path, state: Any, *, step: int | None = None) -> Any:
    """The state that was saved, in place of one that is made like it.

    A run that goes on from it takes the steps, bit for bit, of the run that was never stopped. What
    version 0.1.0 saved is brought into the layout that states have now.

    Args:
      directory: the folder of the run.
      state: a state like the one that was saved, as at the start of the run; or its shapes, as
        `jax.eval_shape` gives them. Arrays come back with the sharding that they have in it.
      step: the step to go back to; None for the newest.

    Returns:
      The state of that step. Hyperparameters are those that were saved: `replace` changes them.

    Raises:
      ImportError: without Orbax.
      FileNotFoundError: where there is no checkpoint.
      ValueError: for a checkpoint of another optimizer, other shapes or another layout, by the names of
        the entries that differ.
    """
    orbax = _orbax()
    step = None if step is None else _check.whole("step", step, 0)
    if not Path(directory).is_dir():
        raise FileNotFoundError(f"{directory} is no folder: there is no checkpoint to restore.")
    with _manager(orbax, directory, None) as manager:
        steps = manager.all_steps()
        chosen = max(steps, default=None) if step is None else step
        if chosen not in steps:
            has = f"; it has those of the steps {sorted(steps)}" if steps else ""
            which = "" if step is None else f" of step {step}"
            raise FileNotFoundError(f"{directory} has no checkpoint{which}{has}.")
        layout = manager.restore(chosen, args=orbax.args.Composite(layout=orbax.args.JsonRestore()))
        version = layout["layout"].get("version", 1)
        like = _versions.older(version, state, layout["layout"]["entries"])
        entries = _entries(like)
        _check_layout(layout["layout"], entries, _rules(like))
        wanted = {name: _abstract(leaf) for name, leaf in entries.items() if np.size(leaf)}
        restored = manager.restore(
            chosen, args=orbax.args.Composite(state=orbax.args.StandardRestore(wanted))
        )["state"]
    _remember(Path(directory) / str(chosen))
    leaves = [
        _like(leaf, restored[name]) if name in restored else jnp.zeros(leaf.shape, leaf.dtype)
        for name, leaf in entries.items()
    ]
    restored = jax.tree.unflatten(jax.tree.structure(like), leaves)
    return _versions.newer(version, state, restored)


_last: Path | None = None


def last() -> Path | None:
    """The checkpoint that this process saved or restored last, if it did."""
    return _last


def _remember(path: Path) -> None:
    global _last
    _last = path.absolute()


def _orbax() -> Any:
    try:
        import orbax.checkpoint
    except ImportError:
        raise ImportError('Checkpoints need Orbax: pip install -e ".[checkpoint]".') from None
    return orbax.checkpoint


def _manager(orbax: Any, directory: str | Path, keep: int | None) -> Any:
    options = orbax.CheckpointManagerOptions(
        max_to_keep=keep, enable_async_checkpointing=False, create=True
    )
    return orbax.CheckpointManager(Path(directory).absolute(), options=options)


def _entries(state: Any) -> dict[str, Any]:
    """Every leaf under the name of its path."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    entries = {jax.tree_util.keystr(path): leaf for path, leaf in leaves}
    assert len(entries) == len(leaves)
    return entries


def _is_key(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _kind(leaf: Any) -> list[Any]:
    """Shape and dtype. A Python number has none but its kind: it is not rounded to float32."""
    if isinstance(leaf, (bool, int, float)):
        return [[], "number"]
    return [list(leaf.shape), str(leaf.dtype)]


def _plain(leaf: Any) -> Any:
    if _is_key(leaf):
        return jax.random.key_data(leaf)
    return np.asarray(leaf) if isinstance(leaf, (bool, int, float)) else leaf


def _abstract(leaf: Any) -> Any:
    """What Orbax is to make: an array with the sharding of leaf, or a NumPy array."""
    if isinstance(leaf, (bool, int, float)):
        return np.asarray(leaf)
    if _is_key(leaf):
        data = jax.eval_shape(jax.random.key_data, leaf)
        return jax.ShapeDtypeStruct(data.shape, data.dtype)
    sharding = getattr(leaf, "sharding", None)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _like(leaf: Any, restored: Any) -> Any:
    if isinstance(leaf, (bool, int, float)):
        return type(leaf)(restored)
    if _is_key(leaf):
        impl = jax.random.key_impl(jnp.empty((), leaf.dtype))
        return jax.random.wrap_key_data(jnp.asarray(restored), impl=impl)
    return restored


def _rules(state: Any) -> list[str]:
    """The rules in a state and their options: Adam and AdaMax have the same slots."""
    found = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, Rule))
    return [_described(rule) for rule in found if isinstance(rule, Rule)]


def _described(rule: Rule) -> str:
    options = {name: getattr(rule, name) for name in _rule.fields(type(rule))[2]}
    shown = [f"{name}={value}" for name, value in options.items() if isinstance(value, (bool, str))]
    return f"{type(rule).__name__}({', '.join(shown)})"


def _check_layout(layout: Any, entries: dict[str, Any], rules: list[str]) -> None:
    """Raises a ValueError that names the entries in which checkpoint and state differ."""
    saved, wanted = layout["entries"], {name: _kind(leaf) for name, leaf in entries.items()}
    differences = [
        f"{name} is {_shown(saved.get(name))} in the checkpoint and {_shown(wanted.get(name))} in the "
        "state"
        for name in {**wanted, **saved}
        if not _fits(saved.get(name), wanted.get(name))
    ]
    other = "no rules of this library"
    if layout["rules"] != rules:
        differences.insert(
            0,
            f"the optimizer was made of {', '.join(layout['rules']) or other}, this one is of "
            f"{', '.join(rules) or other}",
        )
    if differences:
        more = f"; and {len(differences) - 5} more" if len(differences) > 5 else ""
        raise ValueError(
            f"the checkpoint is not one of such a state: {'; '.join(differences[:5])}{more}. Make the "
            "state as at the start of the run that was saved, restore, and change it afterwards, its "
            "storage with aj.convert_storage."
        )


def _fits(saved: Any, wanted: Any) -> bool:
    """A Python number fits an array of shape (): `jax.eval_shape` makes one of it."""
    if saved is None or wanted is None:
        return False
    return saved == wanted or (saved[0] == wanted[0] == [] and "number" in (saved[1], wanted[1]))


def _shown(kind: Any) -> str:
    if kind is None:
        return "missing"
    shape, dtype = kind
    return "a number" if dtype == "number" else f"{dtype}{list(shape)}"
