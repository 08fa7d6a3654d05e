"""What of an old state is kept in a new one, rule by rule and array by array."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import keystr, tree_leaves_with_path

from .._core import pytrees, states
from .._core.lifted import Lifted
from .._core.paths import some
from .._core.rule import Rule
from .._core.transformation import data_of, member
from .._core.wrapper import Wrapper
from ..transforms.parts import parts
from .carried import Carried, CarriedEntry
from .origin import described, under


def nodes_of(state: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every NamedTuple in a state, with its path."""
    if hasattr(state, "_fields"):
        yield path, state
    if jax.tree_util.all_leaves([state]):
        return
    for step, child in tree_leaves_with_path(state, is_leaf=lambda x: x is not state):
        yield from nodes_of(child, path + keystr(step))


class _Node:
    """One NamedTuple of an old state: that of a rule, a wrapper, or another library."""

    def __init__(self, path: str, state: Any, rule: Rule | None) -> None:
        self.path, self.state, self.rule = path, state, rule
        self.kind = type(state).__name__
        self._leaves: dict[str, dict[str, Any]] = {}

    def leaves(self, entry: str) -> Mapping[str, Any]:
        """What an entry holds, by the path in it."""
        if entry not in self._leaves:
            tree = getattr(self.state, entry, None)
            self._leaves[entry] = {keystr(path): leaf for path, leaf in tree_leaves_with_path(tree)}
        return self._leaves[entry]

    @property
    def parent(self) -> str:
        """Where it is, but for its place in a row."""
        return self.path[: self.path.rfind("[")] if self.path.endswith("]") else self.path


class OldState:
    """An old state, in which what fits is looked for."""

    def __init__(self, state: Any, tx: Any) -> None:
        self.state, rules = state, {}
        if tx is not None:
            try:
                own = list(parts(member(tx, "carry_state(old_tx=…)"), state))
            except (ValueError, AttributeError, KeyError) as error:
                raise ValueError(f"old_tx did not make old_state: {error}") from None
            rules = {id(part): rule for rule, _, part in own}
        self.nodes = [_Node(path, each, rules.get(id(each))) for path, each in nodes_of(state)]

    def of_kind(self, kind: str, rule: Rule | None = None) -> tuple[list[_Node], str]:
        """Those with such a state, of such a rule as far as is known; and why there is none."""
        found = [each for each in self.nodes if each.kind == kind]
        if not found:
            return [], f"the old state has no {kind}"
        if rule is None:
            return found, ""
        same = [x for x in found if x.rule is None or _what(x.rule) == _what(rule)]
        others = ", ".join(dict.fromkeys(described(x.rule) for x in found if x.rule is not None))
        why = f"it was {others}, and is {described(rule)}"
        if others == described(rule):
            why = f"its axes were others than {getattr(rule, 'axes', None)}"
        return same, "" if same else why


def carried_over(
    old: OldState, tx: Any, params: Any, fresh: Any, mixed: str
) -> tuple[Any, Carried]:
    """The new state, of what fits in the old one and what is fresh."""
    leaves, treedef = jax.tree.flatten(fresh)
    # Places of leaves in the place of the leaves: what they are is then no matter, and no two are one.
    places = treedef.unflatten([_Place(i, x) for i, x in enumerate(leaves)])
    plan = _Plan(old, places, mixed)
    plan.add(tx, places, params)
    new = _once_each([plan.sources.get(i, leaf) for i, leaf in enumerate(leaves)])
    used = {id(leaf) for leaf in plan.sources.values()}
    left = [keystr(path) for path, x in tree_leaves_with_path(old.state) if id(x) not in used]
    return treedef.unflatten(new), Carried(tuple(plan.rows), tuple(left))


def _what(rule: Rule) -> tuple[str, Any]:
    """What tells rules apart: class, options, and which axes of an array are those of its matrices."""
    return described(rule), getattr(rule, "axes", None)


def _once_each(leaves: list[Any]) -> list[Any]:
    """With copies of arrays that are there again, as the count of a group that became two: a step writes
    over each array once."""
    seen: set[int] = set()
    new = []
    for leaf in leaves:
        is_again = id(leaf) in seen and isinstance(leaf, jax.Array)
        seen.add(id(leaf))
        new.append(jnp.copy(leaf) if is_again else leaf)
    return new


class _Place:
    """The place of a leaf in the new state."""

    def __init__(self, index: int, leaf: Any) -> None:
        self.index, self.leaf = index, leaf

    def fits(self, other: Any) -> bool:
        return hasattr(other, "dtype") and (
            np.shape(other) == np.shape(self.leaf) and other.dtype == self.leaf.dtype
        )


class _Plan:
    """For each leaf of the new state, which of the old one it is, if any."""

    def __init__(self, old: OldState, places: Any, mixed: str) -> None:
        self._old, self._mixed = old, mixed
        self.sources: dict[int, Any] = {}
        self.rows: list[CarriedEntry] = []
        self._taken: set[tuple[int, str]] = set()
        self._paths = {id(each): path for path, each in nodes_of(places)}
        kinds = [type(each).__name__ for _, each in nodes_of(places)]
        self._is_single = {kind: kinds.count(kind) == 1 for kind in kinds}

    def add(self, tx: Any, state: Any, seen: Any) -> None:
        """A transformation, its part of the new state, and what it sees of the parameters."""
        data = data_of(tx)
        if isinstance(data, Lifted):
            self._add_rules(data, data.split(state), seen)
        elif isinstance(data, Wrapper):
            self._add_own(data, state, seen)
            every = zip(data.wrapped(), data.states_in(state), data.params_in(seen), strict=True)
            for each in every:
                self.add(*each)
        else:
            self._add_foreign(data, state)

    # Rules

    def _add_rules(self, lifted: Lifted, states_of_rules: Sequence[Any], seen: Any) -> None:
        arrays = pytrees.Arrays("params", seen)
        kept: list[_Node] = []
        rows = list(zip(lifted.rules, states_of_rules, strict=True))
        for rule, part in rows:
            if rule.slots:
                kept += self._add_rule(rule, part, arrays)
        for rule, part in rows:
            if not rule.slots and jax.tree.leaves(part):
                self._add_numbers(rule, part, kept)

    def _add_rule(self, rule: Rule, part: Any, arrays: pytrees.Arrays) -> list[_Node]:
        """A rule with slots; the nodes of the old state of which something is kept."""
        layerwise = tuple(rule.scalars) if rule.layerwise else ()
        own = [*rule.slots, *layerwise]
        nodes, why_none = self._old.of_kind(type(part).__name__, rule)
        sources: dict[str, _Node] = {}
        whys: dict[str, str] = {}
        taken: dict[int, Any] = {}
        entries: dict[str, str] = {}
        columns = [arrays.treedef.flatten_up_to(getattr(part, name)) for name in own]
        for path, param, *each in zip(arrays.paths(), arrays.leaves, *columns, strict=True):
            wanted = {
                (name, path + keystr(rest)): place
                for name, tree in zip(own, each, strict=True)
                for rest, place in tree_leaves_with_path(tree)
            }
            if param is None or not wanted:
                continue
            entries[path] = ", ".join(dict.fromkeys(name for name, _ in wanted))
            node, whys[path] = self._source(nodes, part, path, wanted)
            whys[path] = why_none or whys[path]
            if node is not None:
                self._taken.add((id(node), path))
                sources[path] = node
                for (name, where), place in wanted.items():
                    taken[place.index] = node.leaves(name)[where]
        kind, new = type(rule).__name__, [path for path in entries if path not in sources]
        numbers = [name for name in part._fields if name not in own]
        of_each, restarted = self._numbers(rule, part, numbers, sources, new)
        if restarted:
            whys |= {path: whys.get(path) or restarted for path in entries}
            sources, taken = {}, {}
        self.sources |= taken
        for path, what in entries.items():
            has = path in sources
            self.rows.append(CarriedEntry(kind, path, what, has, "" if has else whys[path]))
        for name in numbers:
            self._take(kind, name, getattr(part, name), None if restarted else of_each[name])
        return _once(sources.values())

    def _source(
        self, nodes: Sequence[_Node], part: Any, path: str, wanted: Mapping[tuple[str, str], _Place]
    ) -> tuple[_Node | None, str]:
        """The node that has all that is kept of an array; or why there is none."""
        kind = type(part).__name__
        having = [node for node in nodes if any(at in node.leaves(name) for name, at in wanted)]
        if not having:
            near = any(
                under(at, path) for x in nodes for name, _ in wanted for at in x.leaves(name)
            )
            if near and path:
                return None, "the old state keeps it in another storage"
            return None, f"the old state has no {kind} of it"
        fitting = [
            node
            for node in having
            if all(place.fits(node.leaves(name).get(at)) for (name, at), place in wanted.items())
        ]
        if not fitting:
            return None, _difference(having[0], wanted)
        if len(fitting) > 1:
            fitting = [x for x in fitting if x.path == self._paths[id(part)]]
            if not fitting:
                return None, f"several {kind} of the old state have it"
        if (id(fitting[0]), path) in self._taken:
            return None, f"another {kind} has that of the old state"
        return fitting[0], ""

    def _numbers(
        self,
        rule: Rule,
        part: Any,
        names: Sequence[str],
        sources: Mapping[str, _Node],
        new: list[str],
    ) -> tuple[dict[str, _Node | None], str]:
        """Where each of a rule's numbers is from; and why all starts anew, where it does."""
        nodes = sorted(_once(sources.values()), key=list(sources.values()).count, reverse=True)
        if not nodes:
            return dict.fromkeys(names), ""
        optional = [] if states.counts_steps(rule) else ["count"]
        found: dict[str, _Node | None] = {}
        for name in names:
            has = [
                node
                for node in nodes
                if all(
                    place.fits(node.leaves(name).get(keystr(path)))
                    for path, place in tree_leaves_with_path(getattr(part, name))
                )
            ]
            if len(has) < len(nodes) and name not in optional:
                return found, f"the old state has no {name} that fits"
            found[name] = has[0] if has else None
        of_all = [name for name in names if name not in optional]
        if not of_all or self._mixed == "keep":
            return found, ""
        differ = len(nodes) > 1 and not all(
            _same(node.leaves(name), nodes[0].leaves(name)) for node in nodes for name in of_all
        )
        # A copy of the parameter is right whatever the count.
        from_params = not rule.scalars and all(x.initial == "param" for x in rule.slots.values())
        if (not new or from_params) and not differ:
            return found, ""
        if self._mixed == "restart":
            return found, "its rule has numbers for it and for new arrays"
        raise ValueError(_refusal(rule, of_all, list(sources), new))

    def _add_numbers(self, rule: Rule, part: Any, kept: Sequence[_Node]) -> None:
        """A rule without slots, such as a learning rate that counts the steps of its schedule."""
        kind, path = type(part).__name__, self._paths[id(part)]
        here = _Node(path, part, rule)
        nodes, why = self._old.of_kind(kind, rule)
        parents = {node.parent for node in kept}
        tests = (
            lambda node: node.path == path,
            lambda node: node.parent == here.parent,
            lambda node: node.parent in parents,
            lambda node: self._is_single[kind],
        )
        found = (list(filter(test, nodes)) for test in tests)
        node = next((each[0] for each in found if len(each) == 1), None)
        for name in part._fields:
            self._take(type(rule).__name__, name, getattr(part, name), node, why)

    def _take(self, owner: str, name: str, places: Any, node: _Node | None, why: str = "") -> None:
        """An entry that is for all arrays, from a node, or as it is at first."""
        every = tree_leaves_with_path(places)
        if not every:
            return
        kept = {} if node is None else {p.index: node.leaves(name).get(keystr(x)) for x, p in every}
        fits = bool(kept) and all(place.fits(kept[place.index]) for _, place in every)
        if fits:
            self.sources |= kept
        why = why or ("so are all of its arrays" if node is None else "the old one does not fit")
        self.rows.append(CarriedEntry(owner, name, "", fits, "" if fits else why))

    # What is no rule

    def _add_own(self, wrapper: Wrapper, state: Any, seen: Any) -> None:
        """What a wrapper keeps itself. Where it counts, all of that is kept, or nothing."""
        names = [x for x in getattr(state, "_fields", ()) if x not in wrapper.wraps.values()]
        every = {name: tree_leaves_with_path(getattr(state, name)) for name in names}
        if not any(every.values()):
            return
        kind, path = type(state).__name__, self._paths[id(state)]
        owner = wrapper.label or type(wrapper).__name__
        nodes, why = self._old.of_kind(kind)
        same = [node for node in nodes if node.path == path]
        nodes = same or (nodes if len(nodes) == 1 and self._is_single[kind] else [])
        paths = [each for each in pytrees.Arrays("params", seen).paths() if each]
        rows = []
        for name, leaves in every.items():
            for at, place in leaves:
                where = keystr(at)
                old = nodes[0].leaves(name).get(where) if nodes else None
                array = next((each for each in paths if under(where, each)), "")
                fits = place.fits(old)
                rows.append((name, array, place.index, old, fits))
        counts = any(not array for _, array, *_ in rows)
        if counts and not all(fits for *_, fits in rows):
            why = why or "it counts what it has of all arrays, of which some are new"
            rows = [(*row[:-1], False) for row in rows]
        merged: dict[tuple[str, str], list[Any]] = {}
        for name, array, index, old, fits in rows:
            if fits:
                self.sources[index] = old
            merged.setdefault((array or name, name if array else ""), []).append(fits)
        for (what, entry), fits in merged.items():
            kept = all(fits)
            reason = "" if kept else why or "the old state has none of it that fits"
            self.rows.append(CarriedEntry(owner, what, entry, kept, reason))

    def _add_foreign(self, data: Any, state: Any) -> None:
        """What another library keeps: as a whole, of the same types, or not at all."""
        places, treedef = jax.tree.flatten(state)
        if not places:
            return
        found = [each for each in _subtrees(self._old.state) if _fits(each, treedef, places)]
        kept = len(found) == 1
        if kept:
            pairs = zip(places, jax.tree.leaves(found[0]), strict=True)
            self.sources |= {place.index: leaf for place, leaf in pairs}
        why = "several states of the old one fit" if found else "the old state has none like it"
        self.rows.append(CarriedEntry(repr(data), "all", "", kept, "" if kept else why))


def _subtrees(tree: Any) -> Iterator[Any]:
    yield tree
    if not jax.tree_util.all_leaves([tree]):
        for child in pytrees.children(tree)[0]:
            yield from _subtrees(child)


def _fits(tree: Any, treedef: Any, places: Sequence[_Place]) -> bool:
    leaves, structure = jax.tree.flatten(tree)
    return structure == treedef and all(
        place.fits(leaf) for place, leaf in zip(places, leaves, strict=True)
    )


def _difference(node: _Node, wanted: Mapping[tuple[str, str], _Place]) -> str:
    """How what a node has differs from what is wanted."""
    for (name, at), place in wanted.items():
        old = node.leaves(name).get(at)
        if old is None:
            return f"the old state has no {name} of it"
        if not place.fits(old):
            there, here = pytrees.describe(old), pytrees.describe(place.leaf)
            return f"its {name} was {there}, and is {here}"
    return "it does not fit"


def _once(nodes: Iterable[_Node]) -> list[_Node]:
    return list({id(node): node for node in nodes}.values())


def _same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two entries have the same numbers, as far as these are known."""
    try:
        return all(np.array_equal(x, other[path]) for path, x in one.items())
    except (jax.errors.JAXTypeError, KeyError, TypeError):
        return False


def _refusal(rule: Rule, numbers: Sequence[str], kept: list[str], new: list[str]) -> str:
    groups = (
        f"for those that go on, params{some(kept)}, and for those that start anew, params{some(new)}"
        if new
        else f"of params{some(kept)}, which come from states with other ones"
    )
    return (
        f"{type(rule).__name__} has one {' and one '.join(numbers)} for all of its arrays, which cannot be "
        f'right {groups}. Give each kind a group of its own, aj.partition({{"kept": tx, "new": tx}}, '
        '[(expression, "new"), (".*", "kept")]); or say mixed="restart", and all of them start anew, or '
        'mixed="keep".'
    )
