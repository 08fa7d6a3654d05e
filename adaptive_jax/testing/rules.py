"""What a rule promises, and a check of each promise that compiles as few programs as it can."""

from __future__ import annotations

import functools
import pickle
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .._core.lifted import Lifted
from .._core.rule import Rule, fields
from .._core.transform import transform
from .._core.transformation import Transformation, data_of
from ..transforms.parts import parts
from .precisions import PRECISION_PROMISES
from .promises import check_promises, is_weak, not_finite, require, require_close, signature
from .trials import (
    STEPS,
    Trial,
    full_of,
    of_trial,
    one_matrix,
    random_gradients,
    stacked,
    take_steps,
)
from .whole_tree import WHOLE_TREE_PROMISES

_PRECISIONS = (jnp.float16, jnp.bfloat16, jnp.float32)


def check_rule(
    rule: Rule | optax.GradientTransformation, expected: Mapping[str, str] | None = None
) -> None:
    """Raises unless a rule keeps what every optimizer of this library promises.

    It takes a rule with its hyperparameters, or a whole transformation, and runs a few updates of
    small trees under jit, vmap, scan, grad and cond, in every dtype, with None, empty and zero-size
    arrays, with extreme and zero gradients, inside optax's wrappers, and after a restart. That
    takes some seconds, most of them to compile. `PROMISES` has the names of all that it checks, in
    order. Some are for some rules alone:

    - Extra arguments that a rule asks for are made up: a number is 0.75, an array goes from 0.5 to 1.5.
    - What takes matrices alone is tried with matrices, and must refuse other arrays by their paths.
    - A constant slot keeps every bit, and scalars are in float32 at least, with bfloat16 parameters too.
    - A tree of equal numbers in the place of a hyperparameter gives the same updates, or an error that
      names it.
    - One array and the same numbers in three give the same updates, up to rounding: for rules that
      measure all arrays, where `update` is element-wise, as its operations tell, slots are stored in
      float32, and nothing is layerwise, for matrices, or masked.
    - A rule with an `evaluate` gives the parameters before the first update, and then what is finite
      and like them, under jit and vmap too.

    Args:
      rule: a `Rule`, or an optax gradient transformation. To check it with a storage, one that
        compresses small arrays: `transform(rule, storage=aj.Blocks(min_size=0))`.
      expected: promises, of `PROMISES`, that are not meant for this rule, each with the reason.

    Raises:
      BrokenPromise: an AssertionError that names the promise and says how it broke; or an expected
        promise that holds, so that no reason outlives what it explains.
      TypeError: for a rule's class, or expected that is no mapping.
      ValueError: for an expected promise that does not exist, or that has no reason.

    Example:
      >>> import adaptive_jax as aj
      >>> aj.testing.check_rule(aj.WeightDecay(0.01))

      What skips a step is meant to hide what is not finite:

      >>> aj.testing.check_rule(
      ...     aj.skip_nonfinite(aj.sgd(0.1)),
      ...     expected={"a gradient that is not finite stays visible": "its step is skipped"},
      ... )
    """
    if isinstance(rule, type):
        raise TypeError(f"check_rule takes a rule, not its class: {rule.__name__}(…).")
    tx = transform(rule) if isinstance(rule, Rule) else rule
    check_promises(rule, PROMISES, Trial(tx), expected)


@of_trial
def _check_jit(trial: Trial) -> None:
    params = trial.params()
    jax.eval_shape(jax.jit(trial.step), random_gradients(params, 0), trial.plain.states[0], params)
    if not trial.is_one_program:  # Its own code may look at arrays that are there.
        updates, _ = trial.step(random_gradients(params, 0), trial.plain.states[0], params)
        require_close(updates, trial.plain.updates[0], "without jit")
    plain, params = trial.plain_matrix, one_matrix()
    require_close(trial.jitted_matrix[0], plain, "under jit")
    with jax.disable_jit():  # Each operation is a program, for each shape.
        unjitted = take_steps(trial.step, trial.tx.init(params), params)
    require_close(unjitted, plain, "without jit")


@of_trial
def _check_stable_state(trial: Trial) -> None:
    before, *later = (signature(state) for state in trial.plain.states)
    for after in later:
        require(before == after, f"An update changes the state from {before} to {after}.")
    leaves = jax.tree_util.tree_leaves_with_path(trial.plain.states[1])
    weak = [path for path, leaf in leaves if is_weak(leaf)]
    require(not weak, f"The state has weakly typed entries: {weak}.")
    _, programs = trial.jitted_matrix
    require(programs == 1, f"{STEPS} calls compiled {programs} times.")


@of_trial
def _check_scan(trial: Trial) -> None:
    def scan(state: Any, gradients: Any, params: Any) -> Any:
        def body(state: Any, updates: Any) -> Any:
            updates, state = trial.step(updates, state, params)
            return state, updates

        return jax.lax.scan(body, state, gradients)

    def all_gradients(params: Any) -> Any:
        return stacked(*(random_gradients(params, step) for step in range(STEPS)))

    params = trial.params()
    jax.eval_shape(scan, trial.plain.states[0], all_gradients(params), params)
    plain, params = trial.plain_matrix, one_matrix()
    state, updates = scan(plain.states[0], all_gradients(params), params)
    require_close(state, plain.states[-1], "the state of a scan")
    require_close(updates, stacked(*plain.updates), "a scan")


@of_trial
def _check_vmap(trial: Trial) -> None:
    one = trial.params()
    half = jax.tree.map(lambda x: jax.device_put(np.float32(0.5) * np.asarray(x)), one)

    def run(init: Any, update: Any, params: Any) -> Any:
        state, gradients = init(params), params
        for _ in range(2):
            gradients, state = update(gradients, state, params)
        return gradients, state

    both = stacked(one, half)
    # With a state that is not mapped yet.
    jax.eval_shape(jax.vmap(functools.partial(run, trial.tx.init, trial.step)), both)
    many = run(jax.jit(jax.vmap(trial.tx.init)), jax.vmap(trial.update), both)
    each = [run(trial.tx.init, trial.update, params) for params in (one, half)]
    require_close(many, stacked(*each), "under vmap")


@of_trial
def _check_transforms(trial: Trial) -> None:
    params = trial.params()
    gradients, state = random_gradients(params, 0), trial.plain.states[0]
    result = (trial.plain.updates[0], trial.plain.states[1])
    require(
        _shapes(jax.eval_shape(trial.step, gradients, state, params)) == _shapes(result),
        "eval_shape of an update differs from the update.",
    )
    require(
        _shapes(jax.eval_shape(trial.tx.init, params)) == _shapes(state),
        "eval_shape of init differs from init.",
    )

    @jax.jit
    def branch(flag: Any, gradients: Any, state: Any, params: Any) -> Any:
        return jax.lax.cond(
            flag, lambda: trial.step(gradients, state, params), lambda: (gradients, state)
        )

    jax.eval_shape(branch, True, gradients, state, params)
    plain, params = trial.plain_matrix, one_matrix()
    gradients, state = random_gradients(params, 0), plain.states[0]
    taken, left = (branch(flag, gradients, state, params) for flag in (True, False))
    require_close(taken, (plain.updates[0], plain.states[1]), "under lax.cond")
    require_close(left, (gradients, state), "under lax.cond, not taken")


def _shapes(tree: Any) -> Any:
    return jax.tree.map(lambda x: (x.shape, x.dtype), tree)


@of_trial
def _check_grad(trial: Trial) -> None:
    params = trial.params() if trial.depends_on_shapes else one_matrix()

    def loss(gradients: Any, params: Any) -> jax.Array:
        state, total = trial.tx.init(params), jnp.zeros(())
        for _ in range(2):
            updates, state = trial.step(gradients, state, params)
            total = sum((jnp.sum(x) for x in jax.tree.leaves(updates)), total)
        return total

    slope = jax.jit(jax.grad(loss, argnums=(0, 1)))
    for name, gradients in (
        ("random gradients", random_gradients(params, 0)),
        ("zero gradients", full_of(0.0, params)),
    ):
        require(
            not not_finite(slope(gradients, params)),
            f"The derivative of an update is not finite, for {name}. (√x has none at 0; "
            "aj.maths.square_root(x) has.)",
        )


def _extremes(dtype: Any) -> Iterator[tuple[str, list[float]]]:
    """Names and sequences of gradients.

    The largest is a 64th of the dtype's largest number: a velocity is a sum of gradients, and a sum
    that no float32 can hold is infinite by right.
    """
    info = jnp.finfo(dtype)
    largest, smallest, denormal = map(float, (info.max, info.tiny, info.smallest_subnormal))
    largest /= 64
    yield "huge", [largest] * 4
    yield "huge, of both signs", [largest, -largest] * 2
    yield "huge once, then zero", [largest, 0.0, 0.0, 0.0]
    yield "the smallest normal number", [smallest] * 4
    yield "denormal numbers", [denormal] * 4
    yield "numbers of all sizes", [denormal, 1.0, largest, smallest]
    yield "a constant", [1.0] * 30


@of_trial
def _check_finite(trial: Trial) -> None:
    for dtype in _PRECISIONS:
        params = full_of(1.0, trial.params_in(dtype))
        first = trial.init(params)
        for name, values in _extremes(dtype):
            gradients = {value: full_of(value, params) for value in values}
            state = first
            for value in values:
                updates, state = trial.update(gradients[value], state, params)
                for what, tree in (("update", updates), ("state", state)):
                    places = not_finite(tree)
                    require(
                        not places,
                        f"{np.dtype(dtype).name} gradients that are {name}, up to {max(values):.3g}, "
                        f"make the {what} at {', '.join(places)} infinite or NaN. What overflows? "
                        "aj.maths.bounded, second_moment and quotient do not.",
                    )


@of_trial
def _check_zero(trial: Trial) -> None:
    for dtype in _PRECISIONS:
        zeros = full_of(0.0, trial.params_in(dtype))
        state = trial.init(zeros)
        for _ in range(STEPS):
            updates, state = trial.update(zeros, state, zeros)
            require(
                all(np.all(np.asarray(x) == 0) for x in jax.tree.leaves(updates)),
                f"Zero gradients from the start give {updates} in {np.dtype(dtype).name}.",
            )


@of_trial
def _check_first_step(trial: Trial) -> None:
    """Of what is made of rules: a wrapper may well wait."""
    if not trial.is_one_program:
        return
    waiting = [rule for rule in trial.rules if rule.only_initialises]
    # A later one may stand still: where a gradient turns, say.
    for step, updates in enumerate(trial.plain.updates[: 2 if waiting else 1], 1):
        moving = [path for path, x in jax.tree_util.tree_leaves_with_path(updates) if np.any(x)]
        still = [
            jax.tree_util.keystr(path)
            for path, x in jax.tree_util.tree_leaves_with_path(updates)
            if x.size and path not in moving
        ]
        if step == 1 and waiting:
            require(
                not moving,
                f"{waiting[0]!r} says that its first update only initialises, and it moves.",
            )
            continue
        require(
            not still,
            f"Update {step} leaves {', '.join(still)} where they are, whose gradients are not zero. (A "
            "rule whose first update gives its slots what they start from says only_initialises = True.)",
        )


@of_trial
def _check_not_hidden(trial: Trial) -> None:
    for dtype in _PRECISIONS:
        params = full_of(1.0, trial.params_in(dtype))
        state = trial.init(params)
        with_paths, treedef = jax.tree_util.tree_flatten_with_path(params)
        leaves = [leaf for _, leaf in with_paths]
        for place, (path, leaf) in enumerate(with_paths):
            for value in (np.nan, np.inf) if leaf.size else ():
                poisoned = np.array(leaf)
                poisoned.flat[0] = value
                gradients = [*leaves[:place], jax.device_put(poisoned), *leaves[place + 1 :]]
                updates, _ = trial.update(treedef.unflatten(gradients), state, params)
                require(
                    not_finite(updates),
                    f"A gradient that is {value} at {jax.tree_util.keystr(path)} gives the update "
                    f"{jax.tree.leaves(updates)[place].tolist()} in {np.dtype(dtype).name}.",
                )


@of_trial
def _check_none_and_empty(trial: Trial) -> None:
    params, left = trial.params(), "stack" if trial.takes_only_matrices else "vector"
    state, gradients = trial.init(params), {**random_gradients(params, 0), left: None}
    updates, _ = jax.eval_shape(trial.step, gradients, state, params)
    require(updates[left] is None, "The update of a None gradient is not None.")

    @jax.jit
    def new_slots(gradients: Any, state: Any, params: Any) -> list[Any]:
        return _under(left, trial.step(gradients, state, params)[1])

    for before, after in zip(_under(left, state), new_slots(gradients, state, params), strict=True):
        require(
            np.array_equal(before, after), "A None gradient changes the slots of its parameter."
        )
    # An extra argument that is None was left out.
    takes_trees = any("array" in rule.extra_args.values() for rule in trial.rules)
    for empty in ({}, [], (), *([] if takes_trees else [None])):
        updates, _ = trial.traced(empty)
        require(updates == empty, f"The update of the empty tree {empty!r} is {updates!r}.")


def _under(name: str, state: Any) -> list[Any]:
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return [leaf for path, leaf in leaves if jax.tree_util.DictKey(name) in path]


@of_trial
def _check_optax(trial: Trial) -> None:
    tx, params = trial.tx, {**one_matrix(), "empty": trial.params()["nested"][1][0]}
    accumulating = optax.MultiSteps(tx, 2)
    wrappers = {
        "optax.chain": optax.chain(optax.identity(), tx),
        "optax.masked": optax.masked(tx, jax.tree.map(lambda _: True, params)),
        "optax.partition": optax.partition({"a": tx}, jax.tree.map(lambda _: "a", params)),
        "optax.apply_if_finite": optax.apply_if_finite(tx, 3),
        "optax.with_extra_args_support": optax.with_extra_args_support(tx),
    }

    # One program: what is the same for all is there once.
    @jax.jit
    def run(gradients: Any, params: Any) -> Any:
        updates = {"alone": _updates_of(trial, tx, gradients, params)}
        for name, wrapped in wrappers.items():
            try:
                updates[name] = _updates_of(trial, wrapped, gradients, params)
            except Exception as error:
                raise AssertionError(f"inside {name}: {error}") from error
        with jax.numpy_dtype_promotion("standard"):  # MultiSteps adds integers to floats.
            updates["optax.MultiSteps"] = _updates_of(
                trial, accumulating, [gradients[0]] * 2, params
            )
        return updates

    updates = run([random_gradients(params, step) for step in range(STEPS)], params)
    for name in wrappers:
        require_close(updates[name], updates["alone"], f"inside {name}")
    require_close(updates["optax.MultiSteps"][1], updates["alone"][0], "inside optax.MultiSteps")
    state = trial.init(params)
    mapped = optax.tree.map_params(tx, lambda leaf: leaf, state)
    require_close(mapped, state, "through optax.tree.map_params")


def _updates_of(trial: Trial, tx: Any, gradients: list[Any], params: Any) -> list[Any]:
    state, all_updates = tx.init(params), []
    for each in gradients:
        updates, state = tx.update(each, state, params, **trial.extra_args(each))
        all_updates.append(updates)
    return all_updates


@of_trial
def _check_state_format(trial: Trial) -> None:
    params, state = trial.params(), trial.plain.states[-1]
    if isinstance(lifted := data_of(trial.tx), Lifted):
        for layout, part in zip(lifted.layout(), lifted.split(state), strict=True):
            require(
                part._fields == layout.fields,
                f"The state {layout.name} has the entries {part._fields}, not {layout.fields}.",
            )
    restored = pickle.loads(pickle.dumps(jax.tree.map(np.asarray, state)))
    gradients = random_gradients(params, 7)
    here = trial.update(gradients, state, params)
    there = trial.update(gradients, restored, params)
    require(
        all(
            np.array_equal(x, y, equal_nan=True)  # What is not finite is told elsewhere.
            for x, y in zip(jax.tree.leaves(here), jax.tree.leaves(there), strict=True)
        ),
        "A run that continues from a saved state differs from the one that was not stopped.",
    )
    if not trial.is_one_program:  # Its own code sees the saved arrays, which are NumPy's.
        params, state = one_matrix(), trial.plain_matrix.states[-1]
        saved, gradients = jax.tree.map(np.asarray, state), random_gradients(params, 7)
        with jax.disable_jit():
            there = trial.step(gradients, saved, params)
        here = trial.update(gradients, state, params)
        require_close(there, here, "without jit, from a saved state")


@of_trial
def _check_signs(trial: Trial) -> None:
    params, state = trial.params(), trial.plain.states[-1]
    for rule, storages, part, seen in parts(trial.tx, state, params):
        for (name, slot), storage in zip(rule.slots.items(), storages, strict=True):
            if not slot.nonnegative:
                continue
            leaves = jax.tree.structure(seen).flatten_up_to(getattr(part, name))
            leaves = [leaf for leaf in leaves if leaf is not None]
            decode = jax.jit(lambda leaves, storage=storage: [*map(storage.decode, leaves)])
            require(
                not any(np.any(np.asarray(leaf) < 0) for leaf in decode(leaves)),
                f"The slot {name!r} of {rule!r} has negative entries: it is no "
                "Slot(nonnegative=True), and some storages would lose their sign.",
            )


@of_trial
def _check_data(trial: Trial) -> None:
    if not isinstance(tx := trial.tx, Transformation):
        return
    params = trial.params()
    state, gradients = jax.eval_shape(tx.init, params), random_gradients(params, 0)
    for rule, _, _ in parts(tx, state):
        static = {name: getattr(rule, name) for name in fields(type(rule)).static}
        require(
            not (numbers := {name: x for name, x in static.items() if isinstance(x, float)}),
            f"The fields {list(numbers)} of {type(rule).__name__} are static, so that every new value "
            "compiles again: annotate a hyperparameter with aj.Hyper, aj.NonNegative or aj.Decay.",
        )
    traces = []

    @jax.jit
    def step(tx: Any, updates: Any, state: Any, params: Any) -> Any:
        traces.append(tx)
        return tx.update(updates, state, params, **trial.extra_args(updates))

    leaves, treedef = jax.tree.flatten(tx)
    for each in (tx, treedef.unflatten([0.5 * leaf for leaf in leaves])):
        jax.eval_shape(step, each, gradients, state, params)
    require(len(traces) == 1, "A change of the hyperparameters compiles again.")


PROMISES: dict[str, Callable[[Any], None]] = {
    "it works under jit and without": _check_jit,
    "its state keeps structure, shapes and dtypes, so nothing compiles twice": _check_stable_state,
    "it works in a scan": _check_scan,
    "it works under vmap": _check_vmap,
    "it works under cond and eval_shape": _check_transforms,
    "finite gradients give finite updates": _check_finite,
    "zero gradients from the start give zero updates": _check_zero,
    "it moves from the first update on, or says that this only initialises": _check_first_step,
    "a gradient that is not finite stays visible": _check_not_hidden,
    **PRECISION_PROMISES,
    "it can be differentiated, at zero too": _check_grad,
    "None, empty trees, zero-size and scalar arrays just work": _check_none_and_empty,
    "it works inside the wrappers of optax": _check_optax,
    "its state is a stable format that a run can continue from": _check_state_format,
    "a slot that is declared never to be negative is not": _check_signs,
    "its hyperparameters are data": _check_data,
    **WHOLE_TREE_PROMISES,
}
