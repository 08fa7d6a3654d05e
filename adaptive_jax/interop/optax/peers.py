"""The optimizer of optax that is the same as one here."""

from __future__ import annotations

import inspect
from typing import Any

import jax
import optax

from ..._core.lifted import Lifted
from ..._core.mask import Selection
from ..._core.transformation import Foreign, data_of
from ...rules.averaging import Lookahead
from ...rules.betting import Mechanic
from ...rules.schedule_free import ScheduleFreeSteps
from ...transforms.chain import Chained
from ...transforms.matrices import REST, OfMatrices
from ...transforms.partition import MaskedTransform, Partition

_RENAMED = {
    "sophia": {"mask": "weight_decay_mask"},
    "muon": {"b1": "beta", "mask": "weight_decay_mask"},
    "scale_by_muon": {"b1": "beta"},
}
"""From arguments here to those of optax, where they have other names."""


def peer_of(data: Any, params: Any) -> Any:
    """optax's transformation of the same name, with those arguments of this one that it takes.

    Raises:
      TypeError: for what optax has not, by name.
    """
    if isinstance(data, Foreign):
        return data.transformation
    if isinstance(data, Lifted):
        return _called(data, params)
    if isinstance(data, OfMatrices):
        return _of_matrices(data, params)
    if isinstance(data, Partition):
        trees = data.params_in(params)
        pairs = zip(data.transforms.items(), trees, strict=True)
        peers = {label: peer_of(data_of(tx), tree) for (label, tx), tree in pairs}
        return optax.partition(peers, _labels(data, params))
    if isinstance(data, MaskedTransform):
        (tree,) = data.params_in(params)
        return optax.masked(peer_of(data_of(data.inner), tree), data.mask.tree(params))
    if isinstance(data, Chained):
        last = data_of(data.members[-1])
        rule = last.rules[0] if isinstance(last, Lifted) and len(data.members) == 2 else None
        first = peer_of(data_of(data.members[0]), params)
        if isinstance(rule, ScheduleFreeSteps):
            rate, b1 = rule.learning_rate, rule.b1
            return optax.contrib.schedule_free(first, rate, b1, rule.weight_lr_power)
        if isinstance(rule, Mechanic):
            numbers = (rule.weight_decay, rule.eps, rule.s_init, rule.num_betas)
            return optax.contrib.mechanize(first, *numbers)
        if isinstance(rule, Lookahead):
            return optax.lookahead(first, rule.sync_period, rule.slow_step_size)
        return optax.chain(first, *[peer_of(data_of(x), params) for x in data.members[1:]])
    raise TypeError(
        f"which optimizer of optax {data!r} is to become is not known: give it as peer=…, as in "
        "peer=optax.MultiSteps(optax.adam(1e-3), 4)."
    )


def _called(lifted: Lifted, params: Any, **also: Any) -> Any:
    """The call that made a transformation, of optax's function of the name."""
    name = lifted.factory.__name__ if lifted.factory is not None else repr(lifted)
    function = getattr(optax, name, None) or getattr(optax.contrib, name, None)
    label = getattr(lifted.factory, "label", name)
    if function is None or label != name:
        raise TypeError(
            f"optax has no {label}: its state cannot go there. Is there one that does the same by another "
            "name, give it as peer=…."
        )
    renamed, taken = _RENAMED.get(name, {}), inspect.signature(function).parameters
    values = {}
    for argument, value in lifted.arguments().items():
        argument = renamed.get(argument, argument)
        if argument in taken:
            values[argument] = value.tree(params) if isinstance(value, Selection) else value
    if "ns_coeffs" in values:
        triples = lifted.rules[0].polynomials  # type: ignore[attr-defined]
        values["ns_coeffs"] = triples[0] if len(set(triples)) == 1 else triples
    return function(**{**values, **also})


def _of_matrices(data: OfMatrices, params: Any) -> Any:
    label = next(each for each in data.transforms if each != REST)
    if label != "muon":
        raise TypeError(f"optax has no {label}: its state cannot go there.")
    of_label = optax.contrib.MuonDimensionNumbers()
    labels = jax.tree.map(lambda each: of_label if each == label else None, _labels(data, params))
    lifted: Any = data_of(data.transforms[label])
    return _called(lifted, params, muon_weight_dimension_numbers=lambda _: labels)


def _labels(data: Partition, params: Any) -> Any:
    """The label of each parameter."""
    treedef = jax.tree.structure(params)
    found: list[Any] = [None] * treedef.num_leaves
    for label, tree in zip(data.transforms, data.params_in(params), strict=True):
        parts = treedef.flatten_up_to(tree)
        for place, part in enumerate(parts):
            found[place] = found[place] if isinstance(part, optax.MaskedNode) else label
    return treedef.unflatten(found)
