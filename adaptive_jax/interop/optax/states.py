"""A saved run of optax: its state here, and back there."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import keystr, tree_flatten_with_path

from ..._core import arguments, states
from ..._core.lifted import Lifted
from ..._core.rule import Rule
from ..._core.transformation import Foreign, data_of, member
from ..._core.wrapper import Wrapper, walk
from ...transforms.accumulate import MultiSteps
from ...transforms.chain import Chained
from ...transforms.matrices import REST, OfMatrices
from ...transforms.monitor import Monitor
from ...transforms.partition import MaskedTransform, Partition
from ...transforms.skip import SkipNonfinite
from .counterparts import AROUND, At, Counterpart, counterpart
from .peers import peer_of


def import_state(tx: Any, params: Any, optax_state: Any, *, step: int | None = None) -> Any:
    """The state of an optimizer of optax or optax.contrib, as the state of the same optimizer here.

    Where both compute the same, the run goes on as it would there; where optax departs from the paper, it
    goes on as the paper has it, from what optax has gathered. Transformations of optax's own in the chain
    keep the state they have.

    Args:
      tx: the optimizer that goes on, with the options of the saved one: `aj.prodigy(bias_correction=True)`
        for optax's. Its hyperparameters may differ, its `storage` too. An `aj.chain` for an `optax.chain`
        of as many, `aj.partition`, `aj.masked`, `aj.multi_steps` and `aj.skip_nonfinite` for theirs.
      params: the parameters at this step; for `optax.lookahead`, its pair `LookaheadParams`.
      optax_state: the state of the transformation there.
      step: the number of steps taken, where tx needs it and optax does not keep it: for a learning rate
        that is a schedule here, and was a number there.

    Returns:
      The state that `tx.init(params)` has. Every array is a copy. Exported again it is the same, but for
      what is not kept here: the random key of optax's Sophia, and of `optax.contrib.mechanize` what is
      negative in r, which the paper's is not.

    Raises:
      TypeError, ValueError: for an optimizer that optax has not, or that is not here, by name; for the
        state of another one, wrong shapes, and numbers that are not finite, by entry and path.

    Example:
      >>> import adaptive_jax as aj, jax.numpy as jnp, optax
      >>> params = {"w": jnp.ones(2)}
      >>> saved = optax.contrib.ademamix(1e-3).init(params)
      >>> state = aj.interop.optax.import_state(aj.ademamix(1e-3), params, saved)
      >>> type(saved[0]).__name__, saved[0]._fields
      ('ScaleByAdemamixState', ('count', 'count_m2', 'm1', 'm2', 'nu'))
      >>> type(state[0]).__name__, state[0]._fields
      ('AdEMAMixState', ('count', 'mu', 'mu_slow', 'nu'))
    """
    at = _at(params, step)
    tx = member(tx, "import_state")
    first = tx.init(at.params)
    if at.step is None:
        counts = [count for node in _nodes_at_any_depth(optax_state) for count in _counts(node)]
        at = dataclasses.replace(at, step=max(counts, default=None))
    ours, _ = _Run(_import).through(data_of(tx), first, optax_state, at)
    return ours


def export_state(
    tx: Any, params: Any, opt_state: Any, peer: Any = None, *, step: int | None = None
) -> Any:
    """The reverse of `import_state`: for the `update` of optax's optimizer.

    Args:
      tx: the optimizer here.
      params: the parameters at this step.
      opt_state: the state to export.
      peer: the transformation of optax that goes on. By default that of the same name, with those of tx's
        arguments that it takes.
      step: the number of steps taken, where optax keeps it and tx does not: for `muon` without any Adam.

    Returns:
      The state that `peer.init(params)` has. Every array is a copy. For `aj.lookahead`, whose slow
      parameters optax has beside the fast ones: `aj.eval_params(tx, params, opt_state)` are these.

    Raises:
      TypeError, ValueError: for an optimizer that optax has not, by name, and for a state of another
        optimizer.

    Example:
      >>> import adaptive_jax as aj, jax.numpy as jnp, optax
      >>> tx, params = aj.dowg(), {"w": jnp.ones(2)}
      >>> saved = aj.interop.optax.export_state(tx, params, tx.init(params))
      >>> optax.contrib.dowg().update(params, saved, params)[1][1]._fields
      ('init_params', 'weighted_sq_norm_grads', 'estim_sq_dist')
    """
    at, data = _at(params, step), data_of(member(tx, "export_state"))
    if at.step is None:
        parts = walk(data, opt_state)
        counts = [
            int(rule_state.count)
            for lifted, part in parts
            if isinstance(lifted, Lifted)
            for rule_state in lifted.split(part)
            if "count" in getattr(rule_state, "_fields", ())
        ]
        at = dataclasses.replace(at, step=max(counts, default=None))
    peer = peer_of(data, at.params) if peer is None else peer
    pair = optax.LookaheadParams(at.params, at.params)
    first = peer.init(pair if _looks_ahead(data) else at.params)
    _, theirs = _Run(_export).through(data, opt_state, first, at)
    return theirs


def _at(params: Any, step: int | None) -> At:
    step = None if step is None else arguments.whole("step", step, 0)
    if isinstance(params, optax.LookaheadParams):
        return At(params.fast, step, params.slow)
    return At(params, step)


def _looks_ahead(data: Any) -> bool:
    """Whether optax's optimizer takes its pair of parameters."""
    behind = _behind(data)
    return behind is not None and AROUND[type(behind)] == "fast_state"


def _behind(data: Any) -> Rule | None:
    """The rule behind an optimizer whose state optax has around that of the optimizer, if it is one."""
    if not isinstance(data, Chained) or len(data.members) != 2:
        return None
    last = data_of(data.members[1])
    rules = last.rules if isinstance(last, Lifted) else ()
    return rules[0] if len(rules) == 1 and type(rules[0]) in AROUND else None


@dataclasses.dataclass(frozen=True)
class _Run:
    """Both states of a run, of which one is made of the other.

    turn: from a rule, the storages of its slots, its counterpart, its two states, and where the run is, to
      its two new states.
    """

    turn: Callable[..., tuple[Any, Any]]

    def through(self, data: Any, ours: Any, theirs: Any, at: At) -> tuple[Any, Any]:
        """Both new states of a transformation."""
        if isinstance(data, Lifted):
            return self._lifted(data, ours, theirs, at)
        if isinstance(data, Foreign):
            if jax.tree.structure(ours) != jax.tree.structure(theirs):
                raise ValueError(
                    f"the state of {data!r} is {_outline(theirs)}: expected {_outline(ours)}."
                )
            return _copied(theirs if self.turn is _import else ours, 2)
        if _behind(data) is not None:
            return self._around(data, ours, theirs, at)
        if isinstance(data, Chained):
            return self._chained(data, ours, theirs, at)
        return self._wrapper(data, ours, theirs, at)

    def _lifted(self, lifted: Lifted, ours: Any, theirs: Any, at: At) -> tuple[Any, Any]:
        """Of rules in a row: each with a state takes the next one there that is no EmptyState."""
        nodes, changed, new = list(_nodes(theirs, lifted)), [], {}
        split = lifted.split(ours)
        for place in lifted.order:
            rule, storages, part = lifted.rules[place], lifted.storages[place], split[place]
            new[place] = part
            if not getattr(part, "_fields", ()):
                continue
            known = _counterpart(rule, lifted)
            node = nodes[len(changed)] if len(changed) < len(nodes) else None
            if known is not None and type(node).__name__ == known.state:
                new[place], node = self.turn(rule, storages, known, part, node, at, lifted)
                changed.append(node)
            elif part._fields == ("count",):  # A schedule here, where there was none.
                count = at.counted(
                    f"{rule!r} of {lifted!r}, which is no schedule in optax's state,"
                )
                new[place] = part._replace(count=jnp.asarray(count, part.count.dtype))
            else:
                expected = known.state if known is not None else type(part).__name__
                got = "nothing" if node is None else _outline(node)
                raise ValueError(
                    f"{lifted!r} goes on from optax's {expected}, got {got}: another optimizer made this "
                    f"state, or one with other options.{_not_here(node)}"
                )
        if len(changed) < len(nodes):
            left = _outline(nodes[len(changed)])
            raise ValueError(
                f"optax's state has {left}, for which {lifted!r} has nothing: give it the option that made "
                f"this, such as a schedule for its learning rate.{_not_here(nodes[len(changed)])}"
            )
        rest = iter(changed)
        return lifted.join([new[place] for place in range(len(split))]), _with_nodes(theirs, rest)

    def _around(self, data: Chained, ours: Any, theirs: Any, at: At) -> tuple[Any, Any]:
        """What stands behind an optimizer here, and around it in optax."""
        last = data_of(data.members[1])
        (rule,) = last.rules
        entry = AROUND[type(rule)]
        data.check(ours)
        if not hasattr(theirs, entry):
            raise ValueError(
                f"{data!r} goes on from optax's {_counterpart(rule, last).state}, got {_outline(theirs)}."  # type: ignore[union-attr]
            )
        inner, base = self.through(data_of(data.members[0]), ours[0], getattr(theirs, entry), at)
        own, outer = self._lifted(last, ours[1], theirs, at)
        return (inner, own), outer._replace(**{entry: base})

    def _chained(self, data: Chained, ours: Any, theirs: Any, at: At) -> tuple[Any, Any]:
        data.check(ours)
        plain = isinstance(theirs, (tuple, list)) and not hasattr(theirs, "_fields")
        if not plain or len(theirs) != len(data.members):
            raise ValueError(
                f"a chain of {len(data.members)} goes on from the state of an optax.chain of as many, got "
                f"{_outline(theirs)}: put the members here together as they were there."
            )
        every = zip(map(data_of, data.members), ours, theirs, strict=True)
        pairs = [self.through(*each, at) for each in every]
        return tuple(new for new, _ in pairs), tuple(new for _, new in pairs)

    def _wrapper(self, data: Any, ours: Any, theirs: Any, at: At) -> tuple[Any, Any]:
        """Of a wrapper that optax has as well: what is in it, and the numbers of its own."""
        if not isinstance(data, (Partition, MaskedTransform, MultiSteps, Monitor, SkipNonfinite)):
            raise TypeError(f"optax has nothing like {data!r}: convert the state of what is in it.")
        data.check(ours)
        skips = isinstance(data, SkipNonfinite)
        kind = optax.ApplyIfFiniteState if skips else data.state_type
        if not isinstance(theirs, kind):
            raise ValueError(
                f"{data!r} goes on from optax's {kind.__name__}, got {_outline(theirs)}."
            )
        inner = _states_in(data, theirs)
        if inner is None:
            raise ValueError(
                f"the state is of the groups {sorted(map(str, theirs.inner_states))}, and {data!r} has "
                f"{sorted(map(str, data.transforms))}: give them the names that they have there."  # type: ignore[union-attr]
            )
        trees = data.params_in(at.params)
        places = [dataclasses.replace(at, params=tree) for tree in trees]
        wrapped = map(data_of, data.wrapped())
        every = zip(wrapped, data.states_in(ours), inner, places, strict=True)
        pairs = [self.through(*each) for each in every]
        new = data.with_states(ours, [one for one, _ in pairs])
        peers = _with_states(data, theirs, [other for _, other in pairs])
        own = {} if skips else {
            name: name for name in kind._fields if name not in (*data.wraps.values(), "skip_state")
        }  # fmt: skip
        own |= {"consecutive": "notfinite_count", "total": "total_notfinite"} if skips else {}
        if self.turn is _import:
            taken = {name: getattr(theirs, entry) for name, entry in own.items()}
            if isinstance(data, Monitor) and not taken["measurements"]:
                del taken["measurements"]  # Before the first step it has none.
            for name, value in taken.items():
                if jax.tree.structure(value) != jax.tree.structure(getattr(ours, name)):
                    raise ValueError(
                        f"{name} of optax's {kind.__name__} is {jax.tree.structure(value)!s:.80}, where "
                        f"{data!r} keeps {jax.tree.structure(getattr(ours, name))!s:.80}."
                    )
            return new._replace(**_copied(taken)[0]), peers
        given = {entry: _copied(getattr(ours, name))[0] for name, entry in own.items()}
        if skips:
            given["last_finite"] = ours.consecutive == 0
        return new, peers._replace(**given)


def _states_in(data: Wrapper, theirs: Any) -> Any:
    """Of the wrapper of optax that corresponds, the states in it, in the order of those here."""
    if not isinstance(data, Partition):
        return [getattr(theirs, entry) for entry in data.wraps.values()]
    labels = _labels(data)
    if set(labels) != set(theirs.inner_states):
        return None
    return [theirs.inner_states[label].inner_state for label in labels]


def _with_states(data: Wrapper, theirs: Any, new: list[Any]) -> Any:
    if not isinstance(data, Partition):
        return theirs._replace(**dict(zip(data.wraps.values(), new, strict=True)))
    pairs = zip(_labels(data), map(optax.MaskedState, new), strict=True)
    made = dict(pairs)
    return theirs._replace(inner_states={label: made[label] for label in theirs.inner_states})


def _labels(data: Partition) -> list[Any]:
    """The names of the groups, as they are in optax."""
    renamed = {REST: "adam"} if isinstance(data, OfMatrices) else {}
    return [renamed.get(label, label) for label in data.transforms]


def _counterpart(rule: Rule, lifted: Lifted) -> Counterpart | None:
    if decays := states.scheduled_decays(rule):
        raise ValueError(
            f"{decays[0]} of {lifted!r} is a schedule, which optax does not have: convert with the number "
            "that it has at this step."
        )
    known = counterpart(rule)
    if known is None and rule.slots:
        raise TypeError(
            f"optax has nothing like {type(rule).__name__} of {lifted!r}: start it with tx.init(params)."
        )
    return known


def _import(
    rule: Rule, storages: Any, known: Counterpart, ours: Any, theirs: Any, at: At, lifted: Lifted
) -> tuple[Any, Any]:
    """Our state of a rule, of theirs."""
    _check_finite(theirs, lifted)
    try:
        values = known.read(rule, theirs, at)
    except ValueError as error:
        raise ValueError(f"{lifted!r}: {error}") from None
    new = {}
    for name, storage in zip(rule.slots, storages, strict=True):
        what = f"{known.state}.{known.entries.get(name, name)}"
        new[name] = _encoded(values[name], getattr(ours, name), storage, at.params, what)
    for name in ours._fields:
        if name not in rule.slots:
            # What rounds at random counts, for this alone; any number will do.
            value, old = values.get(name, at.step or 0), getattr(ours, name)
            if jnp.shape(value) != old.shape:
                raise ValueError(
                    f"{known.state}.{known.entries.get(name, name)} has the shape {jnp.shape(value)}, "
                    f"where {lifted!r} keeps one of {old.shape}: another number of them was chosen there."
                )
            new[name] = jnp.array(value, old.dtype)
    return ours._replace(**new), theirs


def _encoded(tree: Any, first: Any, storage: Any, params: Any, what: str) -> Any:
    """A slot as its storage keeps it, of the values and of what it is at first."""
    with_path, treedef = tree_flatten_with_path(params)
    try:
        values = treedef.flatten_up_to(tree)
    except ValueError:
        here, there = (
            {keystr(path) for path, _ in tree_flatten_with_path(each)[0]} for each in (params, tree)
        )
        hint = ""
        if "MaskedNode" in f"{treedef}{jax.tree.structure(tree)}":
            hint = (
                " Does the group hold the same arrays there? optax's muon takes all with two axes, as with "
                "where=lambda params: jax.tree.map(lambda x: x.ndim == 2, params)."
            )
        raise ValueError(
            f"optax's {what} has another structure than the parameters: it has "
            f"{_some(there - here)} where these have {_some(here - there)}.{hint}"
        ) from None
    stored = []
    every = zip(with_path, values, treedef.flatten_up_to(first), strict=True)
    for index, ((path, _), value, old) in enumerate(every):
        if old is None or value is None:
            stored.append(old)
            continue
        like = storage.decode(old)
        if np.shape(value) != like.shape or (
            jnp.iscomplexobj(value) and not jnp.iscomplexobj(like)
        ):
            raise ValueError(
                f"optax's {what}{keystr(path)} is {jnp.result_type(value)}{list(np.shape(value))}, where "
                f"{like.dtype}{list(like.shape)} is kept here: is it the state of these parameters?"
            )
        stored.append(storage.encode(jnp.array(value, like.dtype), old, jnp.uint32(index)))
    return treedef.unflatten(stored)


def _some(paths: set[str]) -> str:
    return ", ".join(sorted(paths)[:4]) + ", …" * (len(paths) > 4) or "nothing more"


def _check_finite(theirs: Any, lifted: Lifted) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(theirs):
        is_number = jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)
        if is_number and not jnp.isfinite(leaf).all():
            raise ValueError(
                f"{type(theirs).__name__}{keystr(path)} for {lifted!r} has {jnp.sum(~jnp.isfinite(leaf))} "
                "entries that are not finite: the saved run was broken already. Go back to an earlier "
                "checkpoint."
            )


def _export(
    rule: Rule, storages: Any, known: Counterpart, ours: Any, first: Any, at: At, lifted: Lifted
) -> tuple[Any, Any]:
    """Their state of a rule, of ours and of theirs at first."""
    treedef, decoded = jax.tree.structure(at.params), ours._asdict()
    for name, storage in zip(rule.slots, storages, strict=True):
        stored = treedef.flatten_up_to(decoded[name])
        decoded[name] = treedef.unflatten(
            [None if x is None else storage.decode(x) for x in stored]
        )
    try:
        new = known.written(rule, SimpleNamespace(**decoded), first, at)
    except ValueError as error:
        raise ValueError(f"{lifted!r}: {error}") from None
    if jax.tree.structure(new) != jax.tree.structure(first):
        raise ValueError(
            f"the state of {lifted!r} is {_outline(new)} in optax, and that of peer, the optimizer there, "
            f"is {_outline(first)}, of other parameters."
        )
    return ours, jax.tree.map(_like, new, first)


def _like(value: Any, first: Any) -> Any:
    """A copy in the dtype that optax has it in."""
    if value is first:
        return value
    if jnp.shape(value) != jnp.shape(first):
        raise ValueError(
            f"an array of shape {jnp.shape(value)} is of shape {jnp.shape(first)} in optax's state: are "
            "these the parameters of this state?"
        )
    return jnp.array(value, jnp.result_type(first))


def _copied(state: Any, times: int = 1) -> tuple[Any, ...]:
    return tuple(jax.tree.map(jnp.array, state) for _ in range(times))


def _nodes(state: Any, lifted: Lifted) -> Iterator[Any]:
    """The states of optax in one of a chain, in order, but for those without entries."""
    if isinstance(state, optax.MaskedState):
        yield from _nodes(state.inner_state, lifted)
    elif hasattr(state, "_fields"):
        yield from [state] if state._fields else []
    elif isinstance(state, (tuple, list)):
        for each in state:
            yield from _nodes(each, lifted)
    else:
        raise TypeError(
            f"expected the state of an optimizer of optax for {lifted!r}, tuples of optax's NamedTuples, "
            f"got {_outline(state)}."
        )


def _with_nodes(state: Any, new: Iterator[Any]) -> Any:
    """The same with other states in the place of those of `_nodes`."""
    if isinstance(state, optax.MaskedState):
        return optax.MaskedState(_with_nodes(state.inner_state, new))
    if hasattr(state, "_fields"):
        return next(new) if state._fields else state
    return tuple(_with_nodes(each, new) for each in state)


def _nodes_at_any_depth(state: Any) -> Iterator[Any]:
    """All NamedTuples in a state of optax."""
    if hasattr(state, "_fields"):
        yield state
    if isinstance(state, (tuple, list, dict)):
        for each in state.values() if isinstance(state, dict) else state:
            yield from _nodes_at_any_depth(each)


def _counts(node: Any) -> Iterator[int]:
    """The numbers of steps that a state keeps."""
    for name, offset in (("count", 0), ("t", 0), ("gradient_step", 0), ("step_count", -1)):
        value = getattr(node, name) if name in node._fields else 0.0
        if jnp.shape(value) == () and jnp.issubdtype(jnp.result_type(value), jnp.integer):
            yield int(value) + offset


_INJECTED = ("InjectHyperparamsState", "InjectStatefulHyperparamsState")


def _not_here(node: Any) -> str:
    """What to do with a state that is of no optimizer here."""
    name = type(node).__name__
    if name in _INJECTED:
        return (
            " Give its inner_state, and the optimizer here the numbers in its hyperparams: hyperparameters "
            "are data here, and need no wrapper."
        )
    if name in _ONLY_THERE:
        return (
            f" {_ONLY_THERE[name]} is not here: put optax's own into an aj.chain, where it keeps its "
            "state."
        )
    return ""


_ONLY_THERE = {
    "MadgradState": "madgrad",
    "GaLoreState": "galore",
    "ReduceLROnPlateauState": "reduce_on_plateau",
    "SplitRealAndImaginaryState": "split_real_and_imaginary",
    "SAMState": "the SAM of optax, whose counterpart aj.sam is an estimator for train_step,",
    "DifferentiallyPrivateAggregateState": "differentially_private_aggregate",
    "NormalizeState": "normalize",
    "ScaleByLBFGSState": "lbfgs",
}


def _outline(state: Any) -> str:
    if hasattr(state, "_fields"):
        return f"{type(state).__name__}({', '.join(state._fields)})"
    if isinstance(state, (tuple, list)):
        return f"({', '.join(map(_outline, state))})"
    return f"a {type(state).__name__}"
