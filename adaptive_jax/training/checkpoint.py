"""Saving a run and going on with it, by Orbax: every entry under its name, and checked."""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from .. import maths
from .._core import arguments, hyper
from . import versions
from .origin import differences, of, same, schedules, shown, under


def save_checkpoint(
    directory: str | Path, state: Any, *, step: int | None = None, keep: int | None = None
) -> None:
    """Saves a `TrainState`, or any other pytree of arrays and numbers, in a folder of its step.

    Whole or not at all: a process that is killed while it saves leaves the older checkpoints as they
    are. What is saved are arrays and numbers, hyperparameters among them. Functions, such as schedules,
    are code, and come from `restore_checkpoint`'s argument; what made them is written down, so that
    other ones are noticed.

    Args:
      directory: the folder of the run; it is made. The checkpoint is in its subfolder `step`.
      state: what to save.
      step: the number of the step; None for that of a `TrainState`.
      keep: how many of the newest checkpoints to keep; None for all.

    Raises:
      ImportError: without Orbax.
      ValueError: for a step that is missing, or that has been saved already, and what is no number.

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
    _check_order("save_checkpoint", directory)
    if step is None:
        if not hasattr(state, "step"):
            raise ValueError("step is missing: only a TrainState knows its own.")
        step = state.step
        if np.ndim(state.step):
            raise ValueError(
                "step is missing: the state is one of many runs, whose steps are "
                f"{state.step!r:.80}. Give one, step=…."
            )
    step = arguments.whole("step", step, 0)
    keep = None if keep is None else arguments.whole("keep", keep, 1)
    entries = _entries(state)
    _check_at_hand(entries)
    origin = of(state)
    layout = {
        "entries": {name: _kind(leaf) for name, leaf in entries.items()},
        "numbers": {name: leaf for name, leaf in entries.items() if _is_number(leaf)},
        "rules": [rule["rule"] for rule in origin["rules"]],
        "origin": origin,
        "version": versions.LAYOUT,
    }
    # Orbax saves no arrays without elements, and needs none.
    arrays = {name: _plain(leaf) for name, leaf in entries.items() if np.size(leaf)}
    with _manager(orbax, directory, keep) as manager:
        steps = manager.all_steps()
        if step in steps:
            raise ValueError(
                f"{Path(directory) / str(step)} is there already: it is not overwritten. Give another "
                "step, or each run a folder of its own."
            )
        newer = sorted(each for each in steps if each > step)
        if keep is not None and len(newer) >= keep:
            raise ValueError(
                f"{directory} has the later steps {newer}, and keep={keep} would delete step {step} at "
                "once. Are they of another run? Give each run a folder of its own."
            )
        manager.save(
            step,
            args=orbax.args.Composite(
                state=orbax.args.StandardSave(arrays), layout=orbax.args.JsonSave(layout)
            ),
        )
    _remember(Path(directory) / str(step))


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
        the entries that differ.
    """
    orbax = _orbax()
    _check_order("restore_checkpoint", directory)
    if hyperparameters is not None:
        arguments.one_of("hyperparameters", hyperparameters, ("saved", "given"))
    step = None if step is None else arguments.whole("step", step, 0)
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
        saved = _Saved(**layout["layout"])
        run = versions.older(saved.version, state, saved.entries)
        entries = _entries(run)
        plan = _plan(saved, run, entries, hyperparameters)
        like = {source: entries[name] for name, source in plan.sources.items()}
        place = _placing(like.values(), lambda: manager.item_metadata(chosen)["state"])
        wanted = {
            name: _abstract(name, like.get(name), shape, dtype, place)
            for name, (shape, dtype) in saved.entries.items()
            if 0 not in shape
        }
        restored = manager.restore(
            chosen, args=orbax.args.Composite(state=orbax.args.StandardRestore(wanted))
        )["state"]
    _remember(Path(directory) / str(chosen))
    values = {
        name: _like(entries[name], saved.value(source, restored))
        if source in restored
        else jnp.zeros(entries[name].shape, entries[name].dtype)
        for name, source in plan.sources.items()
    }
    for name, make in plan.made.items():
        values[name] = make(values, restored)
    changed = [
        name
        for name in plan.numbers
        if not _equal(saved.value(plan.sources[name], restored), entries[name])
    ]
    _notice(
        [
            f"{name.rpartition('.')[2]} is {_number(values[name])} in the checkpoint and "
            f"{_number(entries[name])} in the state"
            for name in changed
        ],
        plan.code,
        hyperparameters,
    )
    if hyperparameters == "given":
        values |= {
            name: _fresh(x, x) if isinstance(x := entries[name], jax.Array) else x
            for name in changed
        }
    run = jax.tree.unflatten(jax.tree.structure(run), [values[name] for name in entries])
    return versions.newer(saved.version, state, run)


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
    handlers = {
        "state": orbax.StandardCheckpointHandler(),
        "layout": orbax.JsonCheckpointHandler(),
    }
    return orbax.CheckpointManager(
        Path(directory).absolute(), options=options, item_handlers=handlers
    )


def _entries(state: Any) -> dict[str, Any]:
    """Every leaf under the name of its path."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    entries = {jax.tree_util.keystr(path): leaf for path, leaf in leaves}
    assert len(entries) == len(leaves)
    return entries


def _check_order(name: str, directory: Any) -> None:
    if not isinstance(directory, (str, os.PathLike)):
        raise TypeError(
            f"directory={directory!r:.80} is no path: the order is {name}(directory, state)."
        )


def _check_at_hand(entries: Mapping[str, Any]) -> None:
    """Raises a ValueError, with the path, for what is not saved, and what a step has used up."""
    for name, leaf in entries.items():
        if not (_is_number(leaf) or hasattr(leaf, "dtype")):
            raise ValueError(
                f"{name} is {leaf!r:.80} of type {type(leaf).__name__}: arrays and real numbers are saved. "
                "Leave it out."
            )
        if isinstance(leaf, jax.Array) and leaf.is_deleted():
            raise ValueError(
                f"{name} is deleted: a step wrote over this state. Save the one that it returned."
            )


def _is_key(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _is_number(leaf: Any) -> bool:
    return isinstance(leaf, (bool, int, float))


def _kind(leaf: Any) -> list[Any]:
    """Shape and dtype. A Python number has none but its kind: it is not rounded to float32."""
    return [[], "number"] if _is_number(leaf) else [list(leaf.shape), str(leaf.dtype)]


def _plain(leaf: Any) -> Any:
    if _is_key(leaf):
        return jax.random.key_data(leaf)
    return np.asarray(leaf) if _is_number(leaf) else leaf


@dataclass(frozen=True)
class _Saved:
    """What a checkpoint says of itself. Version 0.1.0 wrote entries and rules alone."""

    entries: Mapping[str, Any]
    rules: list[str]
    numbers: Mapping[str, Any] = field(default_factory=dict)
    origin: Any = None
    version: int = 1

    def value(self, name: str, restored: Mapping[str, Any]) -> Any:
        """What was saved under a name, a Python number as one."""
        if self.entries[name][1] != "number":
            return restored[name]
        return self.numbers.get(name, np.asarray(restored[name]).item())


# ---------------------------------------------------------------------------- arrays


def _placing(leaves: Iterable[Any], read: Callable[[], Any]) -> Callable[[str, Any], Any]:
    """A function from the name of an entry and its sharding, or None, to where to put it.

    read: a function that reads what the checkpoint says of its arrays, which takes time.
    """
    metadata = functools.cache(read)
    given = [getattr(leaf, "sharding", None) for leaf in leaves]
    meshes = [each.mesh for each in given if isinstance(each, NamedSharding)]

    @functools.cache
    def concrete(mesh: Any) -> Any:
        """A mesh of devices: shapes that were made under an explicit mesh know its axes alone."""
        if not isinstance(mesh, AbstractMesh):
            return mesh
        if hasattr(jax.sharding, "get_mesh"):  # Since jax 0.9.
            here = jax.sharding.get_mesh()
            if here.abstract_mesh == mesh:
                return here
        return jax.make_mesh(mesh.axis_sizes, mesh.axis_names, axis_types=mesh.axis_types)

    def whole() -> Any:
        mesh = next((concrete(mesh) for mesh in meshes if mesh.size > 1), None)
        if mesh is None and jax.process_count() == 1:
            return SingleDeviceSharding(jax.devices()[0])
        return NamedSharding(
            mesh or jax.make_mesh((jax.device_count(),), ("all",)), PartitionSpec()
        )

    def place(name: str, sharding: Any) -> Any:
        if isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, AbstractMesh):
            spec = list(sharding.spec)
            while spec and spec[-1] is None:  # P("x", None) is P("x"), but compiles once more.
                spec.pop()
            return NamedSharding(concrete(sharding.mesh), PartitionSpec(*spec))
        if sharding is not None:
            return sharding
        if not meshes and (saved := metadata()[name].sharding) is not None:
            try:
                return saved.to_jax_sharding()
            except (ValueError, KeyError, IndexError):
                pass  # Of devices that are not there.
        return whole()

    return place


def _abstract(name: str, leaf: Any, shape: Any, dtype: str, place: Callable[..., Any]) -> Any:
    """What Orbax is to make: an array with the sharding of leaf, or a NumPy array.

    leaf: what the state has; None for what it has no place for.
    """
    if dtype == "number":
        kind = getattr(leaf, "dtype", type(leaf))
        whole = _is_number(leaf) or leaf is None or not jnp.issubdtype(kind, jnp.floating)
        return np.asarray(leaf if _is_number(leaf) else 0 if whole else 0.0)
    if _is_key(leaf):
        data = jax.eval_shape(jax.random.key_data, leaf)
        concrete = isinstance(leaf, jax.Array)
        sharding = (jax.random.key_data(leaf) if concrete else leaf).sharding
        return jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=place(name, sharding))
    dtype = dtype if leaf is None or _is_number(leaf) else leaf.dtype
    sharding = place(name, getattr(leaf, "sharding", None))
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)


def _like(leaf: Any, value: Any) -> Any:
    """What was saved, as the state has it; a Python number as what it was."""
    if _is_number(value):
        return value
    if _is_number(leaf):
        return type(leaf)(value)
    if _is_key(leaf):
        impl = jax.random.key_impl(jnp.empty((), leaf.dtype))
        return jax.random.wrap_key_data(value, impl=impl)
    return value


# ---------------------------------------------------------------------------- what belongs to what


@dataclass
class _Plan:
    """How each entry of a state is made.

    sources: the name that it has in the checkpoint.
    made: for what is in no checkpoint, a function of the other entries and of what was restored.
    numbers: the names of the hyperparameters that are numbers on both sides.
    code: differences of schedules, and of numbers that functions close over, as sentences.
    """

    sources: dict[str, str] = field(default_factory=dict)
    made: dict[str, Callable[[Mapping[str, Any], Mapping[str, Any]], Any]] = field(
        default_factory=dict
    )
    numbers: list[str] = field(default_factory=list)
    code: list[str] = field(default_factory=list)


def _plan(saved: _Saved, state: Any, entries: dict[str, Any], choice: str | None) -> _Plan:
    """Raises a ValueError that names what makes the checkpoint one of another optimizer or state."""
    origin = of(state)
    plan, problems = _Plan(), []
    if saved.origin is not None:
        problems, plan.code = differences(saved.origin, origin)
    pairs = _pairs(saved, origin["rules"])
    if pairs is None:
        other = "no rules of this library"
        names = [rule["rule"] for rule in origin["rules"]]
        problems.insert(
            0,
            f"the optimizer was made of {', '.join(saved.rules) or other}, this one is of "
            f"{', '.join(names) or other}",
        )
        pairs = []
    is_other = bool(problems)
    plan.sources = {name: name for name in entries}
    forms: list[str] = []
    new_names: set[str] = set()  # What the checkpoint need not have,
    old_names: set[str] = set()  # and what the state need not have.
    storages: list[str] = []
    if saved.origin is not None:
        before, after = schedules(saved.origin, origin)
        words = "a schedule", "a number"
        for places, there, here in ((before, *words), (after, *reversed(words))):
            forms += [
                f"the learning rate or decay of {place} is {there} in the checkpoint and {here} in the "
                "state"
                for place in places
            ]
        old_names |= {f"{place}.count" for place in before}
        new_names |= {f"{place}.count" for place in after}
    for old, new in pairs:
        moved, texts = _fields(saved, old, new, entries, plan)
        forms += texts
        if new is not None:
            for kind in ("path", "state"):
                before, after = (old or {}).get(kind), new[kind]
                for name in entries:
                    if after is not None and under(name, after):
                        plan.sources[name] = "" if before is None else before + name[len(after) :]
            new_names |= _movable(entries, new, moved)
        if old is not None:
            old_names |= _movable(saved.entries, old, moved)
        if moved and saved.origin is None:  # Where the states of its rules were is not said.
            old_names |= {
                each for each in saved.entries if each.endswith((".count", "_correction"))
            }
        if old is not None and new is not None and not moved and saved.origin is not None:
            problems += _masks(old, new)
        if old is not None and new is not None:
            storages += [
                f"the storage of {slot} is {old['storage'].get(slot)} in the checkpoint and {storage} in "
                "the state"
                for slot, storage in new["storage"].items()
                if old["storage"].get(slot) != storage
            ]
    wanted = {name: _kind(leaf) for name, leaf in entries.items()}
    used = set(plan.sources.values())
    others = []
    for name, kind in wanted.items():
        source = plan.sources[name]
        if source not in saved.entries and name in new_names:
            make = _maker(name, entries, origin["rules"], pairs, saved, plan.sources)
            if make is not None:
                plan.made[name] = make
                del plan.sources[name]
                continue
        if not _fits(saved.entries.get(source), kind):
            others.append((name, saved.entries.get(source), kind))
    unused = set(saved.entries) - used - old_names
    others += [(name, kind, None) for name, kind in saved.entries.items() if name in unused]
    # Another optimizer has other entries, which say nothing more.
    problems += storages if others else []
    problems += [
        _difference(*each)
        for each in others
        if not (is_other and each[0].startswith((".opt_state", ".tx")))
    ]
    plan.numbers += _injected(entries, origin["types"])
    # Numbers that are no rule's, such as those that were traced in a function of optax's.
    places = [rule["path"] for rule in origin["rules"]]
    plan.numbers += [
        name
        for name in entries
        if under(name, ".tx") and not any(under(name, place) for place in places)
    ]
    _raise(problems, forms, plan, entries, choice)
    return plan


def _pairs(saved: _Saved, given: list[Any]) -> list[tuple[Any, Any]] | None:
    """Each rule that was saved with the same one here; with None one that is only a hyperparameter.

    A weight decay of 0 is no rule at all. None if the rules are those of another optimizer.
    """
    names = [rule["rule"] for rule in given]
    if saved.origin is None:
        unknown = [{**rule, "fields": None} for rule in given]
        return list(zip(unknown, given, strict=True)) if saved.rules == names else None
    before: list[Any] = saved.origin["rules"]
    pairs: list[tuple[Any, Any]] = []
    for tag, i, j, k, n in SequenceMatcher(None, saved.rules, names, autojunk=False).get_opcodes():
        old, new = before[i:j], given[k:n]
        if tag == "equal":
            pairs += zip(old, new, strict=True)
            continue
        if any(rule["keeps"] or not rule["fields"] for rule in [*old, *new]):
            return None
        if {_type(rule) for rule in old} & {_type(rule) for rule in new}:
            return None  # The same rule with other options.
        pairs += [(rule, None) for rule in old] + [(None, rule) for rule in new]
    return pairs


def _type(rule: Any) -> str:
    return rule["rule"].partition("(")[0]


def _fields(
    saved: _Saved, old: Any, new: Any, entries: Mapping[str, Any], plan: _Plan
) -> tuple[list[str], list[str]]:
    """The hyperparameters of a rule that are a number on one side only, and a sentence for each."""
    moved, texts = [], []
    for name in (new or old)["fields"]:
        here, leaves = None, []
        if new is not None:
            here = new["fields"][name]
            leaves = [each for each in entries if under(each, f"{new['path']}.{name}")]
        there, number = _saved_field(saved, old, name, here)
        is_schedule = isinstance(here, dict) and isinstance(there, dict)
        if is_schedule or here == there == "number":
            plan.numbers += leaves
        if here == there:
            continue
        given = entries[leaves[0]] if len(leaves) == 1 else None
        text = (
            f"{name} is {number if there == 'number' else shown(there)} in the checkpoint and "
            f"{_number(given) if here == 'number' else shown(here)} in the state"
        )
        if is_schedule:
            plan.code.append(text)
        else:
            moved.append(name)
            texts.append(text)
    return moved, texts


def _saved_field(saved: _Saved, old: Any, name: str, here: Any) -> tuple[Any, str]:
    """What a hyperparameter was: None, "number" or a schedule; and the number."""
    if old is None:
        return None, ""
    path = f"{old['path']}.{name}"
    number = _number(saved.numbers.get(path))
    if old["fields"] is not None:
        return old["fields"].get(name), number
    if any(under(each, path) for each in saved.entries):
        return "number", number
    # None, or a schedule: version 0.1.0 did not say.
    return ({"": "a schedule, or none"} if here == "number" else here), number


def _number(value: Any) -> str:
    """A hyperparameter as a person would say it, None for one whose value is not at hand."""
    if value is None or isinstance(value, jax.ShapeDtypeStruct):
        return "a number"
    if np.ndim(value) > 0 and np.size(value) <= 8:
        return f"[{', '.join(f'{each:.6g}' for each in np.ravel(value))}]"
    return hyper.show(value)


def _movable(entries: Iterable[str], rule: Any, moved: list[str]) -> set[str]:
    """The entries that come and go with hyperparameters: themselves, and what a schedule needs."""
    if not moved:
        return set()
    places = [f"{rule['path']}.{name}" for name in moved]
    if rule["state"] is not None:
        places += [f"{rule['state']}{each}.count" for each in ("", ".inner_state")]
        places += [f"{rule['state']}.{name}_correction" for name in moved]
    return {name for name in entries if any(under(name, place) for place in places)}


def _masks(old: Any, new: Any) -> list[str]:
    """In what the masks of a rule differ, as a sentence."""
    before, after = old["mask"], new["mask"]
    if before == after:
        return []

    def shown(mask: Any) -> str:
        if mask is None:
            return "all arrays"
        if "" in mask and isinstance(mask[""], str):
            return mask[""]
        chosen = [path or "the array" for path, selects in mask.items() if selects]
        return ", ".join(chosen) or "nothing"

    return [
        f"the mask of {_type(new)} selects {shown(before)} in the checkpoint and {shown(after)} in "
        "the state"
    ]


def _maker(
    name: str,
    entries: Mapping[str, Any],
    rules: list[Any],
    pairs: list[Any],
    saved: _Saved,
    sources: Mapping[str, str],
) -> Any:
    """A function for an entry that no checkpoint has: a new hyperparameter, or what a schedule needs."""
    leaf = entries[name]
    if not name.endswith((".count", "_correction")):
        return lambda values, restored: leaf
    rules = [rule for rule in rules if rule["state"] is not None]
    rule = next((rule for rule in rules if under(name, rule["state"])), None)
    if name.endswith("_correction"):
        field_name = name.rpartition(".")[2].removesuffix("_correction")
        old = next(old for old, new in pairs if new is rule)
        source = f"{old['path']}.{field_name}"
        place = rule["state"] if rule is not None else ""

        def correction(values: Mapping[str, Any], restored: Mapping[str, Any]) -> Any:
            b = saved.value(source, restored)
            decay = maths.DecayRate(b, 1.0 - b) if isinstance(b, float) else b  # type: ignore[arg-type]
            decay = jax.tree.map(lambda x: jnp.asarray(x, leaf.dtype), decay)
            return _fresh(maths.power_complement(decay, values[f"{place}.count"]), leaf)

        return correction
    if rule is None:  # In a chain of optax's.
        chain = name.rpartition("[")[0]
        others = [
            each for each in entries if each.startswith(f"{chain}[") and each.endswith("].count")
        ]
    else:
        optimizer = rule["path"].rpartition(".rules[")[0]
        same = [each for each in rules if each["path"].rpartition(".rules[")[0] == optimizer]
        others = [f"{each['state']}.count" for each in same if each is not rule]
    known = [each for each in others if sources.get(each) in saved.entries]
    group, is_group, _ = name.rpartition(".inner_opt_state")
    known += [f"{group}.gradient_step"] if is_group else []
    if known:
        return lambda values, restored: _fresh(values[known[0]], leaf)
    wrapper, is_wrapped, _ = name.rpartition(".inner_state")
    skipped = [".skipped", f"{wrapper}.total" if is_wrapped else ""]

    def steps(values: Mapping[str, Any], restored: Mapping[str, Any]) -> Any:
        left_out = [values[each] for each in skipped if each in values]
        return _fresh(functools.reduce(lambda a, b: a - b, left_out, values[".step"]), leaf)

    return steps if ".step" in entries else None


def _fresh(value: Any, leaf: Any) -> jax.Array:
    """The value as an array of its own, like leaf: what a step donates is donated once."""
    new = jnp.array(value, leaf.dtype)
    sharding = getattr(leaf, "sharding", None)
    return new if sharding is None else jax.device_put(new, sharding)


def _injected(entries: Iterable[str], types: Mapping[str, str]) -> list[str]:
    """The numbers that optax.inject_hyperparams keeps in its state, but for those under a schedule."""
    places = [path for path, name in types.items() if name.startswith("Inject")]
    entries = list(entries)
    found = []
    for place in places:
        for name in entries:
            key = name.removeprefix(f"{place}.hyperparams[")
            scheduled = f"{place}.hyperparams_states[{key}"
            if key != name and not any(under(each, scheduled) for each in entries):
                found.append(name)
    return found


# ---------------------------------------------------------------------------- what is said about it


def _raise(
    problems: list[str],
    forms: list[str],
    plan: _Plan,
    entries: Mapping[str, Any],
    choice: str | None,
) -> None:
    if problems:
        raise ValueError(
            f"the checkpoint is not one of such a state: {_some(problems)}. Make the state as at the "
            "start of the run that was saved, and restore. Change it afterwards: to an optimizer that "
            "keeps the same with state.replace(tx=tx), to any other with state.replace(tx=tx, "
            "opt_state=tx.init(state.params)), to another storage with aj.convert_storage."
        )
    if forms and choice != "given":
        raise ValueError(
            f"hyperparameters have changed their kind: {_some(forms)}. restore_checkpoint(…, "
            'hyperparameters="given") goes on with those of the state; to go on with those of the '
            "checkpoint, make the state's optimizer with them."
        )
    if choice == "given":
        made = [each for each in plan.made if not each.endswith((".count", "_correction"))]
        names = [*plan.numbers, *made]
        shapes = [name for name in names if isinstance(entries[name], jax.ShapeDtypeStruct)]
        if shapes:
            raise ValueError(
                'hyperparameters="given" needs a state with numbers, and this one has shapes for them: '
                f"{shapes[0]}. Restore what was saved, and change it with state.replace(tx=…)."
            )
    if choice == "saved" and plan.code:
        raise ValueError(
            f'hyperparameters="saved" cannot be: {_some(plan.code)}, and schedules and what functions '
            "close over are code, which no checkpoint holds. Make the state's optimizer with what was "
            "saved."
        )


def _notice(numbers: list[str], code: list[str], choice: str | None) -> None:
    """Warns of hyperparameters that differ, where nobody has chosen."""
    if choice is not None:
        return
    if numbers:
        warnings.warn(
            f"{_some(numbers)}: the run goes on with those of the checkpoint. restore_checkpoint(…, "
            'hyperparameters="given") takes those of the state, and hyperparameters="saved" says that '
            "this is meant.",
            stacklevel=3,
        )
    if code:
        warnings.warn(
            f"{_some(code)}: schedules and what functions close over are code, so the run goes on with "
            'those of the state. restore_checkpoint(…, hyperparameters="given") says that this is meant.',
            stacklevel=3,
        )


def _some(sentences: list[str]) -> str:
    more = f"; and {len(sentences) - 5} more" if len(sentences) > 5 else ""
    return "; ".join(sentences[:5]) + more


def _difference(name: str, saved: Any, wanted: Any) -> str:
    return f"{name} is {_shown(saved)} in the checkpoint and {_shown(wanted)} in the state"


def _equal(saved: Any, given: Any) -> bool:
    """Whether two hyperparameters are the same, a Python number in the precision of an array."""
    if isinstance(given, jax.ShapeDtypeStruct):
        return True  # Nothing was given.
    arrays = [x for x in (saved, given) if not _is_number(x)]
    if not arrays:
        return same(saved, given)
    one, two = (np.asarray(x).astype(arrays[0].dtype).astype(np.float64) for x in (saved, given))
    return np.array_equal(one, two, equal_nan=True)


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
