"""Slots that start as the parameter, never change, or have a shape of their own; what is refreshed."""

from __future__ import annotations

import re
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from core.test_whole_tree import PARAMS, assert_close, gradient, in_float64, norm, run
from core.whole_tree_rules import (
    DistanceOverGradients,
    OneSidedShampoo,
    Prodigy,
    RowsAndColumns,
    ScheduleFree,
)
from jax.sharding import NamedSharding, PartitionSpec

import adaptive_jax as aj

LARGE = {"w": jnp.linspace(-1, 1, 160 * 130).reshape(160, 130), "b": jnp.ones(3)}
W = jnp.array([[1.0, -2.0, 0.5], [0.3, 1.0, -1.0]])
A = jnp.array([[1.0, 2, 3], [4, 5, 6]])


def losses(tx, steps):
    """Of ½ΣA∘W² after each step, where the parameters are trained."""
    update = jax.jit(tx.update)
    state, w, found = tx.init(W), W, []
    for _ in range(steps):
        updates, state = update(A * w, state, w)
        w = w + updates
        found.append(0.5 * np.sum(np.float64(A) * np.float64(w) ** 2))
    return found


def test_prodigy_takes_the_steps_of_its_authors():
    golden = [10.55494, 10.554861, 10.554716, 10.554294, 10.553161]
    golden += [10.550265, 10.542827, 10.523711, 10.474641, 10.349058]
    np.testing.assert_allclose(losses(aj.transform(Prodigy()), 10), golden, rtol=2e-5)


def test_schedule_free_takes_the_steps_of_its_authors():
    golden = [8.789999, 7.958, 7.192432, 6.491226, 5.850688]
    golden += [5.266585, 4.734619, 4.250696, 3.811031, 3.41219]
    tx = aj.transform(aj.rules.Adam(b1=0.0), ScheduleFree(0.1))
    np.testing.assert_allclose(losses(tx, 10), golden, rtol=2e-5)


@pytest.mark.parametrize("layerwise", [False, True])
def test_distance_over_gradients(layerwise):
    start = {k: np.float64(x) for k, x in PARAMS.items()}
    groups = [[k] for k in PARAMS] if layerwise else [list(PARAMS)]
    distance, total = [0.0] * len(groups), [0.0] * len(groups)

    def direction(g, params):
        updates = {}
        for i, names in enumerate(groups):
            least = 1e-1 * (1 + norm({k: start[k] for k in names}))
            moved = norm({k: params[k] - start[k] for k in names})
            distance[i] = max(distance[i], least, moved)
            total[i] += norm({k: g[k] for k in names}) ** 2
            rate = distance[i] / np.sqrt(total[i] + 1e-8)
            updates |= {k: -rate * g[k] for k in names}
        return updates

    found, state = run(aj.transform(DistanceOverGradients(0.1, layerwise=layerwise)), 5)
    assert_close(found, in_float64(5, direction))
    for name, param in PARAMS.items():
        np.testing.assert_array_equal(state.start[name], param)


@pytest.mark.parametrize(
    ("storage", "dtype"),
    [
        (None, jnp.bfloat16),
        ("int8", jnp.float16),
        pytest.param("bfloat16", jnp.bfloat16, marks=pytest.mark.slow),
        pytest.param("int8", jnp.float32, marks=pytest.mark.slow),
    ],
)
def test_constant_slots_keep_every_bit_whatever_the_storage(storage, dtype):
    params = jax.tree.map(lambda x: x.astype(dtype), LARGE)
    tx = aj.transform(Prodigy(), storage=storage)
    state = tx.init(params)
    _, state = jax.jit(tx.update)(jax.tree.map(jnp.cos, params), state, params)
    for name, param in params.items():
        assert state.start[name].dtype == dtype
        assert state.start[name].tobytes() == param.tobytes()
    lean = aj.transform(Prodigy(), storage="bfloat16")
    converted = aj.convert_storage(tx, lean, params, state)
    assert converted.start["w"].tobytes() == params["w"].tobytes()
    size = aj.state_bytes(tx, params)
    assert size.by_slot["start"] == sum(x.nbytes for x in params.values())
    assert size.total == sum(x.nbytes for x in jax.tree.leaves(state))


@pytest.mark.parametrize(
    "storage",
    [
        None,
        "int8",
        *(
            pytest.param(each, marks=pytest.mark.slow)
            for each in ("bfloat16", "int16", aj.Float(jnp.float16))
        ),
    ],
)
def test_a_copy_of_the_parameter_is_kept_in_its_storage(storage):
    tx = aj.transform(ScheduleFree(0.1), storage=storage)
    z = tx.init(LARGE).z
    kept = tx.data.storages[0][0]
    np.testing.assert_allclose(kept.decode(z["w"]), LARGE["w"], atol=0.05)
    shapes = jax.eval_shape(tx.init, LARGE)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), tx.init(LARGE)) == jax.tree.map(
        lambda x: (x.shape, x.dtype), shapes
    )


@pytest.mark.parametrize("init", [lambda tx: tx.init, lambda tx: jax.jit(tx.init)])
def test_a_copy_is_in_a_buffer_of_its_own(init):
    tx = aj.transform(ScheduleFree(0.1), DistanceOverGradients())
    params = jax.tree.map(jnp.array, PARAMS)
    state = init(tx)(params)
    pointers = [x.unsafe_buffer_pointer() for x in jax.tree.leaves((params, state))]
    assert len(set(pointers)) == len(pointers)
    step = jax.jit(lambda p, s: tx.update(p, s, p), donate_argnums=(0, 1))
    step(params, state)


def test_slots_of_another_shape():
    def direction(g, params, kept={}):  # noqa: B006
        rows = kept.get("r", 0.0) * 0.9 + 0.1 * np.mean(g["w"] ** 2, 1)
        columns = kept.get("c", 0.0) * 0.9 + 0.1 * np.mean(g["w"] ** 2, 0)
        b = kept.get("b", 0.0) * 0.9 + 0.1 * g["b"] ** 2
        kept.update(r=rows, c=columns, b=b)
        nu = {"w": rows[:, None] * columns / rows.mean(), "b": b}
        return {k: -0.1 * g[k] / (np.sqrt(nu[k]) + 1e-8) for k in g}

    tx = aj.transform(RowsAndColumns(), aj.LearningRate(0.1))
    found, state = run(tx, 4)
    assert_close(found, in_float64(4, direction))
    assert jax.tree.map(jnp.shape, state[0].rows) == {"w": (2,), "b": None}
    assert jax.tree.map(jnp.shape, state[0].nu) == {"w": None, "b": (2,)}


@pytest.mark.parametrize(
    "storage",
    ["bfloat16", {"rows": aj.Blocks(min_size=0), "nu": "factored"}, aj.BFloat16(min_size=0)],
)
def test_slots_of_another_shape_in_a_storage(storage, tmp_path):
    tx = aj.transform(RowsAndColumns(), storage=storage)
    params = {**LARGE, "none": None, "empty": jnp.ones((0, 3))}
    state = tx.init(params)
    updates, state = tx.update(params, state, params)
    assert updates["empty"].shape == (0, 3)
    plain = aj.transform(RowsAndColumns())
    expected, _ = plain.update(params, plain.init(params), params)
    np.testing.assert_allclose(updates["w"], expected["w"], rtol=0.05)
    converted = aj.convert_storage(tx, plain, params, state)
    assert converted.rows["w"].dtype == jnp.float32
    aj.state_bytes(tx, params)
    plain.update(params, converted, params)
    batched = jax.vmap(tx.init)(jax.tree.map(lambda x: x[None], LARGE))
    assert jax.tree.leaves(batched.rows)[0].shape[:2] == (1, 160)


def test_masks_of_storages_see_the_parameters():
    storage = aj.Masked(aj.BFloat16(min_size=0), lambda p: jax.tree.map(lambda x: x.ndim > 1, p))
    state = aj.transform(RowsAndColumns(), storage=storage).init(LARGE)
    assert (state.rows["w"].dtype, state.nu["b"].dtype) == (jnp.bfloat16, jnp.float32)


def test_a_state_with_such_slots_goes_through_a_checkpoint(tmp_path):
    tx = aj.transform(RowsAndColumns(), DistanceOverGradients(layerwise=True))
    state = aj.TrainState.create(params=PARAMS, tx=tx)
    aj.save_checkpoint(tmp_path, state)
    restored = aj.restore_checkpoint(tmp_path, state)
    for ours, theirs in zip(jax.tree.leaves(restored), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_state_with_such_slots_is_mapped():
    tx = aj.transform(RowsAndColumns(), DistanceOverGradients(layerwise=True))
    state = tx.init(PARAMS)
    doubled = optax.tree.map_params(tx, lambda x: 2 * x, state)
    np.testing.assert_array_equal(doubled[1].start["b"], 2 * PARAMS["b"])
    specs = aj.map_params(
        tx,
        lambda x, spec: spec,
        state,
        {"w": "w", "b": "b"},
        transform_non_params=lambda x: "rest",
    )
    assert specs[1].start == {"w": "w", "b": "b"}
    assert specs[0].rows == {"w": "rest", "b": None}
    assert specs[1].distance == {"w": "rest", "b": "rest"}


def test_the_state_is_divided_as_the_parameters_are(make_mesh):
    mesh = make_mesh(4)
    split = NamedSharding(mesh, PartitionSpec("x"))
    params = {"w": jax.device_put(jnp.arange(1.0, 33).reshape(8, 4), split)}
    tx = aj.transform(
        RowsAndColumns(), ScheduleFree(0.1), storage={"z": aj.Blocks(min_size=0, block=2)}
    )
    state = tx.init(params)
    everywhere = NamedSharding(mesh, PartitionSpec())
    for x, sharding in (
        (state[0].rows["w"], split),
        (state[0].columns["w"], everywhere),
        (state[1].z["w"].codes, split),
        (state[1].z["w"].scales, split),
    ):
        assert x.sharding.is_equivalent_to(sharding, x.ndim), (x.sharding, sharding)
    here = jax.tree.map(lambda x: jnp.asarray(np.asarray(x)), params)
    updates, state = jax.jit(tx.update)(params, state, params)
    expected, _ = tx.update(here, tx.init(here), here)
    assert updates["w"].sharding.is_equivalent_to(split, 2)
    np.testing.assert_allclose(updates["w"], expected["w"], rtol=1e-5)
    np.testing.assert_array_equal(tx.init(here)[1].z["w"].codes, tx.init(params)[1].z["w"].codes)


def test_a_second_call_compiles_nothing(compiled):
    tx = aj.transform(RowsAndColumns(), OneSidedShampoo(), ScheduleFree(0.1))
    params = jax.tree.map(jnp.array, PARAMS)
    update = jax.jit(tx.update)
    _, state = update(params, tx.init(params), params)
    del compiled[:]
    update(params, state, params)
    assert compiled == []


def shampoo(steps, every):
    factor, inverse, w, found = np.zeros((2, 2)), np.eye(2), np.float64(W), []
    for step in range(steps):
        g = np.float64(A) * w
        factor = factor + g @ g.T
        if step % every == 0:
            values, vectors = np.linalg.eigh(factor + 1e-4 * np.eye(2))
            inverse = (vectors * values**-0.25) @ vectors.T
        w = w - 0.1 * inverse @ g
        found.append(w)
    return found


@pytest.mark.parametrize("every", [1, 3])
def test_what_is_refreshed_every_so_many_steps(every):
    tx = aj.transform(OneSidedShampoo(every), aj.LearningRate(0.1))
    params, state = {"w": W}, tx.init({"w": W})
    update = jax.jit(tx.update)
    for expected in shampoo(7, every):
        updates, state = update({"w": A * params["w"]}, state, params)
        params = optax.apply_updates(params, updates)
        np.testing.assert_allclose(params["w"], expected, rtol=1e-4, atol=1e-5)


def conditionals(function, *args):
    return len(re.findall(r" conditional\(", jax.jit(function).lower(*args).compile().as_text()))


def test_a_sweep_refreshes_when_one_run_does():
    rates = jnp.array([0.1, 0.2, 0.3])

    def make(rate):
        return aj.transform(OneSidedShampoo(3), aj.LearningRate(rate))

    def step(rate, state, w):
        updates, state = make(rate).update(A * w, state, w)
        return w + updates, state

    one = make(0.1).init(W)
    assert conditionals(step, rates[0], one, W) == 1
    state, ws = jax.vmap(lambda rate: make(rate).init(W))(rates), jnp.stack([W] * 3)
    assert conditionals(jax.vmap(step), rates, state, ws) == 1
    twice = jax.vmap(jax.vmap(step, (0, None, None)), (None, 0, 0))
    assert conditionals(twice, rates, state, ws) == 1
    alone = [(one, W)] * 3
    for _ in range(4):
        ws, state = jax.vmap(step)(rates, state, ws)
        alone = [step(rate, *each)[::-1] for rate, each in zip(rates, alone, strict=True)]
    np.testing.assert_allclose(ws, [w for _, w in alone], rtol=2e-4, atol=1e-5)


@dataclass(frozen=True)
class Refreshing(aj.Rule):
    """A tree that is refreshed, of a number under a derivative."""

    rate: aj.Hyper = 2.0
    k: int = 2
    bad: bool = False
    spread: bool = False
    first: bool = False
    slots = {"a": aj.Slot(), "b": aj.Slot(1.0)}

    def update(self, grad, slots, param, ctx):
        def function(old, grad):
            a, b = old
            return a + self.rate * grad, b * (jnp.nan if self.bad else 2.0)

        first = (lambda old, grad: (10 * grad, old[1])) if self.first else None
        a, b = ctx.refresh(
            self.k, function, (slots["a"], slots["b"]), grad, first=first, spread=self.spread
        )
        return grad * self.rate + a, {"a": a, "b": b}


def refreshed(steps, **options):
    tx, ones = aj.transform(Refreshing(**options)), [jnp.ones(2)] * 3
    state, found = tx.init(ones), []
    update = jax.jit(tx.update)
    for _ in range(steps):
        _, state = update(ones, state)
        found.append([[float(x[0]) for x in state.a], float(state.b[0][0])])
    return found


@dataclass(frozen=True)
class HandingOn(aj.Rule):
    """A count of refreshes, which the gradient waits for."""

    slots = {"a": aj.Slot()}
    counts_steps = True

    def update(self, grad, slots, param, ctx):
        a, grad = ctx.refresh(2, lambda old: (old[0] + 1, old[1]), (slots["a"], grad))
        return grad, {"a": a}


def test_what_a_refresh_hands_on_does_not_stop_it():
    tx, found = aj.transform(HandingOn()), []
    state = tx.init(jnp.ones(2))
    for value in (1.0, jnp.nan, jnp.nan, 2.0):
        updates, state = tx.update(jnp.full(2, value), state)
        np.testing.assert_array_equal(updates, [value] * 2)
        found.append(state.a[0])
    assert found == [1, 1, 2, 2]


def test_a_tree_is_refreshed_whole_or_not_at_all():
    assert [a[0] for a, _ in refreshed(4)] == [2, 2, 4, 4]
    assert [b for _, b in refreshed(4)] == [2, 2, 4, 4]
    assert refreshed(3, bad=True) == [[[0] * 3, 1]] * 3
    assert [a[0] for a, _ in refreshed(4, first=True)] == [10, 10, 12, 12]
    assert [a[0] for a, _ in refreshed(3, first=True, k=1)] == [10, 12, 14]
    assert [a for a, _ in refreshed(4, spread=True)] == [[2, 2, 2], [2, 4, 2], [4, 4, 4], [4, 6, 4]]


def test_nothing_is_differentiated_through_what_is_refreshed():
    def loss(rate, first):
        tx = aj.transform(Refreshing(rate, first=first))
        updates, _ = tx.update(jnp.ones(2), tx.init(jnp.ones(2)))
        return updates.sum()

    assert jax.grad(loss)(2.0, False) == 2
    assert jax.grad(loss)(2.0, True) == 2
    rates = jnp.array([1.0, 2.0])
    np.testing.assert_array_equal(jax.vmap(jax.grad(loss), (0, None))(rates, False), 2)


def test_mistakes_are_named():
    @dataclass(frozen=True)
    class Wrong(aj.Rule):
        kind: str
        slots = {
            "start": aj.Slot("param", constant=True),
            "none": aj.Slot(shape=lambda shape: None),
            "two": aj.Slot(shape=lambda shape: (2,)),
        }
        needs_params = True

        def update(self, grad, slots, param, ctx):
            new = {"none": None, "two": slots["two"]}
            if self.kind == "constant":
                new = slots
            elif self.kind == "stored":
                ctx.store("start", grad)
            elif self.kind == "there":
                new = {**new, "none": grad}
            elif self.kind == "absent":
                new = {**new, "two": ctx.store("two", None)}
            elif self.kind == "shape":
                new = {**new, "two": grad}
            elif self.kind == "structure":
                ctx.refresh(2, lambda old: old[0], slots["two"])
            elif self.kind == "k":
                ctx.refresh(2.5, lambda old: old, slots["two"])
            return grad, new

    for kind, message in {
        "constant": r"with the slots \['none', 'two'\], got .* \['start'\] are constant",
        "stored": r"the slot 'start' is constant: it keeps its first value",
        "there": r"for none float32\[3\], where the array has no such slot: return None",
        "absent": r"ctx.store got None for the slot 'two', which this array has",
        "shape": r"for two float32\[3\], where the slot has the shape \(2,\)",
        "structure": r"ctx.refresh, in Wrong.update, returned float32\[\], where the old",
        "k": r"k=2.5 in ctx.refresh, in Wrong.update must be a whole number",
    }.items():
        tx = aj.transform(Wrong(kind))
        with pytest.raises(ValueError, match=message):
            tx.update(jnp.ones(3), tx.init(jnp.ones(3)), jnp.ones(3))

    tx = aj.transform(RowsAndColumns())
    with pytest.raises(ValueError, match=r"the state's rows has float32\[3\].*must be \(2,\)"):
        tx.update(W, tx.init(W.T), W)

    @dataclass(frozen=True)
    class Eye(aj.Rule):
        slots = {"q": aj.Slot(lambda param: jnp.eye(2), shape=lambda shape: (3, 3))}

    with pytest.raises(
        ValueError, match=r"first value of Eye's slot q is float32\[2, 2\], and the slot"
    ):
        aj.transform(Eye()).init(jnp.ones(2))
    with pytest.raises(ValueError, match="is a copy of the parameter, and so it has its shape"):
        aj.Slot("param", shape=lambda shape: ())
    with pytest.raises(TypeError, match=r"returned \[3\] for the shape \(3,\)"):
        aj.Slot(shape=list).shape_for((3,))


@pytest.mark.slow
def test_derivatives_through_such_a_state():
    def loss(rate):
        tx = aj.transform(ScheduleFree(rate))
        params, state = PARAMS, tx.init(PARAMS)
        for _ in range(2):
            updates, state = tx.update(jax.tree.map(jnp.float32, gradient(PARAMS)), state, params)
            params = optax.apply_updates(params, updates)
        return sum(jnp.sum(x**2) for x in params.values())

    derivative = (loss(0.1 + 1e-3) - loss(0.1 - 1e-3)) / 2e-3
    np.testing.assert_allclose(jax.grad(loss)(0.1), derivative, rtol=1e-2)
