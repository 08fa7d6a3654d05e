"""Which parameter here each array of another library is, by its name and its shape."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from ._arrays import paths

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


def for_export(params: Any, mapping: Any, whose: str) -> Mapped:
    """The parameters in the order of the other library: that of the mapping, or their own.

    whose: whose order it is, for the error where params has none of its own.
    """
    if mapping is not None:
        return checked_mapping(mapping, params)
    if not has_own_order(params):
        raise ValueError(
            f"params is a dict, whose keys JAX sorts: give the mapping, whose order is {whose}."
        )
    return in_order(params, list(paths(params)))


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
