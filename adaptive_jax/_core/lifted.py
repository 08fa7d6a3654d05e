"""Rules with the storage of their slots: the data that `init` and `update` share."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import optax

from .. import maths
from . import hyper, states
from .rule import Rule, decay_names, fields, replace
from .storage import base


@dataclass(frozen=True, repr=False)
class Lifted:
    """Rules, the storage of each one's slots, and the call that put them together.

    What can be said of them without an update; with it they are an `Optimizer`.

    order: for each entry of the state, the place of its rule.
    """

    rules: tuple[Rule, ...]
    storages: tuple[tuple[base.Storage, ...], ...]
    factory: Callable[..., Any] | None
    options: tuple[tuple[str, Any], ...]
    order: tuple[int, ...]

    def layout(self) -> list[states.Layout]:
        """How each rule's state is laid out. What rounds at random has its steps counted."""
        return [
            states.layout_of(rule, any(each.stochastic for each in storages))
            for rule, storages in zip(self.rules, self.storages, strict=True)
        ]

    def split(self, state: Any) -> tuple[Any, ...]:
        """Each rule's part of the state, which is checked."""
        layout = self.layout()
        entries = states.split(state, [layout[place] for place in self.order])
        return tuple(entries[self.order.index(place)] for place in range(len(layout)))

    def join(self, rule_states: Sequence[Any]) -> Any:
        """The reverse of `split`."""
        entries = [
            optax.MaskedState(each) if layout.masked else each
            for each, layout in zip(rule_states, self.layout(), strict=True)
        ]
        return tuple(entries[place] for place in self.order) if len(entries) > 1 else entries[0]

    def __repr__(self) -> str:
        """The call that made it, with the values that its hyperparameters have now."""
        if self.factory is None:
            shown = [f"{name}={value!r}" for name, value in self.options]
            return f"transform({', '.join([*map(repr, self.rules), *shown])})"
        parameters = inspect.signature(self.factory).parameters
        shown = [
            f"{name}={hyper.show(value)}"
            for name, value in self.arguments().items()
            if not (isinstance(value, (bool, str)) and value == parameters[name].default)
        ]
        return f"{getattr(self.factory, 'label', self.factory.__name__)}({', '.join(shown)})"

    def arguments(self) -> dict[str, Any]:
        """The arguments of the call that made it, as they are now, but for those without effect.

        A factory whose arguments are not named like the fields of its rules has a table, `fields`.
        """
        assert self.factory is not None
        options, renamed = dict(self.options), getattr(self.factory, "fields", {})
        values = {}
        for name, parameter in inspect.signature(self.factory).parameters.items():
            field = renamed.get(name, name)
            if name in options:
                values[name] = options[name]
            elif isinstance(field, tuple):
                values[name] = tuple(self._field(each) for each in field)
            else:
                values[name] = self._field(field)
            # None may be what was chosen. Of an argument that no rule has, it says nothing, nor of one
            # whose default is 0, which rules have as None.
            is_known = name in options or name == "weight_decay" or self._has(field)
            is_default = hyper.none_if_zero(parameter.default) is None
            if values[name] is None and (is_default or not is_known):
                del values[name]
        return values

    def _has(self, field: Any) -> bool:
        """Whether a rule has the field of an argument."""
        _, _, attribute = str(field).rpartition(".")
        return any(attribute in fields(type(rule)).static for rule in self.rules)

    def _field(self, name: str) -> Any:
        """The value of the first rule that has one under this name, or of the rule in "Rule.name"."""
        owner, _, attribute = name.rpartition(".")
        rules = [rule for rule in self.rules if owner in ("", type(rule).__name__)]
        values = (getattr(rule, attribute, None) for rule in rules)
        return next((value for value in values if value is not None), None)


class Unquoted(str):
    """A string that is shown without quotes."""

    __slots__ = ()
    __repr__ = str.__str__


def with_complements(tree: Any) -> Any:
    """Rules with 1 - b beside each decay rate that is a Python number, taken in float64.

    Before jit rounds b. tree: a `Lifted`, or anything with such in it.
    """

    def of_rule(rule: Any) -> Any:
        if not isinstance(rule, Rule):
            return rule
        values = {name: getattr(rule, name) for name in decay_names(type(rule))}
        decays = {
            name: with_complement(value)
            if isinstance(value, float)
            else hyper.mapped(with_complement, value)
            for name, value in values.items()
            if isinstance(value, float) or not hyper.is_one(value)
        }
        return replace(rule, **decays) if decays else rule

    def with_complement(b: Any) -> Any:
        return maths.DecayRate(b, 1.0 - b) if isinstance(b, float) else b  # type: ignore[arg-type]

    return jax.tree.map(of_rule, tree, is_leaf=lambda x: isinstance(x, Rule))


def are_decays(tree: Any) -> list[bool]:
    """For each leaf of what has rules in it, whether it is the decay rate of a moving average."""
    found: list[bool] = []
    for node in jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, Rule)):
        if not isinstance(node, Rule):
            found.append(False)
            continue
        decays = decay_names(type(node))
        for name in fields(type(node)).data:
            for value in hyper.each_of(getattr(node, name)):
                found += [name in decays and leaf is value for leaf in jax.tree.leaves(value)]
    return found
