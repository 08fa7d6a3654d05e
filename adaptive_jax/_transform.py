"""The lift: from the maths of one array to an optax transformation of a whole pytree.

With `_check.py`, which words the errors, this is the only code that knows pytrees, dtypes, schedules
and storage: each handled once, for every rule.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from types import NoneType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jax.tree_util import Partial

from . import _check, _closures, _export, _rule, _storage, maths
from ._rule import Context, Rule


@_export.node
@jax.tree_util.register_pytree_with_keys_class
class Transformation(optax.GradientTransformationExtraArgs):
    """An optax gradient transformation that is data: what `init` and `update` share is one pytree."""

    __slots__ = ()

    def tree_flatten_with_keys(self) -> Any:
        """Its leaves are there once, although both functions hold them: they can be donated."""
        init, update = self
        children = ((jax.tree_util.GetAttrKey("update"), update.args[0]),)  # type: ignore[attr-defined]
        return children, (init.func, update.func)  # type: ignore[attr-defined]

    def tree_flatten(self) -> Any:
        """The same without keys, which is quicker."""
        init, update = self
        return update.args, (init.func, update.func)  # type: ignore[attr-defined]

    @classmethod
    def tree_unflatten(cls, functions: Any, shared: Any) -> Transformation:
        """The transformation, of new leaves."""
        return cls(*(Partial(function, *shared) for function in functions))

    def __repr__(self) -> str:
        return repr(self.init.args[0])  # type: ignore[attr-defined]


@_export.node
@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["rules"],
    meta_fields=["storages", "factory", "options", "order"],
)
@dataclass(frozen=True, repr=False)
class Lifted:
    """Rules, the storage of each one's slots, and the call that put them together.

    order: for each entry of the state, the place of its rule.
    """

    rules: tuple[Rule, ...]
    storages: tuple[tuple[_storage.Storage, ...], ...]
    factory: Callable[..., Any] | None
    options: tuple[tuple[str, Any], ...]
    order: tuple[int, ...]

    def layout(self) -> list[_rule.Layout]:
        """How each rule's state is laid out. What rounds at random has its steps counted."""
        return [
            _rule.layout(rule, any(each.stochastic for each in storages))
            for rule, storages in zip(self.rules, self.storages, strict=True)
        ]

    def split(self, state: Any) -> tuple[Any, ...]:
        """Each rule's part of the state, which is checked."""
        layout = self.layout()
        entries = _check.state(state, [layout[place] for place in self.order])
        return tuple(entries[self.order.index(place)] for place in range(len(layout)))

    def join(self, parts: Sequence[Any]) -> Any:
        """The reverse of `split`."""
        entries = [
            optax.MaskedState(part) if layout.masked else part
            for part, layout in zip(parts, self.layout(), strict=True)
        ]
        return tuple(entries[place] for place in self.order) if len(entries) > 1 else entries[0]

    def __repr__(self) -> str:
        """The call that made it, with the values that its hyperparameters have now."""
        if self.factory is None:
            shown = [f"{name}={value!r}" for name, value in self.options]
            return f"transform({', '.join([*map(repr, self.rules), *shown])})"
        parameters = inspect.signature(self.factory).parameters
        shown = [
            f"{name}={_rule.show(value)}"
            for name, value in self.arguments().items()
            if not (isinstance(value, (bool, str)) and value == parameters[name].default)
        ]
        return f"{getattr(self.factory, 'label', self.factory.__name__)}({', '.join(shown)})"

    def arguments(self) -> dict[str, Any]:
        """The arguments of the call that made it, as they are now, but for those without effect.

        A factory whose arguments are not named like the fields of its rules has a table, `fields`.
        """
        assert self.factory is not None
        options, fields = dict(self.options), getattr(self.factory, "fields", {})
        values = {}
        for name in inspect.signature(self.factory).parameters:
            field = fields.get(name, name)
            if name in options:
                values[name] = options[name]
            elif isinstance(field, tuple):
                values[name] = tuple(self._field(each) for each in field)
            else:
                values[name] = self._field(field)
        return {name: value for name, value in values.items() if value is not None}

    def _field(self, name: str) -> Any:
        """The value of the first rule that has one under this name, or of the rule in "Rule.name"."""
        owner, _, attribute = name.rpartition(".")
        rules = [rule for rule in self.rules if owner in ("", type(rule).__name__)]
        values = (getattr(rule, attribute, None) for rule in rules)
        return next((value for value in values if value is not None), None)


def transform(*rules: Rule, storage: Any = None) -> Transformation:
    """Rules in a row, lifted from one array to an optax gradient transformation of pytrees.

    Each rule turns the direction that the one before it gave into a new one; the first gets the
    gradient, the last one gives the update. The result is an `optax.GradientTransformationExtraArgs`,
    and a pytree whose leaves are the hyperparameters: it goes through `jax.jit` as an argument and
    comes out of `jax.vmap` as many optimizers.

    The maths runs in float32, or in float64 where parameters or gradients are; an update has the dtype
    of its gradient. A gradient that is None gives None and leaves its slots alone.

    Args:
      *rules: the rules, in the order in which they apply.
      storage: how slots are kept: None or "float32" (at least), "bfloat16", "int8", "int16",
        "factored" (for slots that are never negative), a `Storage`, or a mapping from names of slots to
        these. What rounds at random adds a `count` to the state.

    Returns:
      The transformation. The state of one rule is a NamedTuple of `count` (if the rule counts its
      steps) and the rule's slots, or `optax.EmptyState()` if it has neither. The state of several
      rules is the tuple of theirs, as in `optax.chain`.

    Raises:
      TypeError: for what is not a rule, or not a storage.
      ValueError: for no rules at all, an unknown storage, or a storage for an unknown slot.

    Example:
      >>> import adaptive_jax as aj
      >>> aj.transform(aj.WeightDecay(0.01), aj.LearningRate(0.1))
      transform(WeightDecay(weight_decay=0.01), LearningRate(learning_rate=0.1))
    """
    return build(None, *rules, storage=storage)


def build(
    factory: Callable[..., Any] | None,
    *rules: Rule,
    storage: Any = None,
    order: Sequence[int] | None = None,
    **options: Any,
) -> Transformation:
    """`transform`, for an optimizer whose repr is to be the call of factory.

    order: for each entry of the state the place of its rule, where it is not that of the rules.
    options: arguments of that call that no rule has as a field, where they are not the default.
    """
    if not rules:
        raise ValueError("transform needs at least one rule, such as aj.LearningRate(1e-3).")
    for rule in rules:
        if not isinstance(rule, Rule):
            raise TypeError(
                f"transform takes rules, got {rule!r} of type {type(rule).__name__}. Transformations, "
                "such as aj.adam(1e-3) and those of optax, are put together by aj.chain."
            )
        _rule.fields(type(rule))  # Raises for a rule that is not a frozen dataclass.
        _check.update_arguments(type(rule))
    _storage.check_slot_names(storage, {name for rule in rules for name in rule.slots})
    storages = tuple(tuple(_storage.per_slot(storage, rule.slots).values()) for rule in rules)
    if storage is not None:
        options["storage"] = Text(repr(storage))  # A mapping does not hash.
    order = tuple(range(len(rules)) if order is None else order)
    lifted = Lifted(rules, storages, factory, tuple(options.items()), order)
    return Transformation(Partial(_init, lifted), Partial(_update, lifted))


class Text(str):
    """A string that is shown without quotes."""

    __slots__ = ()
    __repr__ = str.__str__


def _init(lifted: Lifted, params: Any) -> Any:
    """The state at first. It maps over params only: some tools of optax pass a placeholder."""
    _export.states_of_optax()
    _check.leaves("params", params)
    _check.no_complex("params", params, lifted.rules)
    scalar_dtype = maths.compute_dtype(jnp.float32, *map(jnp.result_type, jax.tree.leaves(params)))
    parts = []
    for rule, storages, layout in zip(lifted.rules, lifted.storages, lifted.layout(), strict=True):
        entries: dict[str, Any] = (
            {"count": jnp.zeros((), jnp.int32)} if "count" in layout.fields else {}
        )
        for name in _rule.scheduled_decays(rule):
            entries[f"{name}_correction"] = jnp.zeros((), scalar_dtype)
        for name, first in rule.scalars.items():
            entries[name] = jnp.asarray(first, scalar_dtype)
        for (name, slot), storage in zip(rule.slots.items(), storages, strict=True):
            initial = getattr(rule, slot.initial) if isinstance(slot.initial, str) else slot.initial
            entries[name] = storage.init_tree(initial, params, real=slot.nonnegative)
        parts.append(layout.make(**entries))
    return lifted.join(parts)


def _update(
    lifted: Lifted, updates: Any, state: Any, params: Any = None, **extra_args: Any
) -> tuple[Any, Any]:
    """optax's `update`. Extra arguments are meant for other members of a chain."""
    del extra_args
    lifted = exact(lifted)
    try:
        if _is_cut(lifted, (updates, state, params)):
            return _update_in_pieces(lifted, (updates, state, params))
        return _update_tree(lifted, updates, state, params)
    except TypeError:
        # What is no array at all is refused by jit, before the checks inside.
        _check.Arrays("gradients", updates).params(params, ())
        arrays = _check.with_gradient(updates, params)
        if arrays is params:
            raise
    return _update(lifted, updates, state, arrays)


def exact(tree: Any) -> Any:
    """Rules with 1 - b beside each decay rate that is a Python number, taken in float64.

    Before jit rounds b. tree: a `Lifted`, or anything with such in it.
    """

    def with_complements(rule: Any) -> Any:
        if not isinstance(rule, Rule):
            return rule
        values = {name: getattr(rule, name) for name in _rule.decay_names(type(rule))}
        exact = {
            name: maths.DecayRate(value, 1.0 - value)  # type: ignore[arg-type]
            for name, value in values.items()
            if isinstance(value, float)
        }
        return _rule.replace(rule, **exact) if exact else rule

    return jax.tree.map(with_complements, tree, is_leaf=lambda x: isinstance(x, Rule))


def are_decays(tree: Any) -> list[bool]:
    """For each leaf of what has rules in it, whether it is the decay rate of a moving average."""
    found: list[bool] = []
    for node in jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, Rule)):
        if not isinstance(node, Rule):
            found.append(False)
            continue
        decays = _rule.decay_names(type(node))
        for name in _rule.fields(type(node))[0]:
            leaves = jax.tree.leaves(value := getattr(node, name))
            found += [name in decays and leaf is value for leaf in leaves]
    return found


@functools.partial(jax.jit, static_argnames="selected")
def _update_tree(
    lifted: Lifted,
    updates: Any,
    state: Any,
    params: Any,
    indices: Sequence[Any] | None = None,
    selected: Sequence[Sequence[bool]] | None = None,
) -> tuple[Any, Any]:
    """One update of a whole tree. Jitted here, once: a single dispatch when called outside of jit.

    All checks run while it is traced, so from the second call on they cost nothing. For a piece of a
    larger tree, indices are the places of its arrays in that, and selected what the rules' masks say.
    """
    rules = lifted.rules
    gradients, param_leaves, states, slots = _matched(lifted, updates, state, params)
    if selected is None:
        selected = _selected(lifted, gradients, params)
    if indices is None:
        indices = [np.uint32(i) for i in range(len(gradients.leaves))]
    rounds = [any(storage.stochastic for storage in each) for each in lifted.storages]
    steps = [_Step(*each) for each in zip(rules, lifted.layout(), states, rounds, strict=True)]

    directions = list(gradients.leaves)
    for start, stop in _stretches(rules):
        part = slice(start, stop)
        statistic = steps[start].statistic(directions)
        for i, (gradient, direction) in enumerate(zip(gradients.leaves, directions, strict=True)):
            if direction is None:
                continue
            stored = tuple(
                {name: leaves[i] for name, leaves in each.items()} for each in slots[part]
            )
            dtype = _compute_dtype(direction, stored)
            stochastic = any(codec.stochastic for each in lifted.storages[part] for codec in each)
            directions[i], new = _update_array(
                tuple(step.rule_in(dtype) for step in steps[part]),
                tuple(step.count for step in steps[part]),
                tuple(step.scalars for step in steps[part]),
                statistic,
                direction,
                stored,
                param_leaves[i],
                indices[i] if stochastic else None,
                storages=lifted.storages[part],
                selected=tuple(each[i] for each in selected[part]),
                dtypes=(dtype, gradient.dtype if stop == len(rules) else dtype),
            )
            for each, values in zip(slots[part], new, strict=True):
                for name, value in values.items():
                    each[name][i] = value

    new_states = [
        step.state(
            old,
            {
                name: gradients.slot_tree(getattr(old, name), leaves)
                for name, leaves in each.items()
            },
        )
        for step, old, each in zip(steps, states, slots, strict=True)
    ]
    return gradients.treedef.unflatten(directions), lifted.join(new_states)


def _matched(lifted: Lifted, updates: Any, state: Any, params: Any) -> tuple[Any, ...]:
    """All trees of an update, checked, as lists in the order of the gradients.

    These are the gradients, the parameters, and of each rule its state and its slots.
    """
    rules = lifted.rules
    gradients = _check.Arrays("gradients", updates)
    _check.no_complex("gradients", updates, rules)
    param_leaves = gradients.params(params, [rule for rule in rules if rule.needs_params])
    states = lifted.split(state)
    slots = [
        {
            name: gradients.slot(name, getattr(old, name), storage, slot.nonnegative, param_leaves)
            for (name, slot), storage in zip(rule.slots.items(), storages, strict=True)
        }
        for rule, storages, old in zip(rules, lifted.storages, states, strict=True)
    ]
    return gradients, param_leaves, states, slots


def _selected(lifted: Lifted, gradients: _check.Arrays, params: Any) -> list[Sequence[bool]]:
    """Of each rule, which arrays its mask selects."""
    return [gradients.selected(getattr(rule, "mask", None), params) for rule in lifted.rules]


_MOST_ARRAYS = 256
"""The most arrays that are one program outside of `jit`: XLA compiles larger ones for too long."""
_PIECE = 8
"""The most arrays of a piece: more take longer to compile, fewer longer to call."""


def _is_cut(lifted: Lifted, trees: Any) -> bool:
    """Whether so many arrays are updated, outside of `jit`, and by no statistic of all of them."""
    if len(jax.tree.leaves(trees[0])) <= _MOST_ARRAYS:
        return False
    arrays, numbers = jax.tree.leaves(trees), jax.tree.leaves(lifted)
    return (
        all(rule.statistic is None for rule in lifted.rules)
        and all(isinstance(x, jax.Array) for x in arrays)
        and not any(isinstance(x, Tracer) for x in (*numbers, *arrays))
    )


def _update_in_pieces(lifted: Lifted, trees: Any) -> tuple[Any, Any]:
    """One update of very many arrays, outside of `jit`: in programs for some equal ones at a time."""
    leaves, structure = jax.tree.flatten(trees)
    key = jax.tree.structure(lifted), structure, tuple([(x.shape, x.dtype) for x in leaves])
    pieces = _cuts.get(key, False)
    if pieces is False:
        while len(_cuts) >= _MOST_CUTS:
            _cuts.pop(next(iter(_cuts)), None)
        pieces = _cuts[key] = _cut(lifted, *trees)
    if pieces is None:
        return _update_tree(lifted, *trees)
    new_leaves = list(leaves)
    for places, indices, selected in pieces:
        piece = jax.tree.map(leaves.__getitem__, places)
        new = _update_tree(lifted, *piece, indices=indices, selected=selected)
        for place, leaf in zip(jax.tree.leaves(places[:2]), jax.tree.leaves(new), strict=True):
            new_leaves[place] = leaf
    return jax.tree.unflatten(structure, new_leaves)[:2]


_MOST_CUTS = 16
_cuts: dict[Any, Any] = {}
"""How trees are cut, by rules, structures, shapes and dtypes: found once, as a program is traced once."""


def _cut(lifted: Lifted, updates: Any, state: Any, params: Any) -> Any:
    """How trees are cut: gradients, state and parameters of each piece, as places among all leaves.

    Beside them, the indices of its arrays, and which of them the masks select. None where so few arrays
    are equal that it does not pay. All checks run in here, as they do where a program is traced.
    """
    gradients, _, _, slots = _matched(lifted, updates, state, params)
    masks: list[Sequence[bool]] = []
    # Traced: a mask may not look at values, here as elsewhere.
    jax.eval_shape(lambda params: masks.extend(_selected(lifted, gradients, params)), params)
    leaves, structure = jax.tree.flatten((updates, state, params))
    of_updates, of_state, of_params = jax.tree.unflatten(structure, range(len(leaves)))
    flat = gradients.treedef.flatten_up_to
    gradient_at = flat(of_updates)
    param_at = [None] * len(gradient_at) if params is None else flat(of_params)
    states_at = lifted.split(of_state)
    slots_at = [
        {name: flat(getattr(old, name)) for name in each}
        for old, each in zip(states_at, slots, strict=True)
    ]

    def places(piece: Sequence[int]) -> Any:
        of_rules = [
            old._replace(**{name: [at[i] for i in piece] for name, at in each.items()})
            if each
            else old
            for old, each in zip(states_at, slots_at, strict=True)
        ]
        return [gradient_at[i] for i in piece], lifted.join(of_rules), [param_at[i] for i in piece]

    equal: dict[tuple[Any, Any, Any], list[int]] = {}
    for i, gradient in enumerate(gradients.leaves):
        if gradient is not None:
            found, tree = jax.tree.flatten(places([i]))
            selected = tuple([each[i] for each in masks])
            kinds = tuple([(x.shape, x.dtype, x.sharding) for x in map(leaves.__getitem__, found)])
            equal.setdefault((selected, tree, kinds), []).append(i)
    pieces, total, compiled = [], 0, 0
    for (selected, _, _), group in equal.items():
        size = -(-len(group) // -(-len(group) // _PIECE))  # Pieces of one size, where that goes.
        cuts = [group[start : start + size] for start in range(0, len(group), size)]
        total += len(group)
        compiled += sum({len(piece) for piece in cuts})
        for piece in cuts:
            indices = [np.uint32(i) for i in piece]
            pieces.append((places(piece), indices, tuple((x,) * len(piece) for x in selected)))
    return pieces if compiled <= total / 2 else None


class _Step:
    """A rule at the step at hand: its count, and its hyperparameters as arrays of shape ()."""

    def __init__(self, rule: Rule, layout: _rule.Layout, old: Any, rounds: bool) -> None:
        self._rule = rule
        self._layout = layout
        self._in_dtype: dict[Any, Rule] = {}
        count = old.count if "count" in layout.fields else None
        if rounds:
            self.count = _next_count(count)
            count, self.step = reached(count), reached(self.count)
        else:
            self.step: Any = None if count is None else maths.incremented(count)
            self.count = self.step
        self._values = {}
        for name in _rule.fields(type(rule))[0]:
            value = getattr(rule, name)
            _check.one_number(type(rule).__name__, name, value)
            if callable(value):
                value = _check.scheduled(type(rule).__name__, name, value, count)
            self._values[name] = value
        # For a constant b, the bias correction follows from the step.
        self._corrections = {
            f"{name}_correction": self._advance(name, getattr(old, f"{name}_correction"))
            for name in _rule.scheduled_decays(rule)
        }
        self.scalars = {name: getattr(old, name) for name in rule.scalars}
        if self.scalars:
            dtype = next(iter(self.scalars.values())).dtype
            self.scalars = dict(self.rule_in(dtype).advance(self.scalars, self.step))

    def _advance(self, name: str, correction: jax.Array) -> jax.Array:
        """1 - b(1)···b(t): the moving average, with these b, of the number one."""
        decay = self._decay(name, correction.dtype)
        return maths.ema(jnp.ones_like(correction), correction, decay)

    def _decay(self, name: str, dtype: Any) -> maths.DecayRate:
        value = self._values[name]
        if isinstance(value, maths.DecayRate):
            return maths.DecayRate(_cast(value.value, dtype), _cast(value.complement, dtype))
        value = _cast(value, dtype)
        return maths.DecayRate(value, maths.complement(value))

    def rule_in(self, dtype: Any) -> Rule:
        """The rule with its hyperparameters in the precision of dtype, made once per dtype."""
        dtype = jnp.finfo(dtype).dtype
        if dtype not in self._in_dtype:
            values: dict[str, Any] = {
                name: value
                if isinstance(value, (NoneType, maths.DecayRate))
                else _cast(value, dtype)
                for name, value in self._values.items()
            }
            for name in _rule.decay_names(type(self._rule)):
                if values[name] is None:
                    continue
                decay = self._decay(name, dtype)
                if f"{name}_correction" in self._corrections:
                    correction = _cast(self._corrections[f"{name}_correction"], dtype)
                    decay = decay._replace(correction=correction)
                elif self.step is not None:
                    decay = decay._replace(correction=maths.power_complement(decay, self.step))
                values[name] = decay
            self._in_dtype[dtype] = _rule.replace(self._rule, **values)
        return self._in_dtype[dtype]

    def statistic(self, directions: Sequence[Any]) -> Any:
        """What the rule wants to know of the whole tree."""
        if self._rule.statistic is None:
            return None
        arrays = [_cast(x, _compute_dtype(x)) for x in directions if x is not None]
        rule = self.rule_in(maths.compute_dtype(jnp.float32, *(x.dtype for x in arrays)))
        return rule.statistic(arrays)  # type: ignore[misc]  # Not None: checked above.

    def state(self, old: Any, slots: dict[str, Any]) -> Any:
        """The rule's state after this step. A rule without state hands back what it got."""
        if not self._layout.fields:
            return old
        return self._layout.make(
            **({"count": self.count} if "count" in self._layout.fields else {}),
            **self._corrections,
            **self.scalars,
            **slots,
        )


def _next_count(count: Any) -> jax.Array:
    """The count of a state that rounds at random, of which its keys are made: it never stands still.

    After the largest number it goes on through the negative ones, again and again.
    """
    return jax.lax.select(count == -1, jnp.full_like(count, jnp.iinfo(count.dtype).min), count + 1)


def reached(count: Any) -> Any:
    """The number of steps that a count stands for: the largest one from there on, as in optax."""
    if count is None:
        return None
    return jnp.where(count < 0, jnp.full_like(count, jnp.iinfo(count.dtype).max), count)


def _cast(value: Any, dtype: Any) -> jax.Array:
    """The value in a dtype, never weakly typed."""
    return jax.lax.convert_element_type(value, dtype)


def _stretches(rules: Sequence[Rule]) -> list[tuple[int, int]]:
    """Where to cut the rules: a statistic of the whole tree needs all arrays up to it first."""
    cuts = [0, *(i for i, rule in enumerate(rules) if i and rule.statistic is not None), len(rules)]
    return list(itertools.pairwise(cuts))


def _compute_dtype(x: Any, stored: Any = ()) -> Any:
    return maths.compute_dtype(x.dtype, *(leaf.dtype for leaf in jax.tree.leaves(stored)))


@functools.partial(jax.jit, static_argnames=("storages", "selected", "dtypes"))
def _update_array(
    rules: tuple[Rule, ...],
    counts: tuple[jax.Array | None, ...],
    scalars: tuple[dict[str, jax.Array], ...],
    statistic: Any,
    gradient: jax.Array,
    stored: tuple[dict[str, Any], ...],
    param: jax.Array | None,
    index: Any,
    *,
    storages: tuple[tuple[_storage.Storage, ...], ...],
    selected: tuple[bool, ...],
    dtypes: tuple[Any, Any],
) -> tuple[jax.Array, tuple[dict[str, Any], ...]]:
    """Rules in a row on one array. Jitted so that arrays of one shape and dtype are traced once."""
    dtype, out_dtype = dtypes
    is_complex = jnp.issubdtype(dtype, jnp.complexfloating)
    direction = _cast(gradient, dtype)
    if param is not None:
        param = _cast(param, maths.compute_dtype(jnp.result_type(param), dtype))
    new = []
    for rule, count, numbers, old, codecs, select in zip(
        rules, counts, scalars, stored, storages, selected, strict=True
    ):
        slots = _Slots(rule, old, codecs, dtype, count, index)
        context = Context(
            step=reached(count) if any(codec.stochastic for codec in codecs) else count,
            scalars={k: _cast(number, jnp.finfo(dtype).dtype) for k, number in numbers.items()},
            statistic=statistic,
            selected=select,
            store=slots.store,
        )
        # Complex arrays times real scalars are meant, also where a user forbids promotion.
        promotion = (
            jax.numpy_dtype_promotion("standard") if is_complex else contextlib.nullcontext()
        )
        with promotion, _check.of_update(rule):
            result = rule.update(direction, slots.read(), param, context)
        direction, values = _check.returned(rule, gradient, result)
        new.append(slots.encoded(values))
    return maths.saturating_cast(direction, out_dtype), tuple(new)


class _Slots:
    """The slots of one rule for one array, between the state and the rule."""

    def __init__(
        self,
        rule: Rule,
        stored: dict[str, Any],
        storages: Sequence[_storage.Storage],
        dtype: Any,
        count: Any,
        index: Any,
    ) -> None:
        self._stored, self._count, self._index = stored, count, index
        self._storages = dict(zip(rule.slots, storages, strict=True))
        real = jnp.finfo(dtype).dtype
        self._dtypes = {
            name: real if slot.nonnegative else dtype for name, slot in rule.slots.items()
        }
        self._codes: dict[str, tuple[jax.Array, Any]] = {}

    def read(self) -> dict[str, jax.Array]:
        return {name: self._decode(name, stored) for name, stored in self._stored.items()}

    def _decode(self, name: str, stored: Any) -> jax.Array:
        return maths.saturating_cast(self._storages[name].decode(stored), self._dtypes[name])

    def store(self, name: str, value: jax.Array) -> jax.Array:
        """Encodes value, and returns what it reads back as."""
        _check.slot_name(name, self._stored)
        storage, key = self._storages[name], None
        if storage.stochastic:
            key = maths.random_key(self._count, self._index, zlib.crc32(name.encode()))
        code = storage.encode(value, self._stored[name], key)
        decoded = self._decode(name, code)
        if storage.stochastic:
            decoded = maths.read_back(value, decoded)
        self._codes[name] = decoded, code
        return decoded

    def encoded(self, values: Any) -> dict[str, Any]:
        """What the state is to hold. A value that came from `store` is not encoded again."""
        for name, value in values.items():
            if name not in self._codes or self._codes[name][0] is not value:
                self.store(name, value)
        return {name: self._codes[name][1] for name in self._stored}


def chain(*transformations: optax.GradientTransformation) -> Transformation:
    """Transformations one after the other: `optax.chain`, as a pytree.

    Each gets the updates of the one before it. Members of this library keep their hyperparameters
    as leaves; any other optax transformation is static data, compared by identity, but for the traced
    numbers in its closures, as in `jax.vmap(lambda lr: aj.chain(optax.lion(lr)))`: these are leaves.

    Args:
      *transformations: at least one optax gradient transformation.

    Returns:
      The transformation. Its state is the tuple of the members' states, as in `optax.chain`.

    Raises:
      TypeError: for something that is not an optax gradient transformation.

    Example:
      >>> import adaptive_jax as aj
      >>> aj.chain(aj.clip_by_global_norm(1.0), aj.sgd(0.1))
      chain(clip_by_global_norm(max_norm=1.0), sgd(learning_rate=0.1))
    """
    chained = Chained(tuple(member(each, "chain") for each in transformations))
    return Transformation(Partial(_chain_init, chained), Partial(_chain_update, chained))


@_export.node
@functools.partial(jax.tree_util.register_dataclass, data_fields=["members"], meta_fields=[])
@dataclass(frozen=True, repr=False)
class Chained:
    """The members of a chain."""

    members: tuple[Any, ...]

    def __repr__(self) -> str:
        return f"chain({', '.join(map(repr, self.members))})"


@_export.node
@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["values"], meta_fields=["emptied"]
)
@dataclass(frozen=True, repr=False)
class Foreign:
    """Another library's transformation: static, and equal to any other wrapping of the same one.

    values: the traced numbers that its functions close over, which are data.
    emptied: the transformation without them.
    """

    emptied: optax.GradientTransformation
    values: tuple[Any, ...]

    @property
    def transformation(self) -> optax.GradientTransformation:
        """The transformation itself."""
        return _closures.put_back(self.emptied, self.values)

    def init(self, params: Any) -> Any:
        return self.transformation.init(params)

    def update(self, updates: Any, state: Any, params: Any = None, **extra_args: Any) -> Any:
        transformation = self.transformation
        if extra_args:
            taken = _extra_args(transformation)
            extra_args = {k: x for k, x in extra_args.items() if taken is None or k in taken}
        return transformation.update(updates, state, params, **extra_args)

    def __repr__(self) -> str:
        return getattr(self.emptied.update, "__qualname__", "…").partition(".")[0]


def _extra_args(transformation: optax.GradientTransformation) -> Collection[str] | None:
    """The names of the extra arguments that an `update` takes; None if it takes all."""
    if not isinstance(transformation, optax.GradientTransformationExtraArgs):
        return ()
    try:
        parameters = inspect.signature(transformation.update).parameters
    except (TypeError, ValueError):
        return None
    takes_all = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    return None if takes_all else parameters


def member(transformation: Any, what: str) -> Any:
    """A transformation as part of another one that is a pytree."""
    _export.states_of_optax()
    if isinstance(transformation, (Transformation, Foreign)):
        return transformation
    if isinstance(transformation, optax.MultiSteps):
        transformation = transformation.gradient_transformation()
    if isinstance(transformation, optax.GradientTransformation):
        try:
            return Foreign(*_closures.take_out(transformation))
        except _closures.Unreachable as error:
            raise TypeError(
                f"{what} got {Foreign(transformation, ())!r}, which holds a traced number in {error}: it "
                "cannot be made data, and would still be there after the end of jit or vmap. Take the "
                "jit out of it, or hand the number over as a hyperparameter in the state, "
                "optax.inject_hyperparams(factory)(learning_rate=…)."
            ) from None
    hint = ""
    if isinstance(transformation, Rule):
        hint = " Rules are put together by aj.transform."
    elif inspect.isfunction(transformation):
        hint = f" Call it: {transformation.__name__}(…)."
    elif what == "chain" and isinstance(transformation, (list, tuple)):
        hint = " Give the members one by one, with a star: aj.chain(*members)."
    raise TypeError(
        f"{what} takes optax gradient transformations, got {transformation!r:.200} of type "
        f"{type(transformation).__name__}.{hint}"
    )


def _chain_init(chained: Chained, params: Any) -> Any:
    return tuple(member.init(params) for member in chained.members)


def _chain_update(
    chained: Chained, updates: Any, state: Any, params: Any = None, **extra_args: Any
) -> tuple[Any, Any]:
    _check.chain_state(state, len(chained.members))
    updates = _check.gradients(updates)
    new_state = []
    for member, old in zip(chained.members, state, strict=True):
        updates, new = member.update(updates, old, params, **extra_args)
        new_state.append(new)
    return updates, tuple(new_state)


def shared(transformation: Any) -> Any:
    """What `init` and `update` share: a `Lifted`, a `Chained`, or the arguments of a wrapper."""
    if isinstance(transformation, Transformation):
        return transformation.init.args[0]  # type: ignore[attr-defined]
    return transformation


def parts(
    transformation: Any, state: Any
) -> Iterator[tuple[Rule, Sequence[_storage.Storage], Any]]:
    """Every rule of this library in a transformation, its storages, and its part of the state."""
    data = shared(transformation)
    if isinstance(data, Lifted):
        yield from zip(data.rules, data.storages, data.split(state), strict=True)
    elif isinstance(data, Chained):
        for pair in zip(data.members, state, strict=True):
            yield from parts(*pair)
    elif hasattr(data, "inner"):
        yield from parts(data.inner, getattr(state, inner_entry(state)))


def inner_entry(state: Any) -> str:
    """The entry of a wrapper's state that is the state of what it wraps."""
    return next(name for name in state._fields if name.startswith("inner"))
