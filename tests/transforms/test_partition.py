"""Groups of parameters with a transformation each, against optax's."""

from __future__ import annotations

import functools
import inspect
import pickle
import re
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from core import whole_tree_rules as rules

import adaptive_jax as aj
from adaptive_jax._core.transformation import Foreign
from adaptive_jax._core.wrapper import walk

rng = np.random.default_rng(0)
PARAMS = {
    "embed": jnp.asarray(rng.normal(size=(4, 3)), jnp.float32),
    "dense": [
        {"kernel": jnp.asarray(rng.normal(size=(4, 3)), jnp.float32), "bias": jnp.ones(3)},
        {"kernel": jnp.asarray(rng.normal(size=(4, 3)), jnp.bfloat16), "bias": jnp.zeros(3)},
    ],
}
LABELS = {"embed": "embed", "dense": [{"kernel": "matrix", "bias": "rest"}] * 2}
PATTERNS = [("embed", "embed"), (r"dense/\d/kernel$", "matrix"), (".*", "rest")]
PREFIX = {"embed": "embed", "dense": ["matrix", "rest"]}


def label(params):
    return jax.tree_util.tree_map_with_path(
        lambda path, x: {"embed": "embed", "kernel": "matrix", "bias": "rest"}[
            next(each.key for each in reversed(path) if hasattr(each, "key"))
        ],
        params,
    )


EVERY_KIND = pytest.mark.parametrize(
    "labels", [LABELS, PATTERNS, PREFIX, label], ids=["tree", "patterns", "prefix", "function"]
)


def gradients(step, params=PARAMS):
    return jax.tree.map(
        lambda x: jnp.cos(3.0 * step + x.astype(jnp.float32)).astype(x.dtype), params
    )


def run(tx, steps=3, params=PARAMS, state=None, **extra_args):
    state, update = tx.init(params) if state is None else state, tx.update
    for step in range(steps):
        updates, state = update(gradients(step, params), state, params, **extra_args)
        params = aj.apply_updates(params, updates)
    return params, state


def assert_close(got, expected, tolerance=1e-5):
    assert jax.tree.structure(got) == jax.tree.structure(expected)

    def close(x, y):
        assert x.dtype == y.dtype
        x, y = (jnp.asarray(each, jnp.float32) for each in (x, y))
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=1e-6)

    jax.tree.map(close, got, expected)


def ours(rate=0.1):
    clipped = aj.chain(aj.clip_by_global_norm(0.5), aj.sgd(rate, momentum=0.9))
    return {"embed": aj.adam(rate), "matrix": clipped, "rest": None}


def theirs(rate=0.1):
    clipped = optax.chain(optax.clip_by_global_norm(0.5), optax.sgd(rate, momentum=0.9))
    return {"embed": optax.adam(rate), "matrix": clipped, "rest": optax.set_to_zero()}


# ---------------------------------------------------------------------------- as in optax


WIDE = jax.tree.map(lambda x: x.astype(jnp.float32), PARAMS)


@functools.cache
def reference(is_prefix):
    """A run of optax's, and its optimizer."""
    tx = optax.partition(theirs(), PREFIX if is_prefix else LABELS)
    with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes.
        return tx, run(tx, params=WIDE)


@EVERY_KIND
@jax.numpy_dtype_promotion("standard")
def test_the_groups_of_optax(labels):
    """The same steps, in states of the same structure, each of which goes on in the other's run."""
    tx = aj.partition(ours(), labels)
    other, expected = reference(labels is PREFIX)
    got = run(tx, params=WIDE)
    assert_close(got, expected)
    if labels is LABELS:
        again, state = run(tx, 1, WIDE, expected[1]), run(other, 1, WIDE, got[1])
        assert_close(again, state)
    paths = jax.tree_util.tree_leaves_with_path(got[1])
    names = [jax.tree_util.keystr(path) for path, _ in paths]
    assert ".inner_states['embed'].inner_state[0].mu['embed']" in names


@pytest.mark.parametrize("name", ["partition", "masked"])
def test_the_arguments_of_optax(name):
    own, other = (inspect.signature(getattr(each, name)).parameters for each in (aj, optax))
    assert {x.name: x.kind for x in own.values()} == {x.name: x.kind for x in other.values()}


@jax.numpy_dtype_promotion("standard")
def test_what_is_foreign_and_what_is_ours_in_one():
    labels = label(WIDE)
    mixed = {"embed": optax.adamw(0.1), "matrix": aj.sgd(0.1), "rest": optax.lion(0.1)}
    got, state = run(aj.partition(mixed, labels), params=WIDE)
    expected, their_state = run(
        optax.partition(mixed | {"matrix": optax.sgd(0.1)}, labels), params=WIDE
    )
    assert_close((got, state), (expected, their_state))
    inside = optax.chain(optax.clip(1.0), aj.partition(mixed, labels))
    outside = aj.chain(aj.clip(1.0), optax.partition(mixed, labels))
    assert_close(run(inside, 1, WIDE)[0], run(outside, 1, WIDE)[0])


@pytest.mark.parametrize(
    "mask",
    [
        True,
        {"embed": False, "dense": [True, False]},
        lambda p: jax.tree.map(lambda x: x.ndim > 1, p),
    ],
    ids=["all", "prefix", "function"],
)
@jax.numpy_dtype_promotion("standard")
def test_the_masks_of_optax(mask):
    both = aj.masked(aj.adam(0.1), mask), optax.masked(optax.adam(0.1), mask)
    assert_close(*[run(tx, 2, WIDE) for tx in both])
    # Without the parameters.
    assert_close(*[jax.jit(tx.update)(gradients(0, WIDE), tx.init(WIDE)) for tx in both])


def test_a_norm_is_that_of_its_group():
    clip = aj.clip_by_global_norm(1.0)
    tx = aj.partition({"embed": clip, "matrix": clip, "rest": clip}, label)
    updates, _ = tx.update(jax.tree.map(lambda x: 10 * jnp.ones_like(x), PARAMS), tx.init(PARAMS))
    for name in ("embed", "matrix", "rest"):
        chosen = jax.tree.map(
            lambda x, each, name=name: x if each == name else None, updates, LABELS
        )
        assert float(aj.global_norm(chosen)) == pytest.approx(1.0, rel=1e-2)


# ---------------------------------------------------------------------------- labels


def test_the_first_pattern_that_is_found_counts():
    tx = aj.partition(
        {"a": aj.sgd(1.0), "b": aj.sgd(2.0), "c": aj.sgd(3.0)},
        [("^x/1$", "a"), (re.compile("X/0", re.IGNORECASE), "b"), ("0", "a"), (".*", "c")],
    )
    ones = {"x": [jnp.ones(()), jnp.ones(())], "y": {"x": jnp.ones(()), "0": jnp.ones(())}}
    updates, _ = tx.update(ones, tx.init(ones))
    assert updates == {"x": [-2.0, -1.0], "y": {"x": -3.0, "0": -1.0}}
    one = aj.partition({"a": aj.sgd(1.0)}, [["", "a"]])
    assert one.update(jnp.ones(()), one.init(jnp.ones(())))[0] == -1.0


def test_a_list_of_pairs_may_be_a_tree():
    """It is, where the parameters have this structure, and else a list of patterns."""
    tx = aj.partition({"w": aj.sgd(1.0), "b": aj.sgd(2.0)}, [("w", "b"), ("b", "w")])
    pairs = [(jnp.ones(()), jnp.ones(())), (jnp.ones(()), jnp.ones(()))]
    assert tx.update(pairs, tx.init(pairs))[0] == [(-1.0, -2.0), (-2.0, -1.0)]
    named = {"w": jnp.ones(()), "b": jnp.ones(())}
    assert tx.update(named, tx.init(named))[0] == {"w": -2.0, "b": -1.0}


ADAM, SGD = aj.adam(0.1), aj.sgd(0.1)
BOTH = {"a": ADAM, "b": SGD}
SMALL = {"w": jnp.ones(3), "layer": {"b": jnp.ones(2)}}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: aj.partition([ADAM], "a"), "transforms=.* must be a mapping from labels"),
        (lambda: aj.partition({}, "a"), "at least one transformation"),
        (lambda: aj.partition({"a": 3}, "a"), r"transforms\['a'\] of partition takes .* got 3"),
        (lambda: aj.partition({"a": ADAM, 1: SGD}, "a"), "labels 'a', 1 in transforms cannot be sorted"),
        (lambda: aj.partition(BOTH, None), "param_labels=None labels nothing"),
        (lambda: aj.partition(BOTH, {"w": "x", "layer": {"b": "x"}}),
         r"without a transformation: 'x' for \['layer'\]\['b'\], \['w'\]\. The labels .* are 'a', 'b'"),
        (lambda: aj.partition(BOTH, lambda p: "x").init(SMALL), "without a transformation: 'x' for all"),
        (lambda: aj.partition(BOTH, [("w", "x"), (".*", "a")]), "transformation: 'x' for 'w'"),
        (lambda: aj.partition(BOTH, [("w(", "a"), (".*", "b")]),
         r"\[0\] is the pattern 'w\(' for 'a', .*missing"),
        (lambda: aj.partition(BOTH, [(re.compile(b"w"), "a"), (".*", "b")]),
         "no regular expression for paths"),
        (lambda: aj.partition(BOTH, {"w": jnp.ones(2)}),
         r"param_labels\['w'\] is float32\[2\], which is no"),
        (lambda: aj.partition(BOTH, {"w": "a", "layer": "a"}).init(SMALL),
         r"transforms has 'b', a label that no parameter has, of \['layer'\]\['b'\], \['w'\]"),
        (lambda: aj.partition(BOTH, [("w", "a"), (".*", "a")]), "has 'b', a label that no pattern has"),
        (lambda: aj.partition(BOTH, [("w", "a"), ("leyer", "b"), ("", "b")]).init(SMALL),
         "pattern 'leyer' of param_labels matches no path"),
        (lambda: aj.partition(BOTH, [("w", "a"), ("bias", "b")]).init(SMALL),
         "no pattern of param_labels matches the path 'layer/b'"),
        (lambda: aj.partition(BOTH, {"w": "a", "layr": "b"}).init(SMALL),
         r"no prefix of the parameters: only param_labels has \['layr'\]; only the .* have \['layer'\]"),
        (lambda: aj.partition(BOTH, {"w": "a", "layer": {"b": None}, }).init(SMALL),
         r"has 'b', a label that|None, which is no array, for \['layer'\]\['b'\]"),
        (lambda: jax.jit(aj.partition(BOTH, lambda p: "a" if p["w"][0] > 0 else "b").init)(SMALL),
         "param_labels=<lambda> branches on a value of the parameters"),
        (lambda: aj.partition(BOTH, lambda p: jax.tree.map(jnp.sum, p)).init(SMALL),
         r"param_labels\['layer'\]\['b'\] is float32\[\], which is no label"),
        (lambda: aj.partition(BOTH, "a").update(SMALL, optax.EmptyState()), "expected PartitionState"),
        (lambda: aj.partition(BOTH, "a").update(SMALL, optax.PartitionState({"a": 1})),
         "expected the groups 'a', 'b', got 'a'"),
        (lambda: aj.masked(aj.Rule, True), "masked takes optax gradient transformations"),
        (lambda: aj.masked(ADAM, {"w": 1}), r"mask\['w'\] is .*a mask is a tree of True and False"),
        (lambda: aj.masked(ADAM, {"w": True}).init(SMALL), r"mask is no prefix .*only the parameters have"),
        (lambda: aj.masked(ADAM, True, mask_compatible_extra_args=1), "must be True or False"),
    ],
)  # fmt: skip
def test_bad_input(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()


def test_a_function_of_any_model_may_leave_a_label_without_parameters():
    """As optax's own do, such as that of its muon; nor is there anything to label in an empty tree."""
    tx = aj.partition(BOTH, lambda params: jax.tree.map(lambda _: "a", params))
    assert tx.init(SMALL).inner_states["b"] == optax.MaskedState(SGD.init({}))
    aj.partition(BOTH, "a").init({})


# ---------------------------------------------------------------------------- data


def make(rate, labels=LABELS):
    return aj.partition({"embed": aj.adam(rate), "matrix": aj.sgd(rate), "rest": None}, labels)


def test_rates_are_data_and_labels_are_not():
    step = jax.jit(lambda tx, state, g: tx.update(g, state, PARAMS))
    for rate, labels in ((0.1, PATTERNS), (0.2, [*PATTERNS])):
        tx = make(rate, labels)
        _, state = step(tx, tx.init(PARAMS), gradients(0))
        step(tx, state, gradients(1))
    assert step._cache_size() == 1  # Equal labels, made again as in a notebook.
    tree = jax.tree.map(str.upper, {"embed": "embed", "dense": ["matrix", "rest"]})
    again = jax.tree.map(str.lower, tree)
    structures = {jax.tree.structure(make(0.1, each)) for each in (PREFIX, again, LABELS, label)}
    assert len(structures) == 3
    many = jax.vmap(make)(jnp.array([0.1, 0.2]))
    updates = jax.vmap(lambda tx: step(tx, tx.init(PARAMS), gradients(1))[0])(many)
    assert_close(jax.tree.map(lambda x: x[1], updates), step(tx, tx.init(PARAMS), gradients(1))[0])
    text = "partition({'embed': adam(learning_rate=float32[2], b1"
    assert repr(many).startswith(text)
    assert repr(make(0.1, label)).endswith(
        "'matrix': sgd(learning_rate=0.1), 'rest': None}, label)"
    )
    copied = pickle.loads(pickle.dumps(make(0.1)))
    assert repr(copied) == repr(make(0.1))
    assert jax.tree.structure(copied) == jax.tree.structure(make(0.1))
    assert (
        repr(aj.masked(aj.sgd(0.1), {"w": True})) == "masked(sgd(learning_rate=0.1), {'w': True})"
    )


def test_under_scan_grad_and_export():
    def train(rate):
        tx = make(rate)

        def body(carry, step):
            params, state = carry
            updates, state = tx.update(gradients(step, params), state, params)
            return (jax.tree.map(jnp.add, params, updates), state), None

        wide = jax.tree.map(lambda x: x.astype(jnp.float32), PARAMS)
        (params, _), _ = jax.lax.scan(body, (wide, tx.init(wide)), jnp.arange(2.0))
        return sum(jnp.sum(x**2) for x in jax.tree.leaves(params))

    both = jax.jit(jax.value_and_grad(train))
    (high, _), (low, _), (_, slope) = both(0.11), both(0.09), both(0.1)
    np.testing.assert_allclose(slope, (high - low) / 0.02, rtol=2e-2)
    update = jax.jit(lambda tx, state: tx.update(PARAMS, state, PARAMS))
    tx = make(0.1, PATTERNS)
    exported = jax.export.export(update)(tx, tx.init(PARAMS)).serialize()
    got = jax.export.deserialize(exported).call(tx, tx.init(PARAMS))
    assert_close(got, update(tx, tx.init(PARAMS)), 0)


# ---------------------------------------------------------------------------- what is frozen, or None


def test_what_is_frozen_costs_no_state_and_changes_no_bit():
    params = {"base": jnp.array([0.0, -0.0, 1e-40]), "head": jnp.ones(2)}
    tx = aj.partition({"base": None, "head": aj.adam(0.1)}, {"base": "base", "head": "head"})
    assert aj.state_bytes(tx, params).total == 2 * 8 + 4
    assert aj.state_bytes(tx, params).by_array == {"['base']": 0, "['head']": 16}
    state = tx.init(params)
    assert state.inner_states["base"] == optax.MaskedState(optax.EmptyState())
    bad = {"base": jnp.full(3, jnp.nan), "head": jnp.ones(2)}
    for update in (tx.update, jax.jit(tx.update)):
        updates, _ = update(bad, state, params)
        moved = params["base"][:2] + updates["base"][:2]  # A CPU takes what is subnormal for 0.
        assert np.asarray(moved).tobytes() == np.asarray(params["base"][:2]).tobytes()
        assert jnp.signbit(updates["base"]).all()


@EVERY_KIND
@jax.numpy_dtype_promotion("standard")
def test_gradients_of_none(labels):
    """They give None and leave the state as it is, whichever group they are in."""
    tx = aj.partition(
        {"embed": aj.adam(0.1), "matrix": optax.sgd(0.1), "rest": aj.adam(0.1)}, labels
    )
    state = tx.init(PARAMS)
    some = gradients(1)
    some = {"embed": None, "dense": [{**some["dense"][0], "bias": None}, some["dense"][1]]}
    for params in (PARAMS, None):
        updates, new = jax.jit(tx.update)(some, state, params)
        assert updates["embed"] is None
        assert updates["dense"][0]["bias"] is None
        assert jax.tree.structure(new) == jax.tree.structure(state)
        assert float(jnp.abs(updates["dense"][1]["bias"]).max()) > 0
    # Where only what is trained was in `init`, and all of the parameters come to `update`.
    if callable(labels):
        trained = {
            "embed": None,
            "dense": [{**PARAMS["dense"][0], "bias": None}, PARAMS["dense"][1]],
        }
        own = aj.partition(
            {"embed": aj.sgd(0.1), "matrix": aj.sgd(0.1), "rest": aj.adam(0.1)}, labels
        )
        updates, _ = jax.jit(own.update)(some, own.init(trained), PARAMS)
        assert updates["embed"] is None
    alone = aj.masked(aj.adam(0.1), {"embed": True, "dense": False})
    updates, new = alone.update(some, alone.init(PARAMS), PARAMS)
    assert updates["embed"] is None
    assert jax.tree.structure(new) == jax.tree.structure(alone.init(PARAMS))


# ---------------------------------------------------------------------------- extra arguments


def seen(updates, state, params=None, **extra_args):
    """A transformation whose state is what it was given."""
    del state, params
    return updates, extra_args


def test_extra_arguments_are_masked_where_they_can_be():
    look = optax.GradientTransformationExtraArgs(lambda params: {}, seen)
    both = {"embed": look, "rest": aj.sgd(0.1)}
    labels = {"embed": "embed", "dense": "rest"}
    tree = jax.tree.map(lambda x: 2 * x, PARAMS)
    tags = jax.tree.map(lambda _: "tag", PARAMS)
    extra = {
        "hessian_diagonal": tree,
        "value": jnp.ones(()),
        "value_fn": len,
        "part": {"embed": 3},
        "tags": tags,
    }
    hidden = {"embed": PARAMS["embed"], "dense": optax.MaskedNode()}
    for tx, state_of in (
        (aj.partition(both, labels), lambda state: state.inner_states["embed"].inner_state),
        (aj.masked(look, {"embed": True, "dense": False}), lambda state: state.inner_state),
    ):
        _, state = tx.update(PARAMS, tx.init(PARAMS), PARAMS, **extra)
        got = state_of(state)
        assert jax.tree.structure(got["hessian_diagonal"]) == jax.tree.structure(hidden)
        assert got["tags"] == {"embed": "tag", "dense": optax.MaskedNode()}
        assert {**got, "hessian_diagonal": tree, "tags": tags} == extra
    whole = aj.partition(both, labels, mask_compatible_extra_args=False)
    _, state = whole.update(PARAMS, whole.init(PARAMS), PARAMS, **extra)
    assert state.inner_states["embed"].inner_state["hessian_diagonal"] is tree
    # The gradient of one array is like it, the loss is not.
    alone = aj.masked(look, False)
    _, state = alone.update(
        jnp.ones(3), alone.init(jnp.ones(3)), value=jnp.ones(()), grad=jnp.ones(3)
    )
    assert state.inner_state == {"value": 1.0, "grad": optax.MaskedNode()}


@jax.numpy_dtype_promotion("standard")
def test_a_line_search_in_a_group_gets_what_train_step_hands_on():
    plateau = optax.contrib.reduce_on_plateau(factor=0.5, patience=1, atol=10.0)
    tx = aj.partition(
        {"a": aj.chain(aj.sgd(0.1), plateau), "b": aj.sgd(0.1)}, {"w": "a", "layer": "b"}
    )
    step = aj.train_step(lambda p, _: jnp.sum(p["w"]) + jnp.sum(p["layer"]["b"]), metrics=("loss",))
    state = aj.TrainState.create(SMALL, tx)
    for _ in range(4):
        state, _ = step(state, 0.0)
    assert state.opt_state.inner_states["a"].inner_state[1].scale < 1.0


# ---------------------------------------------------------------------------- what walks


def test_the_walk_sees_what_each_group_sees():
    tx = aj.chain(aj.masked(aj.adam(0.1), {"embed": True, "dense": False}), make(0.1))
    state = tx.init(PARAMS)
    found = list(walk(tx, state, params=PARAMS))
    assert [len(jax.tree.leaves(params)) for _, _, params in found] == [1, 1, 2]
    assert [params["embed"] is PARAMS["embed"] for _, _, params in found] == [True, True, False]
    assert not any(isinstance(data, Foreign) for data, *_ in found)
    sizes = aj.state_bytes(tx, PARAMS)
    assert (sizes.by_slot["mu"], sizes.by_slot["other"]) == (2 * 12 * 4, 2 * 4)
    assert sizes.by_array["['embed']"] == 4 * 12 * 4
    spec = aj.map_params(tx, lambda slot, name: name, state, LABELS)
    assert spec[1].inner_states["embed"].inner_state[0].mu["embed"] == "embed"
    theirs = optax.tree.map_params(tx, lambda x: x + 1, state)
    assert jax.tree.structure(theirs) == jax.tree.structure(state)


@pytest.mark.parametrize(
    "labels", [LABELS, pytest.param(PREFIX, marks=pytest.mark.slow)], ids=["tree", "prefix"]
)
def test_storage_is_converted_group_by_group(labels):
    lean = aj.Blocks(min_size=0, block=4)

    def groups(storage):
        inner = {"embed": aj.adam(0.1, storage=storage), "matrix": aj.adam(0.1), "rest": None}
        return aj.chain(
            aj.partition(inner, labels), aj.masked(aj.trace(0.5, storage=storage), True)
        )

    tx = groups(None)
    _, state = tx.update(gradients(0), tx.init(PARAMS), PARAMS)
    new = aj.convert_storage(groups(None), groups(lean), PARAMS, state)
    assert jax.tree.structure(new) == jax.tree.structure(groups(lean).init(PARAMS))
    back = aj.convert_storage(groups(lean), groups(None), PARAMS, new)
    got, exact = (x[0].inner_states["embed"].inner_state[0].mu["embed"] for x in (back, state))
    np.testing.assert_allclose(got, exact, atol=0.05 * float(jnp.abs(exact).max()))
    other = aj.partition(
        {"a": aj.sgd(0.1, 0.9), "b": aj.sgd(0.1, 0.9)}, {"embed": "a", "dense": "b"}
    )
    turned = aj.partition(
        {"a": aj.sgd(0.1, 0.9), "b": aj.sgd(0.1, 0.9)}, {"embed": "b", "dense": "a"}
    )
    with pytest.raises(ValueError, match="two optimizers that differ in storage and hyper"):
        aj.convert_storage(other, turned, PARAMS, other.init(PARAMS))


def compensated(labels=LABELS):
    inner = {
        "embed": aj.compensate(aj.adam(0.1)),
        "matrix": aj.compensate(aj.sgd(0.1)),
        "rest": None,
    }
    return aj.partition(inner, labels)


@pytest.mark.parametrize(
    "labels", [LABELS, pytest.param(PREFIX, marks=pytest.mark.slow)], ids=["tree", "prefix"]
)
def test_corrections_of_several_groups_are_found(labels):
    low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS)
    around = aj.compensate(aj.partition({**ours(), "matrix": aj.sgd(0.1)}, labels))
    (params, state), (same, one) = run(compensated(labels), 2, low), run(around, 2, low)
    exact, expected = aj.exact_params(params, state), aj.exact_params(same, one)
    assert_close(exact, expected, 1e-3)
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(exact))
    twice = aj.chain(compensated(), compensated()).init(low)
    with pytest.raises(ValueError, match="the state has 4 corrections in it"):
        aj.exact_params(low, twice)


def test_wrappers_go_around_and_inside():
    bad = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), PARAMS["embed"])
    inner = {"embed": aj.skip_nonfinite(aj.adam(0.1)), "matrix": aj.multi_steps(aj.sgd(0.1), 2)}
    inside = aj.partition({**inner, "rest": aj.diagnose(aj.sgd(0.1), ["update_norm"])}, label)
    state, update = inside.init(PARAMS), jax.jit(inside.update)
    updates, state = update({**gradients(0), "embed": bad}, state, PARAMS)
    assert state.inner_states["embed"].inner_state.total == 1
    assert float(jnp.abs(updates["embed"]).max()) == 0.0
    assert float(jnp.abs(updates["dense"][0]["kernel"]).max()) == 0.0
    assert float(jnp.abs(updates["dense"][0]["bias"]).max()) > 0.0
    norms = optax.tree.get(state, "update_norm")
    assert list(norms) == ["['dense'][0]['bias']", "['dense'][1]['bias']"]
    alone = aj.partition({"embed": aj.sgd(0.1), "matrix": aj.sgd(0.1), "rest": None}, label)
    around = aj.skip_nonfinite(aj.multi_steps(aj.compensate(alone), 2))
    state, update = around.init(PARAMS), jax.jit(around.update)
    for each in ({**gradients(0), "embed": bad}, gradients(0), gradients(0)):
        updates, state = update(each, state, PARAMS)
    expected, _ = alone.update(gradients(0), alone.init(PARAMS), PARAMS)
    np.testing.assert_allclose(updates["embed"], expected["embed"], rtol=1e-5)
    assert state.total == 1


def test_masks_of_rules_are_those_of_all_parameters():
    """A mask that is a tree like all of the parameters, and one that is a function, in a group."""
    tree = {"embed": False, "dense": [{"kernel": True, "bias": False}] * 2}
    for labels in (LABELS, PREFIX):
        for mask in (tree, lambda p: jax.tree.map(lambda x: x.ndim > 1, p)):
            rule = aj.add_decayed_weights(0.5, mask)
            tx = aj.partition({"embed": aj.sgd(1.0), "matrix": rule, "rest": rule}, labels)
            updates, _ = tx.update(gradients(0), tx.init(PARAMS), PARAMS)
            kernel, bias = (updates["dense"][0][name] for name in ("kernel", "bias"))
            np.testing.assert_array_equal(bias, gradients(0)["dense"][0]["bias"])
            expected = gradients(0)["dense"][0]["kernel"] + 0.5 * PARAMS["dense"][0]["kernel"]
            np.testing.assert_allclose(kernel, expected, rtol=1e-6)


def test_a_tree_of_hyperparameters_of_a_group_names_what_is_in_it():
    """Other groups have branches of their own, and what is missing in the group itself is refused."""
    moved = aj.schedules.linear_schedule(0.9, 0.5, 10)
    kernels = {"dense": [{"kernel": 0.1}, {"kernel": 0.2}]}
    biases = {"dense": [{"bias": 0.9}, {"bias": moved}]}
    tx = aj.partition(
        {"embed": None, "matrix": aj.sgd(kernels), "rest": aj.adam(0.1, b1=biases)}, LABELS
    )
    zeros = {"embed": 0.0, "dense": [{"kernel": 0.0, "bias": 0.0}] * 2}
    with_others = [
        {
            "embed": 0.0,
            "dense": [zero | own for zero, own in zip(zeros["dense"], each["dense"], strict=True)],
        }
        for each in (kernels, biases)
    ]
    whole = aj.partition(
        {"embed": None, "matrix": aj.sgd(with_others[0]), "rest": aj.adam(0.1, b1=with_others[1])},
        LABELS,
    )
    for found, expected in zip(run(tx)[0]["dense"], run(whole)[0]["dense"], strict=True):
        assert_close(found, expected, 0)
    masked = aj.masked(aj.sgd({"embed": 0.5}), {"embed": True, "dense": False})
    updates, _ = masked.update(gradients(0), masked.init(PARAMS), PARAMS)
    np.testing.assert_array_equal(updates["embed"], -0.5 * gradients(0)["embed"])
    incomplete = {"dense": [{"kernel": 0.1}, {}]}
    tx = aj.partition({"embed": None, "matrix": aj.sgd(incomplete), "rest": None}, LABELS)
    with pytest.raises(ValueError, match=re.escape("only the params have ['dense'][1]['kernel']")):
        tx.init(PARAMS)


@dataclass(frozen=True)
class RandomBits(aj.Rule):
    """The bits in the place of the gradient."""

    counts_steps = True

    def update(self, grad, slots, param, ctx):
        return aj.maths.rounded_to_bfloat16(
            jnp.full_like(grad, 1 + 2.0**-9), aj.maths.random_bits(grad.shape, ctx.key)
        ).astype(grad.dtype), {}


def test_arrays_of_two_groups_have_other_random_bits():
    """Without groups they are what they were; those that are cut in pieces have others, too."""
    params = {name: jnp.ones(64) for name in "abcd"}
    rule = aj.transform(RandomBits())
    plain, _ = rule.update(params, rule.init(params))
    inner = aj.multi_steps(aj.partition({1: rule, 2: rule}, [("c", 1), (".*", 2)]), 1)
    tx = aj.partition(
        {"first": rule, "then": inner}, dict.fromkeys("ab", "first") | dict.fromkeys("cd", "then")
    )
    updates, _ = tx.update(params, tx.init(params), params)
    assert_close(updates, plain, 0)
    assert len({x.tobytes() for x in map(np.asarray, jax.tree.leaves(updates))}) == 4
    many = [jnp.ones(64)] * 520
    tx = aj.partition({"a": rule, "b": rule}, ["a"] * 260 + ["b"] * 260)
    updates, _ = tx.update(many, tx.init(many))
    assert len({x.tobytes() for x in map(np.asarray, updates)}) == 520


def test_shardings_are_kept(make_mesh):
    mesh = make_mesh(2)
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    params = {"w": jnp.ones((4, 8)), "frozen": jnp.ones((4, 2), jnp.bfloat16), "b": jnp.ones(4)}
    labels = {"w": "a", "frozen": "none", "b": "a"}
    tx = aj.chain(
        aj.partition({"a": aj.adam(0.1), "none": None}, labels),
        aj.masked(aj.trace(0.9), labels_are_a),
    )
    there = jax.device_put(params, split)
    state = tx.init(there)
    for update in (tx.update, jax.jit(tx.update)):
        updates, new = update(there, state, there)
        moved = jax.jit(lambda g, s, p: aj.apply_updates(p, tx.update(g, s, p)[0]))(
            there, state, there
        )
        # The updates of what is frozen are constants.
        for x in jax.tree.leaves((moved, {**updates, "frozen": None})):
            assert x.sharding.is_equivalent_to(split, x.ndim)
        for before, after in zip(jax.tree.leaves(state), jax.tree.leaves(new), strict=True):
            assert before.ndim == 0 or after.sharding.is_equivalent_to(split, after.ndim)
    expected, _ = tx.update(params, tx.init(params), params)
    assert_close(updates, jax.device_put(expected, split))
    assert updates["frozen"].dtype == jnp.bfloat16


def labels_are_a(params):
    return {"w": True, "frozen": False, "b": True}


def test_rules_that_see_more_than_the_gradient_see_what_is_of_their_group():
    """The gradient as it came, a Hessian, the loss; of the group as if it were alone."""
    keep = lambda tree: {"w": tree["w"], "layer": optax.MaskedNode()}  # noqa: E731
    params = {"w": jnp.array([1.0, -2.0, 3.0]), "layer": {"b": jnp.ones(2)}}
    g = {"w": jnp.array([1.0, -1.0, 0.5]), "layer": {"b": 100 * jnp.ones(2)}}
    extra = {"hessian_diagonal": jax.tree.map(jnp.square, params), "value": jnp.float32(0.3)}
    first = aj.trace(0.9)
    for rule in (rules.Cautious(), rules.AdaHessian(), rules.StochasticPolyak()):
        own = aj.transform(rule)
        for groups in (
            aj.partition({"a": own, "b": None}, {"w": "a", "layer": "b"}),
            aj.masked(own, {"w": True, "layer": False}),
        ):
            tx, alone = aj.chain(first, groups), aj.chain(first, own)
            state, expected = tx.init(params), alone.init(keep(params))
            for sign in (1, -1):
                turned = jax.tree.map(lambda x, sign=sign: sign * x, g)
                updates, state = tx.update(turned, state, params, **extra)
                only = {**extra, "hessian_diagonal": keep(extra["hessian_diagonal"])}
                there, expected = alone.update(keep(turned), expected, keep(params), **only)
                np.testing.assert_allclose(updates["w"], there["w"], rtol=1e-6)
    with pytest.raises(ValueError, match=r"StochasticPolyak.* needs the extra argument value"):
        groups.update(g, groups.init(params), params)


def test_checkpoints_of_optax_s_partition_load_and_ours_load_there(tmp_path):
    inner = {"embed": aj.adam(0.1), "matrix": aj.sgd(0.1, momentum=0.9), "rest": aj.sgd(0.1)}
    both = aj.partition(inner, PATTERNS), optax.partition(inner, LABELS)
    for place, (saved, wanted) in enumerate((both, both[::-1])):
        _, state = run(saved)
        aj.save_checkpoint(tmp_path / f"{place}", state, step=3)
        again = aj.restore_checkpoint(tmp_path / f"{place}", wanted.init(PARAMS))
        assert_close(again, state, 0)
        assert_close(run(wanted, 1, state=again), run(saved, 1, state=state), 0)
    # A whole run, in which optax's hides the hyperparameters.
    ours, theirs = (aj.TrainState.create(PARAMS, tx) for tx in both)
    aj.save_checkpoint(tmp_path / "run", theirs)
    with pytest.raises(ValueError, match=r"the optimizer was made of|rules of this library"):
        aj.restore_checkpoint(tmp_path / "run", ours)
    moved = aj.restore_checkpoint(tmp_path / "run", theirs).replace(tx=both[0])
    assert jax.tree.structure(moved) == jax.tree.structure(ours)


@dataclass(frozen=True)
class Anchored(aj.Rule):
    """Slots of every kind: a copy of the parameter, one that is constant, and one of another shape."""

    pull: aj.Hyper = 0.1
    slots = {
        "slow": aj.Slot("param"),
        "start": aj.Slot("param", constant=True),
        "rows": aj.Slot(shape=lambda shape: shape[:1] if len(shape) > 1 else None),
    }

    def update(self, grad, slots, param, ctx):
        rows = slots["rows"]
        rows = None if rows is None else ctx.store("rows", rows + grad.sum(1))
        slow = ctx.store("slow", 0.5 * (slots["slow"] + param))
        return grad + self.pull * (param - slots["start"]), {"slow": slow, "rows": rows}


@pytest.mark.parametrize("labels", [LABELS, PREFIX], ids=["tree", "prefix"])
def test_slots_of_every_kind_in_a_group(labels):
    own = aj.chain(aj.transform(Anchored()), aj.scale_by_learning_rate(0.1))
    tx = aj.partition({"embed": aj.sgd(0.1), "matrix": own, "rest": None}, labels)
    (params, state), (alone, expected) = run(tx, 2), run(own, 2)
    np.testing.assert_array_equal(params["dense"][0]["kernel"], alone["dense"][0]["kernel"])
    found = state.inner_states["matrix"].inner_state[0]
    np.testing.assert_array_equal(
        found.rows["dense"][0]["kernel"], expected[0].rows["dense"][0]["kernel"]
    )
    assert aj.state_bytes(tx, PARAMS).by_slot["rows"] == (4 * 4 if labels is PREFIX else 2 * 4 * 4)
    same = aj.convert_storage(tx, tx, PARAMS, state)
    assert_close(same, state, 0)


@dataclass(frozen=True)
class Averaged(aj.Rule):
    """Evaluates with the mean of the parameters so far."""

    decay: aj.Hyper = 0.5
    slots = {"mean": aj.Slot("param")}
    needs_params = True

    def update(self, grad, slots, param, ctx):
        mean = self.decay * slots["mean"] + (1 - self.decay) * (param + grad)
        return grad, {"mean": ctx.store("mean", mean)}

    def evaluate(self, param, slots, ctx):
        return slots["mean"]


@pytest.mark.parametrize("labels", [LABELS, PREFIX, label], ids=["tree", "prefix", "function"])
def test_each_group_is_evaluated_where_it_says(labels):
    """Averages of two groups, of which one is compensated; what is frozen or passes by is as it is."""
    mean = aj.chain(aj.scale_by_learning_rate(0.1), aj.transform(Averaged()))
    tx = aj.partition({"embed": mean, "matrix": aj.compensate(mean), "rest": None}, labels)
    params, state = run(tx, 2)
    found = aj.eval_params(tx, params, state)
    state = state.inner_states
    slots = (
        state["embed"].inner_state[1].mean["embed"],
        state["matrix"].inner_state.inner_state[1].mean,
    )
    np.testing.assert_array_equal(found["embed"], slots[0])
    np.testing.assert_array_equal(found["dense"][0]["kernel"], slots[1]["dense"][0]["kernel"])
    assert found["dense"][1]["bias"] is params["dense"][1]["bias"]
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(found))
    assert jax.tree.structure(found) == jax.tree.structure(params)
    one = aj.chain(
        aj.masked(aj.transform(Averaged()), {"embed": True, "dense": False}), aj.trace(0.5)
    )
    params, state = run(one, 1)
    found = aj.eval_params(one, params, state)
    np.testing.assert_array_equal(found["embed"], state[0].inner_state.mean["embed"])
    assert found["dense"][0]["kernel"] is params["dense"][0]["kernel"]
    with pytest.raises(ValueError, match="both evaluate with other parameters"):
        aj.chain(tx, aj.transform(Averaged()))
