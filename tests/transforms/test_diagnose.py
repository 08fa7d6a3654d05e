"""What `diagnose` measures, against NumPy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adaptive_jax as aj
from adaptive_jax.transforms.measures import MEASURES

rng = np.random.default_rng(0)
PARAMS = {
    "dense": {"kernel": jnp.asarray(rng.normal(size=(4, 3)), jnp.float32), "bias": jnp.zeros(3)},
    "low": jnp.asarray(rng.normal(size=8), jnp.bfloat16),
}


def gradients(step):
    generator = np.random.default_rng(step)
    return jax.tree.map(lambda x: jnp.asarray(generator.normal(size=x.shape), x.dtype), PARAMS)


def layer(path):
    return path.split("'")[1]


def flat(tree):
    return np.concatenate([np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(tree)])


def test_measures_of_groups():
    tx = aj.diagnose(aj.adam(0.01), MEASURES, group_by=layer, quantiles=(0.25, 0.5))
    state = tx.init(PARAMS)
    inner_state = aj.adam(0.01).init(PARAMS)
    for step in range(3):
        # Outside of jit both run one and the same program for the update.
        updates, state = tx.update(gradients(step), state, PARAMS)
        expected, inner_state = aj.adam(0.01).update(gradients(step), inner_state, PARAMS)
        jax.tree.map(np.testing.assert_array_equal, updates, expected)
    for group in ("dense", "low"):
        g, u, p = (flat(tree[group]) for tree in (gradients(2), updates, PARAMS))
        norm = np.linalg.norm
        moved = aj.apply_updates(PARAMS, updates)[group]
        expected = {
            "gradient_norm": norm(g),
            "update_norm": norm(u),
            "parameter_norm": norm(p),
            "update_ratio": norm(u) / norm(p),
            "cosine": -u @ g / (norm(u) * norm(g)),
            "moving": np.mean(flat(moved) != p),
            "sparsity": np.mean(flat(moved) == 0),
            "effective_learning_rate": np.quantile(np.abs(u) / np.abs(g), (0.25, 0.5)),
        }
        for name, value in expected.items():
            np.testing.assert_allclose(state.measured[name][group], value, rtol=1e-5, err_msg=name)
    assert 0 < state.measured["moving"]["low"] < 1


def test_signal_and_noise():
    """Gradients of mean 1 and variance 4, and of mean 0: ratios of a quarter and none."""
    params = {"signal": jnp.zeros(20_000), "noise": jnp.zeros(20_000), "constant": jnp.zeros(5)}
    tx = aj.diagnose(aj.sgd(0.1), ("signal_to_noise",))

    def step(state, key):
        noise = jax.random.normal(key, (2, 20_000))
        gradient = {"signal": 1 + 2 * noise[0], "noise": noise[1], "constant": jnp.zeros(5)}
        return tx.update(gradient, state, params)[1], None

    for steps in (2, 5, 60):
        state, _ = jax.lax.scan(step, tx.init(params), jax.random.split(jax.random.key(0), steps))
        measured = state.measured["signal_to_noise"]
        assert float(measured["['signal']"]) == pytest.approx(0.25, abs=0.02)
        assert float(measured["['noise']"]) == pytest.approx(0.0, abs=0.02)
        assert float(measured["['constant']"]) == 0


def test_it_sits_anywhere_and_keeps_its_structure():
    tx = aj.chain(
        aj.clip_by_global_norm(1.0),
        aj.diagnose(aj.scale_by_adam(), ("cosine",), every=2),
        aj.scale_by_learning_rate(0.1),
    )
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *(gradients(i) for i in range(5)))

    def body(state, gradient):
        _, state = tx.update(gradient, state, PARAMS)
        return state, optax.tree.get(state, "measured")["cosine"]["['low']"]

    _, cosines = jax.lax.scan(body, tx.init(PARAMS), stacked)
    assert cosines[0] == 0
    assert cosines[1] == cosines[2] != cosines[3] == cosines[4]


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tx: optax.masked(tx, jax.tree.map(lambda _: True, PARAMS)),
        lambda tx: optax.partition({"a": tx}, jax.tree.map(lambda _: "a", PARAMS)),
        lambda tx: optax.apply_if_finite(tx, 3),
        lambda tx: aj.multi_steps(tx, 1),
    ],
    ids=["masked", "partition", "apply_if_finite", "multi_steps"],
)
def test_inside_wrappers(wrap):
    tx, inner = wrap(aj.diagnose(aj.adam(0.1))), aj.adam(0.1)
    updates, state = tx.update(gradients(0), tx.init(PARAMS), PARAMS)
    expected, _ = inner.update(gradients(0), inner.init(PARAMS), PARAMS)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x.astype(float), y.astype(float), rtol=1e-6),
        updates,
        expected,
    )
    assert optax.tree.get(state, "cosine")


def test_off_costs_nothing():
    on, off = aj.adam(0.1), aj.diagnose(aj.adam(0.1), ())
    texts = {
        jax.jit(lambda *args, tx=tx: tx.update(*args)).lower(PARAMS, tx.init(PARAMS)).as_text()
        for tx in (on, off)
    }
    assert len(texts) == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: aj.diagnose(aj.sgd(0.1), ("norm",)), "measures='norm' is not known"),
        (lambda: aj.diagnose(aj.sgd(0.1), "cosine"), "is a string"),
        (lambda: aj.diagnose(aj.sgd(0.1), every=0), "every=0"),
        (lambda: aj.diagnose(aj.sgd(0.1), quantiles=(2.0,)), "quantiles"),
        (lambda: aj.diagnose(0.1), "diagnose takes optax gradient transformations"),
        (
            lambda: aj.diagnose(aj.sgd(0.1)).update(PARAMS, aj.diagnose(aj.sgd(0.1)).init(PARAMS)),
            "'parameter_norm', which needs the parameters",
        ),
    ],
    ids=range(6),
)
def test_mistakes_are_named(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()


def test_every_measure_on_a_mesh(make_mesh):
    split = jax.sharding.NamedSharding(make_mesh(4), jax.sharding.PartitionSpec(None, "x"))
    here = {"w": jax.random.normal(jax.random.key(0), (8, 16)), "b": jnp.ones(3)}
    there = {"w": jax.device_put(here["w"], split), "b": here["b"]}
    tx = aj.diagnose(
        aj.adam(0.1), list(MEASURES)[:-1]
    )  # The noise of one step is a rounding error.
    states = [jax.jit(tx.update)(x, tx.init(x), x)[1].measured for x in (here, there)]
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), *states)


def test_the_norm_of_zeros_whatever_the_compiler_knows_of_them():
    """Constants, and quotients: XLA puts these together with those in a norm, whose product may be 0."""
    for of in (lambda x: jnp.zeros(5), lambda x: x / jnp.float32(1e-15), lambda x: 0 * x):
        assert jax.jit(lambda x, of=of: aj.maths.norm(of(x)))(jnp.zeros(5)) == 0
    large = np.full(5, 1e30, np.float32)
    np.testing.assert_allclose(
        jax.jit(lambda: aj.maths.norm(jnp.asarray(large)))(), 5**0.5 * 1e30, rtol=1e-6
    )
