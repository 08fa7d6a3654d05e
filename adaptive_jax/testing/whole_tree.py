"""What a rule promises that sees the whole tree, or matrices, or evaluates with other parameters."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._core import hyper
from .._core.lifted import Lifted
from .._core.plan import sees_all
from .._core.rule import fields, mask_of, trees_of
from .._core.slots import update_array
from .._core.storage.base import PLAIN
from .._core.storage.constant import Constant
from .._core.tiles import elementwise
from .._core.tiles.equations import Equations
from .._core.transformation import Transformation, data_of
from .._core.wrapper import evaluating
from ..transforms.evaluate import eval_params
from ..transforms.parts import parts
from .promises import not_finite, require, require_close, signature
from .trials import (
    STEPS,
    Trial,
    full_of,
    of_trial,
    one_matrix,
    random_gradients,
    random_params,
    stacked,
)


@of_trial
def _check_matrices(trial: Trial) -> None:
    try:
        jax.eval_shape(trial.tx.init, random_params())
    except (TypeError, ValueError) as error:
        names = ("vector", "scalar", "nested")
        require(
            "matri" in str(error) and any(name in str(error) for name in names),
            f"Arrays with fewer than two axes are refused without a name: {error} (A rule for matrices "
            "says matrix = True, and they are refused by their paths.)",
        )


@of_trial
def _check_constant(trial: Trial) -> None:
    if not any(slot.constant for rule in trial.rules for slot in rule.slots.values()):
        return
    params, states = trial.params(), trial.plain.states
    of_states = [list(parts(trial.tx, state, params)) for state in states]
    for (rule, _, first, seen), *later in zip(*of_states, strict=True):
        for name in (name for name, slot in rule.slots.items() if slot.constant):
            kept = getattr(first, name)
            for step, (_, _, part, _) in enumerate(later, 1):
                require(
                    _bits(getattr(part, name)) == _bits(kept),
                    f"The constant slot {name!r} of {rule!r} is {getattr(part, name)} after {step} "
                    f"updates, and was {kept}: something around the rule changes its state. A slot that "
                    "moves is no Slot(constant=True).",
                )
            is_copy = rule.slots[name].initial == "param"
            require(
                not is_copy or _bits(kept) == _bits(seen),
                f'The slot {name!r} of {rule!r} is Slot("param", constant=True), and starts as {kept}, '
                f"where the parameters are {seen}: `init` must keep a copy of what it is given.",
            )


def _bits(tree: Any) -> list[Any]:
    """The bits of each array, with its path, shape and dtype."""
    return [
        (jax.tree_util.keystr(path), np.shape(x), np.asarray(x).dtype, np.asarray(x).tobytes())
        for path, x in jax.tree_util.tree_leaves_with_path(tree)
    ]


@of_trial
def _check_scalars(trial: Trial) -> None:
    if not any(rule.scalars for rule in trial.rules):
        return
    for dtype in (jnp.float16, jnp.bfloat16):
        params = trial.params(dtype)
        state = jax.eval_shape(trial.tx.init, params)
        _, after = jax.eval_shape(trial.step, random_gradients(params, 0), state, params)
        for when, each in (("At first", state), ("After an update", after)):
            for rule, _, part in parts(trial.tx, each):
                for name in rule.scalars:
                    narrow = [
                        x.dtype.name
                        for x in jax.tree.leaves(getattr(part, name))
                        if jnp.finfo(x.dtype).bits < 32
                    ]
                    require(
                        not narrow,
                        f"{when}, the scalar {name!r} of {rule!r} is {', '.join(narrow)} with "
                        f"{np.dtype(dtype).name} parameters, in which a sum of many steps stands still: "
                        "keep it as it is made, in float32 at least.",
                    )


@of_trial
def _check_trees(trial: Trial) -> None:
    lifted = data_of(trial.tx)
    if not isinstance(lifted, Lifted):
        return
    params, names = trial.params(), []
    for place, rule in enumerate(lifted.rules):
        for name in fields(type(rule)).data:
            value = getattr(rule, name)
            if value is None or hyper.is_schedule(value) or not hyper.is_one(value):
                continue
            tree = dict.fromkeys(params, value)
            try:
                new = dataclasses.replace(lifted.rules[place], **{name: tree})  # type: ignore[type-var]
                rules = (*lifted.rules[:place], new, *lifted.rules[place + 1 :])
                with_trees = dataclasses.replace(lifted, rules=rules)
                jax.eval_shape(Transformation.of(with_trees).init, params)
            except Exception as error:
                is_named = re.search(rf"\b{name}\b", str(error))
                require(
                    isinstance(error, (TypeError, ValueError)) and is_named,
                    f"{name} of {rule!r} as a tree, {tree}, is refused without its name: {error!r}. A "
                    "rule sees a number for each array, so leave the tree to the library; where there "
                    f"can be but one number, say so: a ValueError that names {name}.",
                )
                continue
            lifted = with_trees
            names.append(f"{type(rule).__name__}.{name}")
    if not names:
        return
    tx, (first, second, *_) = Transformation.of(lifted), trial.plain.states

    @jax.jit
    def run(gradients: Any, state: Any, params: Any) -> Any:
        return tx.init(params), tx.update(gradients, state, params, **trial.extra_args(gradients))

    init, (updates, _) = run(random_gradients(params, 1), second, params)
    advice = (
        "A rule sees the number of the array at hand, so what it makes of one must not depend on whether "
        "a tree came: look into __post_init__, properties and `learning_rate_at`."
    )
    what = f"with a tree of equal numbers for {', '.join(names)}, the"
    require_close(init, first, f"{what} first state", advice=advice)
    require_close(updates, trial.plain.updates[1], f"{what} second update", advice=advice)


@of_trial
def _check_cut(trial: Trial) -> None:
    lifted = data_of(trial.tx)
    if not isinstance(lifted, Lifted) or not _may_be_cut(lifted) or not _is_elementwise(trial):
        return
    matrix = one_matrix()["matrix"]
    gradients = [random_gradients({"matrix": matrix}, step)["matrix"] for step in range(STEPS)]
    # What is made up for the arrays of other shapes would be other numbers.
    extra = [
        {name: _cut(x) if np.ndim(x) else x for name, x in trial.extra_args(each).items()}
        for each in gradients
    ]

    @jax.jit
    def run(params: Any, gradients: Any, extra: Any) -> Any:
        def body(state: Any, given: Any) -> Any:
            gradients, extra = given
            updates, state = trial.tx.update(gradients, state, params, **extra)
            return state, updates

        return jax.lax.scan(body, trial.tx.init(params), (gradients, extra))[1]

    got = run(_cut(matrix), stacked(*map(_cut, gradients)), stacked(*extra))
    whole = [updates["matrix"] for updates in trial.plain_matrix.updates]
    require_close(
        got,
        stacked(*map(_cut, whole)),
        "of the same numbers in three arrays",
        advice="What is measured of each array must be put together in `advance` as if they were one: "
        "sums by adding, norms by aj.maths.norm; a mean of means counts small arrays for too much, so "
        "measure the sum and the size. (What is meant for each array alone is layerwise = True.)",
    )


def _cut(matrix: Any) -> dict[str, Any]:
    """The numbers of a matrix as three arrays of different sizes and ranks."""
    numbers = np.asarray(matrix).reshape(-1)
    pieces = {"one": numbers[:1], "few": numbers[1:5].reshape(2, 2), "rest": numbers[5:]}
    return jax.tree.map(jax.device_put, pieces)


def _may_be_cut(lifted: Lifted) -> bool:
    """Whether some of the rules see the whole tree, and none says that arrays are not alike."""
    return any(map(sees_all, lifted.rules)) and not any(
        rule.layerwise
        or rule.matrix
        or trees_of(rule)
        or mask_of(rule) is not None
        or any(slot.shape is not None for slot in rule.slots.values())
        or not all(storage in (PLAIN, Constant()) for storage in storages)
        for rule, storages in zip(lifted.rules, lifted.storages, strict=True)
    )


def _is_elementwise(trial: Trial) -> bool:
    """Whether each `update` does the same to each number of an array, as far as operations tell."""
    shapes = ((3, 4), (5, 2))
    try:
        calls = zip(*(list(_updates_of_arrays(trial, shape)) for shape in shapes), strict=True)
        return all(
            elementwise.why_not(whole, other, *shapes) is None  # type: ignore[misc]
            for whole, other in calls
        )
    except (TypeError, ValueError, NotImplementedError):
        return False  # A rule that takes no arrays of these shapes.


def _updates_of_arrays(trial: Trial, shape: tuple[int, ...]) -> Iterator[Equations]:
    """What the rules do to an array of a shape, for each row of them."""
    from jax.extend.core import jaxpr_as_fun  # It brings Pallas along, which takes time at import.

    param = jax.ShapeDtypeStruct(shape, np.float32)
    state = jax.eval_shape(trial.tx.init, param)
    for closed in _called(jax.make_jaxpr(trial.step)(param, state, param).jaxpr):
        yield Equations.of(jax.default_backend(), jaxpr_as_fun(closed), *closed.in_avals)


def _called(jaxpr: Any) -> Iterator[Any]:
    """What is in the calls of `update_array`, wherever these are."""
    for equation in jaxpr.eqns:
        closed = equation.params.get("jaxpr")
        if equation.params.get("name") == update_array.__name__:  # type: ignore[attr-defined]
            yield closed
        elif hasattr(closed, "eqns"):
            yield from _called(closed)


@of_trial
def _check_evaluates_at_first(trial: Trial) -> None:
    if not (rules := evaluating(trial.tx)):
        return
    params = trial.params()
    found = eval_params(trial.tx, params, trial.plain.states[0])
    require(
        _bits(found) == _bits(params),
        f"Before the first update, {rules[0]!r} evaluates with {found} in place of the parameters, "
        f"{params}. A rule with counts_steps = True is not asked before its first update; without, "
        'start its slots from the parameters: Slot("param").',
    )


@of_trial
def _check_evaluates_later(trial: Trial) -> None:
    if not (rules := evaluating(trial.tx)):
        return
    params, first = trial.params(), trial.plain.states[0]
    states = {"random": trial.plain.states[-1]}
    largest = float(jnp.finfo(jnp.float32).max) / 64
    states[f"huge, up to {largest:.3g}"] = functools.reduce(
        lambda state, value: trial.update(full_of(value, params), state, params)[1],
        [largest, -largest] * 2,
        first,
    )
    each = {name: eval_params(trial.tx, params, state) for name, state in states.items()}
    for name, found in each.items():
        require(
            signature(found) == signature(params),
            f"{rules[0]!r} evaluates with {signature(found)}, where the parameters are "
            f"{signature(params)}: `evaluate` returns an array like the parameter that it gets.",
        )
        places = not_finite(found)
        require(
            not places,
            f"After gradients that are {name}, {rules[0]!r} evaluates with infinite or NaN numbers at "
            f"{', '.join(places)}. What overflows, or divides by 0? aj.maths.bounded and ratio do not.",
        )
    mapped = jax.jit(jax.vmap(functools.partial(eval_params, trial.tx)))
    many = mapped(stacked(params, params), stacked(*states.values()))
    require_close(
        many,
        stacked(*each.values()),
        f"under jit and vmap, {rules[0]!r} evaluates with others",
        advice="An `evaluate` must be a function of its arguments, and traceable.",
    )


WHOLE_TREE_PROMISES: dict[str, Callable[[Any], None]] = {
    "arrays that are no matrices work, or are refused by name": _check_matrices,
    "a constant slot keeps every bit": _check_constant,
    "its scalars are in float32 at least": _check_scalars,
    "a tree of equal hyperparameters does what the one number does, or is refused by name": (
        _check_trees
    ),
    "the same numbers in one array or in three get the same updates": _check_cut,
    "before the first update it evaluates with the parameters themselves": (
        _check_evaluates_at_first
    ),
    "what it evaluates with is finite and like the parameters, under jit and vmap too": (
        _check_evaluates_later
    ),
}
