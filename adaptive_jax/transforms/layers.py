"""Learning rates that fall from the top layer of a network to the bottom, as a tree of hyperparameters."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
from jax.tree_util import DictKey, GetAttrKey, SequenceKey, tree_flatten_with_path

from .._core import hyper, pytrees
from .._core.arguments import whole
from .._core.schedule import product_of_schedules
from .labels import path_name, some


def layerwise_decay(
    params: Any,
    rate: Any,
    factor: Any,
    layers: Sequence[str | re.Pattern[str]] | Callable[[str], int] | None = None,
) -> Any:
    r"""A learning rate for each layer: rate for the top one, factor times that of the layer above below it.

        η_l = η·f^(L-l),   layers l from 1 to L, the top

    It is the usual recipe for fine-tuning: the layers next to the data are general and are kept, those
    next to the loss learn the new task.

    Args:
      params: the parameters, as arrays or as shapes.
      rate: the learning rate η >= 0 of the top layer: a number, an array of shape (), or a schedule. Of a
        schedule come products of it.
      factor: f in [0, 1], usually 0.65 to 0.95: a number or an array of shape (). 1 is one rate for all; 0
        leaves all layers but the top one as they are.
      layers: which array is in which layer, by its path a/b/c. Either regular expressions from the bottom
        layer to the top one, of which the first that is found in the path counts: one with a group such
        as "layer_(\d+)" stands for as many layers as there are numbers, in their order. Or a function
        from the path to the number of the layer, which counts from the bottom.
        None for parameters that are a list or tuple of layers, or a dict or module of entries that differ
        in a number at the end, layer_0, layer_1, …: in the order of the numbers. Entries that stand alone,
        as "params" does in Flax, are passed through.

    Returns:
      A prefix of params with a learning rate for each layer, for `learning_rate=` of any optimizer.

    Raises:
      TypeError: for an argument of the wrong type.
      ValueError: for a number out of range, for parameters whose layers cannot be told, for an array that
        no expression is found in, and for an expression that is found in none.

    Paper: Clark et al. 2020, https://arxiv.org/abs/2003.10555, after Howard & Ruder 2018.

    Example:
      >>> import adaptive_jax as aj, jax.numpy as jnp
      >>> layer = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
      >>> params = {"embed": jnp.ones(2), "layer_0": layer, "layer_1": layer, "head": layer}
      >>> layers = ["embed", r"layer_(\d+)", "head"]
      >>> rates = aj.layerwise_decay(params, 0.08, 0.5, layers)
      >>> rates
      {'embed': 0.01, 'head': 0.08, 'layer_0': 0.02, 'layer_1': 0.04}
      >>> aj.sgd(rates).init(params)
      (EmptyState(), EmptyState())
    """
    for name, value in (("rate", rate), ("factor", factor)):
        if value is None or (name == "factor" and hyper.is_schedule(value)):
            raise TypeError(f"{name}={value!r:.80} in layerwise_decay must be a number.")
        limits = hyper.Interval(0.0) if name == "rate" else hyper.Interval(0.0, 1.0)
        hyper.hyperparameter("layerwise_decay", name, value, limits)
    paths = [path for path, _ in tree_flatten_with_path(params)[0]]
    if layers is None:
        numbers = _by_entries(params)
    elif callable(layers):
        numbers = [
            whole(f"layers({path_name(path)!r})", layers(path_name(path)), 0) for path in paths
        ]
    else:
        numbers = _by_patterns(list(map(path_name, paths)), layers)
    top = max(numbers, default=0)
    rates = {number: _scaled(rate, factor, top - number) for number in {*numbers}}
    tree = _merged(jax.tree.unflatten(jax.tree.structure(params), numbers))
    return jax.tree.map(rates.__getitem__, tree)


def _scaled(rate: Any, factor: Any, depth: int) -> Any:
    """rate·factor^depth."""
    if depth == 0:
        return rate
    scale = factor**depth
    return product_of_schedules((rate, scale)) if hyper.is_schedule(rate) else rate * scale


def _merged(tree: Any) -> Any:
    """A tree of numbers with one for each branch where all are equal."""
    if jax.tree_util.all_leaves([tree]):
        return tree
    below, kind = pytrees.children(tree)
    merged = [_merged(each) for each in below]
    known = [each for each in merged if each is not None]
    if known and all(type(each) is int and each == known[0] for each in known):
        return known[0]
    return kind.unflatten(merged)


def _by_patterns(names: Sequence[str], layers: Any) -> list[int]:
    """The layer of each array, by regular expressions from the bottom to the top."""
    if isinstance(layers, (str, bytes)) or not isinstance(layers, Iterable):
        raise TypeError(
            f"layers={layers!r:.80} must be a list of regular expressions, from the bottom layer to the "
            "top one, or a function from the path of an array to the number of its layer."
        )
    patterns = []
    for index, each in enumerate(layers):
        try:
            patterns.append(re.compile(each))
        except (re.error, TypeError) as error:
            raise ValueError(
                f"layers[{index}]={each!r:.80} is no regular expression for paths: {error}."
            ) from None
        if patterns[-1].groups > 1:
            raise ValueError(
                f"layers[{index}]={each!r} has {patterns[-1].groups} groups: one is for the number of the "
                "layer, and others are written (?:…)."
            )
    found = [_place(name, patterns) for name in names]
    unused = [each.pattern for i, each in enumerate(patterns) if i not in {i for i, _ in found}]
    if unused:
        raise ValueError(
            f"no array has a path for {', '.join(map(repr, unused))} in layers: the paths are "
            f"{some(names)}."
        )
    return _ranks(found)


def _place(name: str, patterns: Sequence[re.Pattern[str]]) -> tuple[int, int]:
    """Which pattern is the first that is found in a path, and the number in its group."""
    for index, pattern in enumerate(patterns):
        if match := pattern.search(name):
            number = match[1] if pattern.groups else "0"
            if number is None or not number.isdecimal():
                raise ValueError(
                    f"{pattern.pattern!r} in layers finds {number!r} in the path {name!r}, where the "
                    r"number of a layer is looked for: (\d+)."
                )
            return index, int(number)
    raise ValueError(
        f"no expression in layers is found in the path {name!r}: they are "
        f"{', '.join(repr(each.pattern) for each in patterns)}. One more, '.*' at the end, puts all the "
        "rest into the top layer."
    )


def _ranks(found: Sequence[Any]) -> list[int]:
    """The place of each among those that differ, in their order."""
    order = {each: rank for rank, each in enumerate(sorted({*found}))}
    return [order[each] for each in found]


def _by_entries(params: Any) -> list[int]:
    """The layer of each array, by the entries of the first node that has several."""
    if jax.tree_util.all_leaves([params]):
        return [0]
    entries, passed = _entries(params), []
    while len(entries) == 1 and not jax.tree_util.all_leaves([entries[0][1]]):
        passed.append(entries[0][0])
        entries = _entries(entries[0][1])
    if any(map(_number, passed)) and all(jax.tree_util.all_leaves([each]) for _, each in entries):
        return [0] * len(entries)  # The arrays of the one layer that there is.
    numbered = [_number(key) for key, _ in entries]
    stems = {None if each is None else each[0] for each in numbered}
    if len(entries) > 1 and (None in stems or len(stems) > 1):
        raise ValueError(
            "which layer is above which cannot be told from the entries "
            f"{some([path_name([*passed, key]) for key, _ in entries], 8)}. Give them from the bottom to "
            f"the top, as regular expressions: layers=[{', '.join(_suggested(entries))}], in the right "
            "order."
        )
    ranks = _ranks(numbered) if len(entries) > 1 else [0] * len(entries)
    return [
        rank
        for rank, (_, branch) in zip(ranks, entries, strict=True)
        for _ in jax.tree.leaves(branch)
    ]


def _entries(node: Any) -> list[tuple[Any, Any]]:
    """What is directly in a node and has arrays in it, each after its key."""
    found = tree_flatten_with_path(node, is_leaf=lambda x: x is not node)[0]
    return [(path[0], each) for path, each in found if path and jax.tree.leaves(each)]


def _number(key: Any) -> tuple[str, int] | None:
    """The name of an entry without the number at its end, and the number; None without one."""
    if isinstance(key, SequenceKey):
        return "", key.idx
    name = key.key if isinstance(key, DictKey) else getattr(key, "name", None)
    found = (
        re.fullmatch(r"(.*?)(\d+)", str(name)) if isinstance(key, (DictKey, GetAttrKey)) else None
    )
    return (found[1], int(found[2])) if found else None


def _suggested(entries: Sequence[tuple[Any, Any]]) -> list[str]:
    """An expression for each entry, for a user to put in order."""
    found: dict[str, None] = {}
    for key, branch in entries:
        own, name = _number(key), path_name([key])
        below = [_number(each) for each, _ in _entries(branch)]
        stems = {None if each is None else each[0] for each in below}
        if own is not None:
            name = rf"{re.escape(own[0])}(\d+)"
        elif len(below) > 1 and len(stems) == 1 and (stem := stems.pop()) is not None:
            name = rf"{name}/{re.escape(stem)}(\d+)"
        found[f'r"{name}"' if "\\" in name else f'"{name}"'] = None
    return list(found)
