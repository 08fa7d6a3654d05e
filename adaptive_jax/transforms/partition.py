"""One transformation for some parameters, another for the others, or none."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import optax
from jax.tree_util import keystr, tree_leaves_with_path

from .._core import pytrees, states
from .._core.extra import ARRAYS_BEFORE, FIRST_GRADIENT
from .._core.mask import Selection
from .._core.paths import some
from .._core.rule import Rule
from .._core.transformation import Foreign, Transformation, member
from .._core.wrapper import Wrapper, evaluating, walk
from .finite import no_update
from .labels import Cut, Labels, refuse_unused


@dataclass(frozen=True)
class Frozen(Wrapper):
    """What leaves parameters as they are: updates of -0.0, and no state. It wraps nothing."""

    def init(self, params: Any) -> optax.EmptyState:
        del params
        return optax.EmptyState()

    def step(
        self, updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, Any]:
        del params, extra_args
        return jax.tree.map(no_update, updates), state

    def check(self, state: Any) -> None:
        """Whatever the state is, it is handed on: there is none, as in `optax.set_to_zero`."""

    def __repr__(self) -> str:
        return "None"


@dataclass(frozen=True)
class Partition(Wrapper):
    """`partition`, of its arguments."""

    transforms: dict[Any, Any]
    param_labels: Labels
    mask_compatible_extra_args: bool = True

    wraps = {"transforms": "inner_states"}
    state_type = optax.PartitionState
    label = "partition"

    def init(self, params: Any) -> optax.PartitionState:
        if pytrees.is_placeholder(params):
            trees: tuple[Any, ...] = (params,) * len(self.transforms)
        else:
            trees = self.params_in(params)
            self._check_all_used(params)
        return self._state(
            tx.init(tree) for tx, tree in zip(self.transforms.values(), trees, strict=True)
        )

    def step(
        self, updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, optax.PartitionState]:
        params = None if params is None else pytrees.with_gradient(updates, params)
        cut = self._cut(updates if params is None else params)
        split = _Split(cut, updates, params, extra_args, self.mask_compatible_extra_args)
        every = zip(self.transforms.items(), self.states_in(state), strict=True)
        new = [split.updated(tx, label, old) for (label, tx), old in every]
        joined = self._joined(cut, "updates", [each for each, _ in new])
        return joined, self._state(each for _, each in new)

    def check(self, state: Any) -> None:
        states.check_wrapper(state, optax.PartitionState)
        labels = list(state.inner_states)
        if set(labels) != set(self.transforms):
            raise ValueError(
                f"the state was made by another optimizer: expected the groups "
                f"{', '.join(map(repr, self.transforms))}, got {', '.join(map(repr, labels))}. Make it "
                "with this optimizer's init(params), or with aj.carry_state, which keeps what fits."
            )
        for each in state.inner_states.values():
            states.check_wrapper(each, optax.MaskedState)

    def states_in(self, state: Any) -> tuple[Any, ...]:
        return tuple(state.inner_states[label].inner_state for label in self.transforms)

    def with_states(self, state: Any, new: Iterable[Any]) -> Any:
        del state
        return self._state(new)

    def params_in(self, params: Any) -> tuple[Any, ...]:
        cut = self._cut(params)
        parts = cut.parts("parameters", params)
        return tuple(cut.only(parts, label) for label in self.transforms)

    def explained(self, params: Any) -> Mapping[str, str]:
        """Why each array has its label, by its path; nothing where labels need no reason."""
        del params
        return {}

    def evaluating(self) -> list[Rule]:
        return max((evaluating(each) for each in self.wrapped()), key=len)

    def evaluate(self, params: Any, state: Any, of_inner: Callable[[Any, Any, Any], Any]) -> Any:
        every = zip(self.wrapped(), self.params_in(params), self.states_in(state), strict=True)
        return self._joined(self._cut(params), "parameters", [of_inner(*each) for each in every])

    def _joined(self, cut: Cut, what: str, trees: Iterable[Any]) -> Any:
        """One tree of the trees of all groups."""
        pairs = zip(self.transforms, trees, strict=True)
        parts = {label: cut.parts(what, tree) for label, tree in pairs}
        return cut.joined([parts[label][place] for place, label in enumerate(cut.labels)])

    def _state(self, inner: Iterable[Any]) -> optax.PartitionState:
        pairs = zip(self.transforms, map(optax.MaskedState, inner), strict=True)
        return optax.PartitionState(dict(pairs))

    def _cut(self, params: Any) -> Cut:
        return Cut.by(self.param_labels, params, self.transforms)

    def _check_all_used(self, params: Any) -> None:
        """Raises a ValueError for a label without parameters, unless a function gave the labels."""
        if self.param_labels.is_general or not jax.tree.leaves(params):
            return
        paths = [keystr(path) for path, _ in tree_leaves_with_path(params)]
        if unmatched := self.param_labels.without_match(params):
            raise ValueError(
                f"the pattern {unmatched[0]!r} of param_labels matches no path, in a/b/c form, of the "
                f"parameters {some(paths)}: correct it, or leave it out."
            )
        if self.param_labels.patterns is None:
            used = set(self._cut(params).labels)
            refuse_unused([x for x in self.transforms if x not in used], "parameter", paths)

    def __repr__(self) -> str:
        inner = ", ".join(f"{label!r}: {tx!r}" for label, tx in self.transforms.items())
        rest = "" if self.mask_compatible_extra_args else ", mask_compatible_extra_args=False"
        return f"partition({{{inner}}}, {self.param_labels!r}{rest})"


def partition(
    transforms: Mapping[Hashable, optax.GradientTransformation | None],
    param_labels: Any | Callable[[Any], Any],
    *,
    mask_compatible_extra_args: bool = True,
) -> Transformation:
    """A transformation for each group of parameters: `optax.partition`, as a pytree.

        u = transforms[label of θ](g of its group)

    Each transformation sees its own group alone, so that a global norm is that of the group. Its
    hyperparameters are data: `jax.vmap(lambda lr: aj.partition({"a": aj.adam(lr)}, labels))(rates)`
    is a sweep, and new rates compile nothing. Labels are static: trees and patterns are compared by
    what they say, a function by identity, so define it once. `train_step` measures the learning rate
    of each group, "learning_rate/<label>", and as "learning_rate" the largest of them.

    For groups that differ in a hyperparameter only, a tree in the place of the number compiles faster.
    In a group, a tree of hyperparameters needs no more keys of dicts than the group has arrays in.

    Differs from `optax.partition`: patterns; None as a transformation; `param_labels` that are a
    function get the parameters in `update` too, where it gets them, and not the gradients; extra
    arguments are masked; a tree of labels that leaves a transformation without parameters is refused.

    Args:
      transforms: from labels, which sort, to transformations. None freezes its group: no state, and
        updates of -0.0, which leave every bit of the parameters as it is.
      param_labels: the label of each parameter: a tree of labels, the parameters' or a prefix of it; a
        function that makes one from the parameters, of any model: some labels may have none; or a list
        of pairs (regular expression, label). The first whose expression is found anywhere in the path of
        a parameter, "layer/0/bias", counts; "^" and "$" stand for its ends, and a last ".*" is for the
        rest. Each expression must match something.
      mask_compatible_extra_args: whether each group gets its part alone of the extra arguments of
        `update` that are trees like the gradients, such as `grad`. All others are handed on as they are.

    Returns:
      The transformation. Its state is an `optax.PartitionState`, as that of `optax.partition`: each
      loads what the other saved.

    Raises:
      TypeError, ValueError: for what is no transformation, by its label, and expressions that do not
        compile; in `init`, by paths, for a parameter without a label, a label without a transformation,
        and one without parameters.

    Example:
      >>> import adaptive_jax as aj, jax, jax.numpy as jnp
      >>> params = {"embed": jnp.ones((8, 2)), "dense": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}}
      >>> tx = aj.partition(
      ...     {"embeddings": aj.adam(0.1), "matrices": aj.sgd(0.5, momentum=0.9), "rest": aj.adamw(0.1)},
      ...     [("embed", "embeddings"), ("kernel$", "matrices"), (".*", "rest")],
      ... )
      >>> updates, state = tx.update(params, tx.init(params), params)
      >>> print(updates["dense"]["kernel"][0], sorted(state.inner_states))
      [-0.5 -0.5] ['embeddings', 'matrices', 'rest']

      Weight decay for all but the biases, and a part that is not trained:

      >>> frozen_base = {"embed": "base", "dense": "head"}
      >>> tx = aj.partition({"head": aj.adam(0.1), "base": None}, frozen_base)
      >>> print(aj.state_bytes(tx, params).by_slot)
      {'mu': 24, 'nu': 24, 'other': 4}
      >>> decay = [("bias$", "plain"), (".*", "decayed")]
      >>> tx = aj.partition({"plain": aj.adam(0.1), "decayed": aj.adamw(0.1)}, decay)
    """
    if not isinstance(transforms, Mapping):
        raise TypeError(
            f"transforms={transforms!r:.80} must be a mapping from labels to transformations, such as "
            '{"a": aj.adam(1e-3), "b": None}.'
        )
    if not transforms:
        raise ValueError("partition needs at least one transformation, such as aj.adam(1e-3).")
    try:
        labels: list[Any] = sorted(transforms)  # type: ignore[type-var]  # As JAX sorts keys of a dict.
    except TypeError:
        raise TypeError(
            f"the labels {', '.join(map(repr, transforms))} in transforms cannot be sorted, as the keys of "
            "a state have to be: give strings, or numbers."
        ) from None
    made = {
        label: Transformation.of(Frozen())
        if transforms[label] is None
        else member(transforms[label], f"transforms[{label!r}] of partition")
        for label in labels
    }
    _check_switch(mask_compatible_extra_args)
    return Transformation.of(
        Partition(made, Labels.of(param_labels, made), bool(mask_compatible_extra_args))
    )


@dataclass(frozen=True)
class MaskedTransform(Wrapper):
    """`masked`, of its arguments."""

    inner: Any
    mask: Selection
    mask_compatible_extra_args: bool = True

    wraps = {"inner": "inner_state"}
    state_type = optax.MaskedState
    label = "masked"

    def init(self, params: Any) -> optax.MaskedState:
        if not pytrees.is_placeholder(params):
            (params,) = self.params_in(params)
        return optax.MaskedState(self.inner.init(params))

    def step(
        self, updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, optax.MaskedState]:
        params = None if params is None else pytrees.with_gradient(updates, params)
        cut = self._cut(updates if params is None else params)
        split = _Split(cut, updates, params, extra_args, self.mask_compatible_extra_args)
        new, new_state = split.updated(self.inner, True, state.inner_state)
        return self._joined(cut, "updates", new, split.updates), optax.MaskedState(new_state)

    def params_in(self, params: Any) -> tuple[Any, ...]:
        cut = self._cut(params)
        return (cut.only(cut.parts("parameters", params), True),)

    def evaluate(self, params: Any, state: Any, of_inner: Callable[[Any, Any, Any], Any]) -> Any:
        cut, (own,) = self._cut(params), self.params_in(params)
        new = of_inner(self.inner, own, state.inner_state)
        return self._joined(cut, "parameters", new, cut.parts("parameters", params))

    def _joined(self, cut: Cut, what: str, new: Any, old: Sequence[Any]) -> Any:
        """A tree of what is new, and of the old parts that the mask does not select."""
        every = zip(cut.labels, cut.parts(what, new), old, strict=True)
        return cut.joined([part if select else other for select, part, other in every])

    def _cut(self, params: Any) -> Cut:
        return Cut("mask", self.mask.tree(params))


def masked(
    inner: optax.GradientTransformation,
    mask: Any | Callable[[Any], Any],
    *,
    mask_compatible_extra_args: bool = True,
) -> Transformation:
    """A transformation of some parameters alone: `optax.masked`, as a pytree.

        u = inner(g) where the mask is True,   u = g elsewhere

    What it does not select passes by as it is, as in optax: for a piece of a chain. To leave parameters
    as they are, `aj.partition` has None.

    Args:
      inner: the transformation. It sees what is selected alone, and keeps no state of the rest.
      mask: a tree of bools, the parameters' or a prefix of it, or a function that makes one from the
        parameters, or from the gradients where `update` gets no parameters.
      mask_compatible_extra_args: whether inner gets its part alone of the extra arguments of `update`
        that are trees like the gradients. All others are handed on as they are.

    Returns:
      The transformation. Its state is an `optax.MaskedState`, as that of `optax.masked`.

    Raises:
      TypeError, ValueError: for what is no transformation, and a mask that is no tree of bools; in
        `init`, for one that is no prefix of the parameters.

    Example:
      >>> import adaptive_jax as aj, jax, jax.numpy as jnp
      >>> matrices = lambda params: jax.tree.map(lambda x: x.ndim > 1, params)
      >>> tx = aj.chain(aj.masked(aj.add_decayed_weights(0.5), matrices), aj.sgd(0.5))
      >>> params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
      >>> updates, _ = tx.update(params, tx.init(params), params)
      >>> print(updates["kernel"][0], updates["bias"])
      [-0.75 -0.75] [-0.5 -0.5]
    """
    inner = member(inner, "masked")
    _check_switch(mask_compatible_extra_args)
    return Transformation.of(
        MaskedTransform(inner, Selection.of(mask), bool(mask_compatible_extra_args))
    )


class _Split:
    """The trees of an update, of which each group gets its part."""

    def __init__(
        self, cut: Cut, updates: Any, params: Any, extra_args: Mapping[str, Any], masks: bool
    ) -> None:
        self._cut = cut
        self.updates = cut.parts("gradients", updates)
        self._params = None if params is None else cut.parts("parameters", params)
        # Of the extra arguments that are trees like the gradients, their parts.
        self._extra_args, self._before = extra_args, extra_args.get(ARRAYS_BEFORE, 0)
        self._like = {
            name: cut.parts(name, each)
            for name, each in extra_args.items()
            if name == FIRST_GRADIENT or (masks and _is_like(each, updates))
        }

    def updated(self, tx: Any, label: Hashable, state: Any) -> tuple[Any, Any]:
        """What the transformation of a group returns."""
        # Where there is no gradient, it is as well with one of this library that the group's state holds
        # nothing for the array, or None. optax's need what it holds.
        nones = not any(isinstance(each, Foreign) for (each,) in walk(tx))
        only = [
            None if parts is None else self._cut.only(parts, label, nones)
            for parts in (self.updates, self._params)
        ]
        like = {name: self._cut.only(parts, label, nones) for name, parts in self._like.items()}
        extra_args = {**self._extra_args, **like}
        if self._before:
            extra_args[ARRAYS_BEFORE] = self._before
        self._before += len(jax.tree.leaves(only[0], is_leaf=lambda x: x is None))
        return tx.update(only[0], state, only[1], **extra_args)


def _is_like(tree: Any, updates: Any) -> bool:
    """Whether it has the structure of the updates, None counted as an array.

    A number beside a tree that is one array has it too, and is meant for all.
    """
    (found, structure), (wanted, expected) = (
        jax.tree.flatten(each, is_leaf=lambda x: x is None) for each in (tree, updates)
    )
    if structure != expected:
        return False
    is_bare = jax.tree_util.treedef_is_leaf(expected)
    return not is_bare or (
        hasattr(found[0], "shape") and found[0].shape == np.shape(wanted[0]) != ()
    )


def _check_switch(value: Any) -> None:
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"mask_compatible_extra_args={value!r} must be True or False.")
