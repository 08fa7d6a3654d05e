"""Between a state of this library and named arrays: which parameter, which entry, which layout.

The formats of PyTorch and Keras are read and written in their own modules. Here a saved run is

    {path of the parameter: Saved(its name there, {name of the entry: array})}

with every array already in the layout that the parameter has here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import keystr

from .._core import pytrees, states
from .._core.lifted import Lifted
from .._core.rule import Rule, Slot
from .._core.transformation import Foreign
from .._core.wrapper import rebuilt, walk
from ..transforms.chain import Chained


@dataclass
class Saved:
    """What was saved of one parameter: its name there, and its entries by name."""

    name: str
    entries: dict[str, np.ndarray] = field(default_factory=dict)


def paths(params: Any) -> dict[str, Any]:
    """The leaves of a tree by their paths, as in "layers/0/kernel"."""
    with_path = jax.tree_util.tree_leaves_with_path(params)
    return {keystr(path, simple=True, separator="/"): leaf for path, leaf in with_path}


def array(value: Any, what: str) -> np.ndarray:
    """A copy of a tensor of PyTorch, a variable of Keras, or an array, in float32 at least."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        # NumPy has no bfloat16 of PyTorch's.
        value = (value.float() if str(value.dtype) == "torch.bfloat16" else value).numpy()
    try:
        value = np.array(getattr(value, "value", value))  # A variable of Keras holds an array.
    except Exception as error:
        raise TypeError(f"{what} is a {type(value).__name__}: expected an array.") from error
    if not jnp.issubdtype(value.dtype, jnp.number):
        raise TypeError(f"{what} is {pytrees.describe(value)}: expected an array of numbers.")
    if jnp.issubdtype(value.dtype, jnp.floating) and jnp.finfo(value.dtype).bits < 32:
        value = value.astype(np.float32)
    if not np.isfinite(value).all():
        raise ValueError(
            f"{what} has {np.sum(~np.isfinite(value))} entries that are not finite: the saved run was "
            "broken already. Go back to an earlier checkpoint."
        )
    return value


def number(value: Any, what: str) -> float:
    """One number."""
    value = array(value, what)
    if value.shape != ():
        raise ValueError(f"{what} has the shape {value.shape}: expected one number.")
    return float(value)


# ---------------------------------------------------------------------------- which parameter

_WEIGHTS = {"weight", "kernel", "w", "scale", "gamma", "embedding"}


_BIASES = {"bias", "b", "offset", "beta"}


_TRANSPOSED = {"kernel", "w"}


_UNCHANGED = {"weight", "scale", "gamma", "embedding"}


Mapped = dict[str, tuple[str, tuple[int, ...] | None]]
"""From a name there to a path here, and the axes that bring the array there into the layout here."""


def match(params: Any, named: Any, known: Any = None, *, transposes: bool) -> Mapped:
    """Finds each named array's parameter by its name and its shape, or refuses.

    known: pairs that are given, as in a mapping.
    transposes: whether (out, in) and (out, in, height, width) may have become (in, out) and
      (height, width, in, out).
    """
    if not isinstance(named, Mapping):
        raise TypeError(
            f"expected a dict of arrays by name, such as model.state_dict() or "
            f"dict(model.named_parameters()), got {type(named).__name__}."
        )
    shapes = {name: _shape(name, value) for name, value in named.items()}
    leaves = {path: np.shape(leaf) for path, leaf in paths(params).items()}
    there, here = _modules(shapes, "."), _modules(leaves, "/")
    trusted = _trusted(there.values(), here.values())
    found: Mapped = _targets(known or {}, params)
    if unknown := set(found) - set(shapes):
        raise ValueError(f"the mapping names {listed(unknown)}, which is not there.")
    taken = {path for path, _ in found.values()}
    candidates: dict[str, dict[str, list[tuple[int, ...] | None]]] = {}
    for name, shape in shapes.items():
        if name in found:
            continue
        among = [path for path in leaves if path not in taken and _kin(name, path)]
        if there[name] in trusted:
            among = [path for path in among if here[path] == there[name]]
        else:
            among = [path for path in among if here[path] not in trusted]
        fits = {path: _layouts(name, shape, path, leaves[path], transposes) for path in among}
        candidates[name] = {path: layouts for path, layouts in fits.items() if layouts}
        if not candidates[name]:
            near = [f"{path} {leaves[path]}" for path in among] or ["none"]
            raise ValueError(
                f"no parameter fits {name} of shape {shape}: those of its name or kind are "
                f"{listed(near, sort=False)}. Give the pair by hand: {{{name!r}: (path, axes)}}."
            )
    while candidates:
        sure = {
            name: next(iter(some.items()))
            for name, some in candidates.items()
            if len(some) == 1 and len(next(iter(some.values()))) == 1
        }
        if not sure:
            break
        for name, (path, layouts) in sure.items():
            if path in (used for used, _ in found.values()):
                raise ValueError(f"{name} and another array both fit the parameter {path} alone.")
            found[name] = path, layouts[0]
            del candidates[name]
            # The other arrays of this module are in the same module here, if they can be.
            for other in candidates:
                if there[other] == there[name]:
                    same = {p: v for p, v in candidates[other].items() if here[p] == here[path]}
                    candidates[other] = same or candidates[other]
        taken = {path for path, _ in found.values()}
        for name, some in candidates.items():
            candidates[name] = {p: layouts for p, layouts in some.items() if p not in taken}
    if candidates:
        name = next(iter(candidates))
        options = [
            f"{path} (axes {' or '.join(map(str, layouts))})"
            for path, layouts in candidates[name].items()
        ]
        raise ValueError(
            f"names and shapes do not decide which parameters {listed(candidates, sort=False)} are: "
            f"{name} of shape {shapes[name]} could be {listed(options or ['none that is left'])}. Give "
            f"some pairs by hand: {{{name!r}: (path, axes)}}."
        )
    if missing := set(leaves) - {path for path, _ in found.values()}:
        raise ValueError(
            f"nothing was saved for the parameters {listed(missing)}: put None in their place in "
            "params, or leave them out."
        )
    return {name: found[name] for name in shapes}


def listed(names: Iterable[str], *, sort: bool = True) -> str:
    """Some of the names, and how many more there are."""
    names = sorted(names) if sort else list(names)
    more = f" and {len(names) - 6} more" if len(names) > 6 else ""
    return ", ".join(names[:6]) + more


def _shape(name: str, value: Any) -> tuple[int, ...]:
    shape = getattr(value, "shape", value)
    sizes = shape if isinstance(shape, (tuple, list)) else [None]
    if not all(isinstance(size, (int, np.integer)) for size in sizes):
        raise TypeError(
            f"{name} is a {type(value).__name__}: expected an array or a shape. Is this the dict of a "
            "model's arrays, or one that holds it?"
        )
    return tuple(map(int, shape))


def _trusted(there: Iterable[str], here: Iterable[str]) -> set[str]:
    """The modules whose names say which they are.

    A number says nothing unless all modules of its kind have the same numbers on both sides: of
    "0, 2, 4" there and "0, 1, 2" here, two would seem to match.
    """

    def families(names: Iterable[str]) -> dict[str, set[str]]:
        result: dict[str, set[str]] = {}
        for name in names:
            result.setdefault(re.sub(r"\d+", "#", name), set()).add(name)
        return result

    ours = families(here)
    equal = [members for kind, members in families(there).items() if ours.get(kind) == members]
    return set().union(*equal)


def _modules(names: Iterable[str], separator: str) -> dict[str, str]:
    """What stands before the last part of each name, without what all have in front."""
    parts = {name: name.split(separator)[:-1] for name in names}
    rows = list(parts.values())
    common = 0
    while rows and all(len(row) > common and row[common] == rows[0][common] for row in rows):
        common += 1
    # "layers.0", "layers_0" and "layers/0" are the same module.
    return {
        name: re.sub(r"\W+", "_", "_".join(row[common:])).lower() for name, row in parts.items()
    }


def _last(name: str) -> str:
    return re.split(r"[./]", name)[-1].lower()


def _kin(name: str, path: str) -> bool:
    """Whether the two may be the same kind of parameter, by the last part of their names."""
    there, here = _last(name), _last(path)
    for kind in (_WEIGHTS, _BIASES):
        if there in kind and here in _WEIGHTS | _BIASES:
            return here in kind
    return True


def _layouts(
    name: str, shape: tuple[int, ...], path: str, here: tuple[int, ...], transposes: bool
) -> list[tuple[int, ...] | None]:
    """The ways to bring an array there into the shape of the parameter here."""
    rank, last = len(shape), _last(path)
    # The channels go from the front to the back, and the inputs before the outputs.
    axes = (*range(2, rank), 1, 0)
    may_move = transposes and rank >= 2 and _last(name) == "weight" and last not in _UNCHANGED
    may_stay = not (may_move and last in _TRANSPOSED)
    layouts: list[tuple[int, ...] | None] = []
    if may_stay and shape == here:
        layouts.append(None)
    if may_move and tuple(shape[axis] for axis in axes) == here:
        layouts.append(axes)
    return layouts


def checked_mapping(mapping: Any, params: Any) -> Mapped:
    """A mapping as a user may give it: names to paths, or to paths and axes, of all parameters."""
    result = _targets(mapping, params)
    used = [path for path, _ in result.values()]
    twice = {path for path in used if used.count(path) > 1}
    missing = set(paths(params)) - set(used)
    if twice or missing:
        raise ValueError(
            "a mapping names every parameter once: "
            f"{listed(twice or missing)} {'comes twice' if twice else 'is missing'}. (None in params, in "
            "the place of a frozen parameter, needs no name.)"
        )
    return result


def _targets(mapping: Any, params: Any) -> Mapped:
    if not isinstance(mapping, Mapping):
        raise TypeError(
            f"mapping is a {type(mapping).__name__}: it must be a dict from names there to paths "
            "here, or to (path, axes)."
        )
    leaves, result = paths(params), {}
    for name, target in mapping.items():
        path, axes = (target, None) if isinstance(target, str) else target
        if path not in leaves:
            raise ValueError(
                f"mapping[{name!r}] is {path!r}, which is no parameter: the paths are "
                f"{listed(leaves, sort=False)}."
            )
        axes = None if axes is None else tuple(axes)
        if axes is not None and sorted(axes) != list(range(np.ndim(leaves[path]))):
            raise ValueError(
                f"mapping[{name!r}] has the axes {axes}: {path} has the shape "
                f"{np.shape(leaves[path])}."
            )
        result[name] = path, axes
    return result


def in_order(params: Any, names: Sequence[str]) -> Mapped:
    """The parameters one by one, for a tree whose leaves come in the order of the names."""
    known = paths(params)
    if len(known) != len(names):
        raise ValueError(f"params has {len(known)} arrays, but {len(names)} were saved.")
    return {name: (path, None) for name, path in zip(names, known, strict=True)}


def has_own_order(params: Any) -> bool:
    """Whether a tree's leaves come in an order that its maker chose: JAX sorts the keys of a dict."""
    with_path = jax.tree_util.tree_leaves_with_path(params)
    keys = {type(key) for path, _ in with_path for key in path}
    return len(with_path) < 2 or jax.tree_util.DictKey not in keys


def to_here(value: np.ndarray, axes: tuple[int, ...] | None) -> np.ndarray:
    """An array there in the layout here."""
    return value if axes is None else np.transpose(value, axes)


def to_there(value: np.ndarray, axes: tuple[int, ...] | None) -> np.ndarray:
    """An array here in the layout there."""
    # Not np.ascontiguousarray, which gives a single number an axis.
    return value if axes is None else np.array(np.transpose(value, np.argsort(axes)), order="C")


# ---------------------------------------------------------------------------- which entry


@dataclass(frozen=True)
class Entry:
    """What another library calls a slot or a scalar, and the sign that it has there."""

    name: str
    sign: int = 1


Vocabulary = Mapping[type[Rule], Mapping[str, Entry]]
"""For each rule, from its slots and scalars to the other library's entries."""


def lifted_of(tx: Any, module: str) -> Lifted:
    """The one optimizer of a port in a transformation or a chain."""
    ported = [
        each
        for (each,) in walk(tx, through=Chained)
        if isinstance(each, Lifted) and _is_port(each.factory, module)
    ]
    if len(ported) != 1:
        raise TypeError(
            f"expected one optimizer of adaptive_jax.interop.{module}, alone or in an aj.chain, got "
            f"{tx!r}."
        )
    return ported[0]


def _is_port(factory: Any, module: str) -> bool:
    return getattr(factory, "label", "").startswith(f"{module}.")


def entries_of(lifted: Lifted, vocabulary: Vocabulary) -> tuple[dict[str, Entry], dict[str, Entry]]:
    """The entries that another library keeps for this optimizer: for slots and for scalars."""
    slots, scalars = {}, {}
    for rule in lifted.rules:
        if decays := states.scheduled_decays(rule):
            raise ValueError(
                f"{decays[0]} of {lifted!r} is a schedule, which no saved run knows: give it a number."
            )
        words = vocabulary.get(type(rule), {})
        slots |= {slot: words[slot] for slot in rule.slots}
        scalars |= {scalar: words[scalar] for scalar in rule.scalars}
    return slots, scalars


def fill(
    tx: Any, params: Any, vocabulary: Vocabulary, module: str, saved: Mapping[str, Saved], step: int
) -> Any:
    """The state of tx with what was saved in it."""
    target = lifted_of(tx, module)

    def filled(_: Any, inner: Any, state: Any) -> Any:
        if inner is target:
            state = _fill(target, state, params, vocabulary, saved)
        elif isinstance(inner, Foreign) and jax.tree.leaves(state):
            raise TypeError(
                f"the chain holds {inner!r}, whose state no saved run has: import the state of the "
                "optimizer alone, and put it into the chain's."
            )
        return inner, _count_to(inner, state, step)

    return rebuilt(filled, tx, tx, tx.init(params), through=Chained)[1]


def _fill(target: Lifted, state: Any, params: Any, vocabulary: Vocabulary, saved: Any) -> Any:
    new = []
    for rule, storages, part in zip(
        target.rules, target.storages, target.split(state), strict=True
    ):
        values: dict[str, Any] = {}
        words = vocabulary.get(type(rule), {})
        for name in rule.scalars:
            value = next(iter(saved.values())).entries[words[name].name]
            values[name] = jnp.asarray(value, getattr(part, name).dtype)
        for (name, slot), storage in zip(rule.slots.items(), storages, strict=True):
            values[name] = _slot(
                getattr(part, name), name, slot, storage, params, words[name], saved
            )
        new.append(part._replace(**values) if values else part)
    return target.join(new)


def _slot(
    old: Any, name: str, slot: Slot, storage: Any, params: Any, word: Entry, saved: Any
) -> Any:
    with_path, treedef = jax.tree_util.tree_flatten_with_path(params)
    stored = []
    pairs = zip(with_path, treedef.flatten_up_to(old), strict=True)
    for index, ((path, leaf), first) in enumerate(pairs):
        one = saved[keystr(path, simple=True, separator="/")]
        value, what = one.entries[word.name], f"{word.name} of {one.name}"
        if value.shape != np.shape(leaf):
            raise ValueError(
                f"{what} has the shape {value.shape}, the parameter {np.shape(leaf)}: transpose it "
                "with a mapping, {name: (path, axes)}."
            )
        if np.iscomplexobj(value) and (slot.nonnegative or not jnp.iscomplexobj(leaf)):
            raise ValueError(f"{what} is complex, where {name} is real here.")
        if slot.nonnegative and (value < 0).any():
            raise ValueError(f"{what} has negative entries, where {name} is never negative.")
        code = storage.decode(first)
        value = jnp.array(word.sign * value, code.dtype)
        stored.append(storage.encode(value, first, jnp.uint32(index)))
    return treedef.unflatten(stored)


def _count_to(inner: Any, state: Any, step: int) -> Any:
    """The state of an optimizer of this library with its counts set."""
    if not isinstance(inner, Lifted):
        return state

    def at_step(part: Any) -> Any:
        if "count" not in getattr(part, "_fields", ()):
            return part
        return part._replace(count=jnp.asarray(step, part.count.dtype))

    return inner.join([at_step(part) for part in inner.split(state)])


def read(
    tx: Any, state: Any, params: Any, vocabulary: Vocabulary, module: str
) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, float], int]:
    """The reverse of `fill`: each parameter's entries, the scalars, and the count."""
    target = lifted_of(tx, module)
    part = next(part for each, part in walk(tx, state, through=Chained) if each is target)
    split = target.split(part)
    by_path: dict[str, dict[str, np.ndarray]] = {path: {} for path in paths(params)}
    scalars, count = {}, 0
    for rule, storages, old in zip(target.rules, target.storages, split, strict=True):
        words = vocabulary.get(type(rule), {})
        count = max(count, int(getattr(old, "count", 0))) if states.counts_steps(rule) else count
        for name in rule.scalars:
            scalars[words[name].name] = float(getattr(old, name))
        for name, storage in zip(rule.slots, storages, strict=True):
            values = jax.tree.structure(params).flatten_up_to(getattr(old, name))
            for entries, value in zip(by_path.values(), values, strict=True):
                word = words[name]
                # Times a sign, an array of shape () would become a number.
                entries[word.name] = np.asarray(word.sign * array(storage.decode(value), word.name))
    return by_path, scalars, count


# ---------------------------------------------------------------------------- which setting


def setting(lifted: Lifted, name: str, default: Any) -> Any:
    """The value that an argument of the call has now; `default` if it was left without effect."""
    value = lifted.arguments().get(name, default)
    values = value if isinstance(value, tuple) else (value,)
    for each in values:
        if np.shape(each) != () and not callable(each):
            raise ValueError(
                f"{name} of the optimizer has the shape {np.shape(each)}: a saved run is one run, so "
                "take one optimizer out of the vmapped ones with jax.tree.map(lambda x: x[i], tx)."
            )
    return value


def decaying(lifted: Lifted, params: Any) -> dict[str, bool]:
    """For the path of each parameter, whether the optimizer's mask lets its weights decay."""
    masks = [getattr(rule, "mask", None) for rule in lifted.rules]
    masks = [mask for mask in masks if mask is not None]
    if not masks:
        return dict.fromkeys(paths(params), True)
    tree = masks[0].tree(params)
    full = jax.tree.map(lambda each, part: jax.tree.map(lambda _: bool(each), part), tree, params)
    return paths(full)


def partitioned(
    tx: Mapping[Any, Any],
    params: Any,
    param_labels: Any,
    convert: Callable[[Any, Any], Any],
) -> Any:
    """The state of `optax.partition(tx, param_labels)`, from the state of each of its optimizers."""
    if param_labels is None:
        raise TypeError(
            "several optimizers need param_labels as well, the second argument of optax.partition."
        )
    own = parts(tx, params, param_labels)
    inner = {
        label: optax.MaskedState(convert(each, part))
        for (label, each), part in zip(tx.items(), own, strict=True)
    }
    state: Any = optax.partition(tx, param_labels).init(params)
    return state._replace(inner_states=inner)


def parts(tx: Mapping[Any, Any], params: Any, param_labels: Any) -> list[Any]:
    """The parameters of each label, with holes where the others are."""
    labels = param_labels(params) if callable(param_labels) else param_labels
    full = jax.tree.map(lambda label, part: jax.tree.map(lambda _: label, part), labels, params)
    if unknown := set(jax.tree.leaves(full)) - set(tx):
        raise ValueError(f"param_labels has {sorted(unknown)}, for which there is no optimizer.")

    def only(this: Any) -> Any:
        return jax.tree.map(
            lambda label, leaf: leaf if label == this else optax.MaskedNode(), full, params
        )

    return [only(this) for this in tx]
