"""Grafts, switches and blends: against computations by hand, and as pytrees like all else."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adaptive_jax as aj
from adaptive_jax.testing import check_rule
from tests import reference

generator = np.random.default_rng(0)
PARAMS = {"w": generator.normal(size=(4, 3)), "b": generator.normal(size=3)}
GRADIENTS = [{k: generator.normal(size=x.shape) for k, x in PARAMS.items()} for _ in range(12)]


def run(tx, gradients=GRADIENTS, params=PARAMS, dtype="float64", **options):
    """The updates of all steps, the parameters moved by them, and the last state."""
    params, updates = jax.tree.map(lambda x: jnp.asarray(x, dtype), params), []
    state, update = tx.init(params), jax.jit(tx.update)
    for gradient in gradients:
        gradient = jax.tree.map(lambda x: jnp.asarray(x, dtype), gradient)
        new, state = update(gradient, state, params, **options)
        params = optax.apply_updates(params, new)
        updates.append(jax.device_get(new))
    return updates, state


def by_hand(formula, key, **settings):
    """A reference's updates of one array of these, for parameters that do not enter."""
    return formula(np.stack([g[key] for g in GRADIENTS]), PARAMS[key], **settings)


def assert_updates(found, expected, rtol=1e-12):
    for key in PARAMS:
        got = np.stack([each[key] for each in found])
        np.testing.assert_allclose(got, expected[key], rtol=rtol, atol=1e-300)


def test_a_graft_has_the_direction_of_one_and_the_length_of_the_other_array_by_array():
    expected = {}
    for key in PARAMS:
        direction = by_hand(reference.adam, key, learning_rate=1.0)
        size = by_hand(reference.sgd, key, learning_rate=0.1, momentum=0.9)
        expected[key] = np.stack(
            [
                d / np.linalg.norm(d) * np.linalg.norm(s)
                for d, s in zip(direction, size, strict=True)
            ]
        )
    with jax.enable_x64(True):
        found, _ = run(aj.graft(aj.adam(1e-3), aj.sgd(0.1, momentum=0.9)))
    assert_updates(found, expected)


def test_a_graft_of_nothing_is_nothing_and_no_length_overflows():
    zero, params = jnp.zeros(3), jnp.zeros(3)
    tx = aj.graft(aj.sgd(jnp.float32(1e30)), aj.sgd(0.5))
    updates, _ = tx.update(jnp.array([3e5, 4e5, 0.0]), tx.init(params), params)
    np.testing.assert_allclose(updates, [-1.5e5, -2e5, 0.0], rtol=1e-6)
    np.testing.assert_array_equal(tx.update(zero, tx.init(params), params)[0], 0.0)
    small = aj.graft(aj.sgd(jnp.float32(1e-30)), aj.sgd(0.5))
    updates, _ = small.update(jnp.array([3.0, 4.0, 0.0]), small.init(params), params)
    np.testing.assert_allclose(updates, [-1.5, -2.0, 0.0], rtol=1e-6)
    still = aj.graft(aj.sgd(1.0), aj.sgd(0.0))
    np.testing.assert_array_equal(still.update(params + 1, still.init(params), params)[0], 0.0)


def test_a_switch_at_a_step_leaves_each_the_state_of_its_own_steps():
    expected = {}
    for key in PARAMS:
        g = np.stack([g[key] for g in GRADIENTS])
        first = reference.adam(g[:5], PARAMS[key], learning_rate=0.1)
        second = reference.sgd(g[5:], PARAMS[key], learning_rate=0.01, momentum=0.9)
        expected[key] = np.concatenate([first, second])
    with jax.enable_x64(True):
        found, state = run(aj.switch(aj.adam(0.1), aj.sgd(0.01, momentum=0.9), 5))
    assert_updates(found, expected)
    assert (state.count, state.first_state[0].count) == (12, 5)


def swats(gradients, params, learning_rate=1e-3, b1=0.9, b2=0.999, eps=1e-8, threshold=1e-9):
    """Keskar & Socher (2017), algorithm 1, of one vector of parameters; and the rate and the step."""
    m, a, v, average, rate, at = 0.0, 0.0, 0.0, 0.0, None, None
    updates = []
    for k, g in enumerate(gradients, start=1):
        if rate is not None:
            v = b1 * v + g
            updates.append(-(1 - b1) * rate * v)
            continue
        m, a = b1 * m + (1 - b1) * g, b2 * a + (1 - b2) * g**2
        # Adam's ε is added to the corrected root, as in its algorithm 1.
        p = -learning_rate * m / (1 - b1**k) / (np.sqrt(a / (1 - b2**k)) + eps)
        updates.append(p)
        if p @ g != 0:
            estimate = p @ p / -(p @ g)
            average = b2 * average + (1 - b2) * estimate
            corrected = average / (1 - b2**k)
            if k > 1 and abs(corrected - estimate) < threshold and corrected > 0:
                rate, at = corrected, k
    return np.stack(updates), rate, at


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("threshold", [1e-2, 3e-4, 0.0])
def test_swats_finds_the_rate_and_the_step_of_the_paper(threshold, dtype):
    """Of all arrays as one vector, for gradients that settle: at a step of its own for each ε, or never."""
    noise = np.random.default_rng(4).normal(size=(60, 15))
    vectors = np.linspace(1, 2, 15) + 0.97 ** np.arange(60)[:, None] * noise
    gradients = [{"w": x[:12].reshape(4, 3), "b": x[12:]} for x in vectors]
    expected, rate, at = swats(vectors, None, learning_rate=0.01, threshold=threshold)
    tx = aj.switch(aj.adam(0.01), aj.sgd(1.0, momentum=0.9, dampening=0.9), aj.Swats(eps=threshold))
    with jax.enable_x64(dtype == "float64"):
        updates, state = run(tx, gradients, dtype=dtype)
    found = np.stack([np.concatenate([x["w"].ravel(), x["b"]]) for x in updates])
    tolerance = {"float64": 1e-11, "float32": 2e-5}[dtype]
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance * 1e-3)
    if threshold == 0.0:
        assert rate is None
        np.testing.assert_array_equal(state.rate, 0.0)
    else:
        np.testing.assert_allclose(state.rate, rate, rtol=tolerance)
        assert state.first_state[0].count == at
        assert 1 < at < 50


def test_swats_never_climbs():
    """A direction against the gradient has a negative rate, with which the paper would go on."""
    climbing = aj.scale_by_learning_rate(0.1, flip_sign=False)
    tx = aj.switch(climbing, aj.sgd(1.0), aj.Swats(eps=1.0))
    state = tx.init(jnp.ones(2))
    for _ in range(5):
        _, state = tx.update(jnp.ones(2), state)
    np.testing.assert_allclose(state.average / (1 - 0.999**5), -0.1, rtol=1e-4)
    assert state.rate == 0


def test_a_blend_is_the_weighted_sum_and_weights_may_be_schedules():
    weights = 0.5 - 0.25 * np.minimum(np.arange(12) / 8, 1)
    expected = {}
    for key in PARAMS:
        adam = by_hand(reference.adam, key, learning_rate=0.1)
        sgd = by_hand(reference.sgd, key, learning_rate=0.2, momentum=0.9)
        extra = (slice(None),) + (None,) * PARAMS[key].ndim
        expected[key] = weights[extra] * adam - 0.75 * sgd
    falling = aj.schedules.linear_schedule(0.5, 0.25, 8)
    members = {"b": (aj.adam(0.1), falling), "a": (aj.sgd(0.2, momentum=0.9), -0.75)}
    with jax.enable_x64(True):
        found, state = run(aj.blend(members))
    assert_updates(found, expected, rtol=1e-7)
    assert sorted(state.inner_states) == ["a", "b"]


def test_weights_times_and_rates_are_data():
    """A new one compiles nothing, and many are a vmap."""
    params = jnp.array([1.0, -2.0])

    def blended(weight):
        return aj.blend({"a": (aj.adam(0.1), weight), "b": (aj.sgd(0.1), 1 - weight)})

    def switched(when):
        return aj.switch(aj.adam(0.1), aj.sgd(0.5), when)

    def by_swats(eps):
        return aj.switch(aj.adam(0.1), aj.sgd(1.0), aj.Swats(eps=eps))

    def grafted(rate):
        return aj.graft(aj.adam(0.1), aj.sgd(rate))

    def two_steps(tx):
        state, updates = tx.init(params), params
        for _ in range(3):
            updates, state = tx.update(params, state, params)
        return updates

    for make, values in (
        (blended, (0.25, 0.75)), (switched, (1.0, 3.0)), (by_swats, (1.0, 0.0)), (grafted, (0.1, 0.2)),
    ):  # fmt: skip
        step = jax.jit(lambda tx: two_steps(tx))
        one = [step(make(value)) for value in values]
        assert step._cache_size() == 1
        assert not np.allclose(*one)
        many = jax.jit(jax.vmap(lambda x, make=make: two_steps(make(x))))(jnp.array(values))
        np.testing.assert_allclose(many, one, rtol=1e-6)


def mixed(storage=None, rate=0.1):
    adam, sgd = aj.adam(rate, storage=storage), aj.sgd(rate, momentum=0.9, storage=storage)
    return {
        "graft": aj.graft(adam, sgd),
        "switch": aj.switch(adam, sgd, 2),
        "swats": aj.switch(adam, sgd, aj.Swats(eps=1.0)),
        "blend": aj.blend({"adam": (adam, 0.5), "sgd": (sgd, 0.5)}),
    }


KINDS = list(mixed())
FEW = [kind if kind == "swats" else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS]
"""SWATS has the most state: the others are in the slow run."""


@pytest.mark.parametrize("kind", FEW)
def test_storage_goes_through_and_is_converted(kind):
    params = {"w": jnp.ones((64, 128)), "b": jnp.ones(3)}
    exact, lean = mixed()[kind], mixed("int8")[kind]
    assert aj.state_bytes(lean, params).total < 0.5 * aj.state_bytes(exact, params).total
    _, state = exact.update(params, exact.init(params), params)
    converted = aj.convert_storage(exact, lean, params, state)
    assert jax.tree.structure(converted) == jax.tree.structure(lean.init(params))
    updates, _ = lean.update(params, converted, params)
    np.testing.assert_allclose(updates["w"], exact.update(params, state, params)[0]["w"], rtol=2e-2)
    rules = {type(row.rule).__name__ for row in aj.describe(exact, params).rows}
    assert rules == {"Adam", "Trace", "LearningRate"}


@pytest.mark.parametrize("kind", FEW)
def test_a_training_run_with_compensated_parameters_goes_on_from_a_checkpoint(kind, tmp_path):
    """In bfloat16, beside a float32 run, saved in the middle and read back bit for bit."""

    def loss(params, batch):
        return jnp.sum((params["w"].astype(jnp.float32) - batch) ** 2)

    step, batch = aj.train_step(loss), jnp.linspace(-1.0, 1.0, 6)
    tx = aj.compensate(mixed(rate=0.01)[kind])

    def create(dtype=jnp.bfloat16):
        return aj.TrainState.create({"w": jnp.ones(6, dtype)}, tx)

    state, exact = create(), create(jnp.float32)
    for _ in range(4):
        (state, metrics), (exact, _) = step(state, batch), step(exact, batch)
    assert metrics["learning_rate"] > 0
    found = aj.exact_params(state.params, state.opt_state)["w"]
    np.testing.assert_allclose(found, exact.params["w"], rtol=3e-3, atol=3e-3)
    aj.save_checkpoint(tmp_path, state)
    again = aj.restore_checkpoint(tmp_path, create())
    (state, _), (again, _) = step(state, batch), step(again, batch)
    jax.tree.map(np.testing.assert_array_equal, state, again)


@pytest.mark.parametrize("kind", FEW)
def test_on_a_mesh_it_is_what_it_is_on_one_device(kind, make_mesh):
    sharding = jax.sharding.NamedSharding(make_mesh(4), jax.sharding.PartitionSpec("x"))
    gradients = np.random.default_rng(0).normal(size=(4, 8, 2)).astype(np.float32)
    found = []
    for place in (jnp.asarray, lambda x: jax.device_put(x, sharding)):
        params, tx = place(np.ones((8, 2), np.float32)), mixed()[kind]
        state, update = tx.init(params), jax.jit(tx.update)
        for gradient in gradients:
            updates, state = update(place(gradient), state, params)
        assert update._cache_size() == 1
        assert updates.sharding.is_equivalent_to(params.sharding, 2)
        found.append(np.asarray(updates))
    np.testing.assert_allclose(*found, rtol=2e-6)


@pytest.mark.parametrize(
    ("make", "rates"),
    [
        (lambda: aj.graft(aj.adam(0.5), aj.sgd(0.1)), [0.1, 0.1, 0.1]),
        (lambda: aj.switch(aj.adam(0.5), aj.sgd(0.1), 1), [0.5, 0.1, 0.1]),
        (lambda: aj.switch(aj.sgd(0.25), aj.sgd(1.0), aj.Swats(eps=0.1)), [0.25, 0.25, 0.25]),
        (lambda: aj.switch(aj.sgd(0.25), aj.sgd(0.5), aj.Swats(eps=0.1)), [0.25, 0.25, 0.125]),
        (lambda: aj.blend({"a": (aj.sgd(0.5), 0.5), "b": (aj.sgd(0.1), 2.0)}), [0.45] * 3),
    ],
    ids=range(5),
)
def test_the_learning_rate_that_is_measured_is_the_one_in_force(make, rates):
    step = aj.train_step(lambda w, batch: jnp.sum(w**2) * batch, metrics=("learning_rate",))
    state = aj.TrainState.create(jnp.ones(2), make())
    found = []
    for _ in rates:
        state, metrics = step(state, 0.1)
        found.append(float(metrics["learning_rate"]))
    np.testing.assert_allclose(found, rates, rtol=1e-4)


def test_rates_of_groups_and_those_that_nobody_knows():
    labels = {"w": "w", "b": "b"}
    groups = aj.partition({"w": aj.sgd(0.1), "b": aj.sgd(0.2)}, labels)
    params = {"w": jnp.ones(2), "b": jnp.ones(2)}
    step = aj.train_step(lambda p, x: jnp.sum(p["w"] + p["b"]) * x, metrics=("learning_rate",))
    tx = aj.blend({"a": (groups, 1.0), "b": (groups, 3.0)})
    _, metrics = step(aj.TrainState.create(params, tx), 0.1)
    np.testing.assert_allclose(metrics["learning_rate/w"], 0.4, rtol=1e-6)
    np.testing.assert_allclose(metrics["learning_rate"], 0.8, rtol=1e-6)
    for other in (aj.sgd(0.1), optax.sgd(0.1)):
        params = {"w": jnp.ones(2), "b": jnp.ones(2)}
        unknown = aj.switch(groups, other, 2)
        with pytest.raises(ValueError, match="learning_rate"):
            step(aj.TrainState.create(params, unknown), 0.1)


def test_members_of_optax_work_too_and_keep_their_states():
    adam, sgd = optax.adam(0.1), optax.sgd(0.1, momentum=0.9)
    params = jnp.ones(3, jnp.bfloat16)
    for tx in (
        aj.graft(adam, sgd), aj.switch(adam, sgd, 1), aj.blend({"a": (adam, 0.5), "b": (sgd, 0.5)}),
    ):  # fmt: skip
        first = tx.init(params)
        with jax.numpy_dtype_promotion("standard"):
            updates, state = tx.update(params, first, params)
            updates, state = tx.update(params, state, params)
        assert updates.dtype == jnp.bfloat16
        kinds = [jax.tree.map(lambda x: (x.shape, x.dtype), each) for each in (first, state)]
        assert kinds[0] == kinds[1]


def test_the_gradient_of_the_chain_reaches_the_rules_inside():
    cautious = aj.chain(aj.scale_by_adam(b1=0.5), aj.cautious("none"), aj.sgd(1.0))
    tx = aj.chain(aj.clip(10.0), aj.blend({"a": (cautious, 1.0)}))
    state = tx.init(jnp.zeros(2))
    for gradient in ([1.0, 1.0], [0.1, -0.1]):
        updates, state = tx.update(jnp.array(gradient), state)
    assert updates[0] < 0
    assert updates[1] == 0


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: aj.graft(aj.sgd(0.1), 3), TypeError, "graft takes optax gradient transformations"),
        (
            lambda: aj.graft(aj.compensate(aj.sgd(0.1)), aj.sgd(0.1)),
            ValueError,
            r"put it around, aj.compensate\(aj.graft",
        ),
        (
            lambda: aj.switch(aj.chain(aj.compensate(aj.sgd(0.1))), aj.sgd(0.1), 1),
            ValueError,
            r"aj.compensate\(aj.switch",
        ),
        (lambda: aj.switch(aj.sgd(0.1), aj.sgd(0.1), -1), ValueError, "when=-1 is out of range"),
        (lambda: aj.switch(aj.sgd(0.1), aj.sgd(0.1), None), TypeError, "when=None in switch must"),
        (lambda: aj.switch(aj.sgd(0.1), aj.sgd(0.1), lambda n: n), TypeError, "when=.* must be"),
        (lambda: aj.switch(aj.sgd(0.1), aj.sgd(0.1), aj.Swats), TypeError, r"give one of it, Swats\("),
        (lambda: aj.Swats(decay=1.0), ValueError, "decay=1.0 is out of range in Swats"),
        (lambda: aj.blend([aj.sgd(0.1)]), TypeError, "blend takes a mapping from names to pairs"),
        (lambda: aj.blend({}), TypeError, "blend takes a mapping"),
        (lambda: aj.blend({"a": aj.sgd(0.1)}), TypeError, r"transforms\['a'\] of blend is sgd"),
        (lambda: aj.blend({"a": (0.5, aj.sgd(0.1))}), TypeError, r"transforms\['a'\] of blend takes"),
        (lambda: aj.blend({"a": (aj.sgd(0.1), None)}), TypeError, "the weight of a in blend is None"),
        (lambda: aj.blend({"a": (aj.sgd(0.1), "x")}), TypeError, "the weight of a='x' is a str"),
        (
            lambda: aj.blend({"a": (aj.sgd(0.1), 1), 2: (aj.sgd(0.1), 1)}),
            TypeError,
            "the names 'a', 2 in blend cannot be sorted",
        ),
    ],
    ids=range(15),
)  # fmt: skip
def test_what_does_not_fit_is_said(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_a_rule_that_evaluates_elsewhere_is_refused():
    from core.whole_tree_rules import Averaged

    averaged = aj.transform(aj.LearningRate(0.1), Averaged())
    with pytest.raises(ValueError, match=r"Averaged\(decay=0.5\) in blend evaluates"):
        aj.blend({"a": (averaged, 1.0)})


@pytest.mark.slow
def test_promises_of_swats():
    """With an ε at which it switches at once."""
    check_rule(aj.switch(aj.adam(0.1), aj.sgd(1.0, momentum=0.9), aj.Swats(eps=1e3)))
