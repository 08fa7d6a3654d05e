"""The largest eigenvalue of a Hessian, against dense ones in float64, and where runs really diverge."""

from __future__ import annotations

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import adaptive_jax as aj


def hessian(eigenvalues, seed=0):
    """A matrix with these eigenvalues."""
    size = len(eigenvalues)
    basis = np.linalg.qr(np.random.default_rng(seed).normal(size=(size, size)))[0]
    return (basis * eigenvalues) @ basis.T


def quadratic(params, matrix):
    flat = jnp.concatenate([params["a"].ravel(), params["b"]])
    return flat @ (matrix @ flat) / 2


def params_of(seed=0, dtype=jnp.float32):
    numbers = np.random.default_rng(seed).normal(size=24)
    return {
        "a": jnp.asarray(numbers[:20].reshape(4, 5), dtype),
        "b": jnp.asarray(numbers[20:], dtype),
    }


@pytest.mark.parametrize(
    "eigenvalues",
    [np.geomspace(1e-3, 30, 24), np.linspace(-50, 2, 24), np.ones(24), -np.linspace(1, 9, 24)],
    ids=["convex", "the largest is not the farthest", "all alike", "concave"],
)
def test_the_largest_eigenvalue_is_known(eigenvalues):
    matrix = jnp.asarray(hessian(eigenvalues), jnp.float32)
    found = aj.sharpness(quadratic, params_of(), matrix)
    largest = eigenvalues.max()
    assert abs(found.value - largest) <= found.error + 1e-5 * abs(eigenvalues).max()
    assert found.error <= 1e-3 * abs(largest)
    assert found.largest_learning_rate == (2 / found.value if largest > 0 else np.inf)
    assert found.learning_rate is None
    exact = aj.sharpness(quadratic, params_of(), matrix, tolerance=1e-7, max_steps=24)
    np.testing.assert_allclose(exact.value, largest, rtol=1e-5)


@pytest.mark.slow
def test_it_is_that_of_a_network():
    rng = np.random.default_rng(0)
    params = {"w": jnp.float32(rng.normal(size=(3, 5))), "v": jnp.float32(rng.normal(size=5))}
    batch = jnp.float32(rng.normal(size=(20, 3))), jnp.float32(rng.normal(size=20))

    def loss(params, batch):
        x, y = batch
        return jnp.mean((jnp.tanh(x @ params["w"]) @ params["v"] - y) ** 2)

    flat, unflatten = jax.flatten_util.ravel_pytree(params)
    dense = jax.hessian(lambda flat: loss(unflatten(flat), batch))(flat)
    largest = np.linalg.eigvalsh(np.asarray(dense, np.float64))[-1]
    found = aj.sharpness(loss, params, batch)
    np.testing.assert_allclose(found.value, largest, rtol=1e-3)
    assert found.steps < 20
    halved = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    np.testing.assert_allclose(aj.sharpness(loss, halved, batch).value, largest, rtol=0.05)


def factors(tx_at, rate, matrix, steps=400):
    """By how much the parameters grow in a step, in the long run."""
    tx, params = tx_at(rate), params_of()

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(jax.grad(quadratic)(params, matrix), state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), aj.global_norm(params)

    sizes = jax.lax.scan(step, (params, tx.init(params)), None, length=steps)[1]
    return float((sizes[-1] / sizes[-101]) ** 0.01)


@pytest.mark.parametrize(
    ("tx_at", "share"),
    [
        (aj.sgd, 1.0),
        (lambda rate: aj.sgd(rate, momentum=0.8), 1.8),
        (lambda rate: aj.sgd(rate, momentum=0.8, nesterov=True), 1.8 / 2.6),
        pytest.param(
            lambda rate: aj.sgd(rate, momentum=0.8, dampening=0.8),
            1.8 / 0.2,
            marks=pytest.mark.slow,
        ),
        pytest.param(
            lambda rate: aj.schedule_free_sgd(rate, b1=0.8, weight_lr_power=0.0),
            None,
            marks=pytest.mark.slow,
        ),
    ],
    ids=["plain", "heavy ball", "Nesterov", "a moving average", "schedule-free"],
)
def test_runs_diverge_above_what_is_allowed(tx_at, share):
    """Of heavy ball, Nesterov's and averaged gradients the limit is known, as a share of 2/λ."""
    matrix = jnp.asarray(hessian(np.linspace(0.5, 4, 24)), jnp.float32)
    tx, params = tx_at(0.1), params_of()
    state = tx.init(params)
    for _ in range(300 if share is None else 1):
        _, state = tx.update(jax.tree.map(jnp.zeros_like, params), state, params)
    found = aj.sharpness(quadratic, params, matrix, tx, state, tolerance=1e-5)
    largest = found.largest_learning_rate
    assert found.learning_rate == pytest.approx(0.1)
    if share is not None:
        assert largest == pytest.approx(share * 2 / 4, rel=1e-3)
    assert factors(tx_at, 0.98 * largest, matrix) < 1
    assert factors(tx_at, 1.02 * largest, matrix) > 1


def test_adam_sees_the_hessian_over_the_root_of_its_second_moment():
    matrix = hessian(np.geomspace(0.1, 10, 24))
    tx, params = aj.adam(0.01, b1=0.9, b2=0.999), params_of()
    state = tx.init(params)

    def step(carry, _):
        params, state = carry
        grads = jax.grad(quadratic)(params, jnp.asarray(matrix, jnp.float32))
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    (params, state), _ = jax.lax.scan(step, (params, state), None, length=200)
    nu = state[0].nu
    nu = np.concatenate([np.float64(nu["a"]).ravel(), np.float64(nu["b"])]) / (1 - 0.999**201)
    by_adam = matrix / (np.sqrt(0.999 * nu) + 1e-8)[:, None]
    largest = np.linalg.eigvals(by_adam).real.max() * (0.1 / 1.9)
    found = aj.sharpness(quadratic, params, jnp.asarray(matrix, jnp.float32), tx, state)
    np.testing.assert_allclose(found.value, largest, rtol=2e-3)
    # As Cohen et al. put it: 38/η for β₁ = 0.9.
    np.testing.assert_allclose(2 / found.value, 38 / (largest * 19), rtol=2e-3)
    warming = aj.adam(aj.schedules.linear_schedule(0.0, 0.01, 10), b1=0.9, b2=0.999)
    other = aj.sharpness(
        quadratic, params, jnp.asarray(matrix, jnp.float32), warming, _with_count(state)
    )
    np.testing.assert_allclose(other.value, found.value, rtol=1e-5)
    assert other.learning_rate == pytest.approx(0.01)


def _with_count(state):
    adam, _ = state
    return adam, optax.ScaleByScheduleState(count=adam.count)


@pytest.mark.slow
def test_arrays_keep_their_sharding(make_mesh):
    mesh = make_mesh(4)
    matrix = jnp.asarray(hessian(np.geomspace(1e-2, 30, 24)), jnp.float32)
    params = params_of()
    params["a"] = jax.device_put(params["a"], NamedSharding(mesh, PartitionSpec("x")))

    def loss(params, matrix):
        flat = jnp.concatenate([jax.reshard(params["a"], PartitionSpec()).ravel(), params["b"]])
        return flat @ (matrix @ flat) / 2

    params["b"], matrix = jax.device_put(
        (params["b"], matrix), NamedSharding(mesh, PartitionSpec())
    )
    with jax.set_mesh(mesh):
        found = aj.sharpness(loss, params, matrix)
    np.testing.assert_allclose(found.value, 30, rtol=1e-3)


def test_another_call_compiles_nothing(compiled):
    matrix = jnp.asarray(hessian(np.geomspace(1, 5, 24)), jnp.float32)
    aj.sharpness(quadratic, params_of(), matrix)
    before = compiled.count("jit(_step)")
    aj.sharpness(quadratic, params_of(1), 2 * matrix)
    assert compiled.count("jit(_step)") == before


def test_what_is_refused():
    matrix, params = jnp.eye(24), params_of()
    tx = aj.adam(0.1)
    state = tx.init(params)
    for extra in ((tx,), (None, state)):
        with pytest.raises(ValueError, match="tx and state go together"):
            aj.sharpness(quadratic, params, matrix, *extra)
    with pytest.raises(ValueError, match="seen no gradient yet, and nu of Adam"):
        aj.sharpness(quadratic, params, matrix, tx, state)
    lion = aj.lion(0.1)
    with pytest.raises(
        ValueError, match=r"lion\(learning_rate=0.1.* does not grow with a gradient"
    ):
        aj.sharpness(quadratic, params, matrix, lion, lion.init(params))
    sgd = optax.sgd(0.1)
    with pytest.raises(ValueError, match="must be one that can be set"):
        aj.sharpness(quadratic, params, matrix, sgd, sgd.init(params))
    with pytest.raises(TypeError, match="must be a function"):
        aj.sharpness(params, quadratic, matrix)
    with pytest.raises(TypeError, match="must return one number"):
        aj.sharpness(lambda w, batch: w["b"], params, matrix)
    with pytest.raises(TypeError, match=r"params\['z'\] is complex"):
        aj.sharpness(quadratic, {"z": jnp.ones(2, jnp.complex64)}, matrix)
    with pytest.raises(ValueError, match="no arrays in it"):
        aj.sharpness(quadratic, {}, matrix)
    with pytest.raises(ValueError, match="Hessian of the loss is not finite"):
        aj.sharpness(quadratic, params, matrix * jnp.nan)
    with pytest.raises(ValueError, match="max_steps=0 must be a whole number"):
        aj.sharpness(quadratic, params, matrix, max_steps=0)
    with pytest.raises(ValueError, match="tolerance=-1 must be"):
        aj.sharpness(quadratic, params, matrix, tolerance=-1)
    step = aj.train_step(quadratic)
    run = aj.TrainState.create(params, aj.sgd(0.1))
    step(run, matrix)
    with pytest.raises(ValueError, match="used up by a step"):
        aj.sharpness(quadratic, run.params, matrix)


def test_the_finders_picture_has_the_edge_in_it():
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    matrix = jnp.asarray(hessian(np.linspace(0.5, 4, 24)), jnp.float32)
    state = aj.TrainState.create(params_of(), aj.sgd(0.1))
    rates = np.geomspace(0.01, 2, 24)
    found = aj.find_learning_rate(state, aj.train_step(quadratic), [matrix] * 40, rates=rates)
    measured = aj.sharpness(quadratic, state.params, matrix)
    ax = found.plot(sharpness=measured, ax=Figure().subplots())
    assert "2/λ: 0.5" in [text.get_text() for text in ax.get_legend().get_texts()]
    assert measured.largest_learning_rate < found.limit < 1.3 * measured.largest_learning_rate
