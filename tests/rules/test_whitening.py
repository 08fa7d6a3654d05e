"""PSGD-Kron against NumPy and its authors' code; what it comes to rest at, and when it is fitted."""

from __future__ import annotations

import re
import zlib
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adaptive_jax as aj
from adaptive_jax.rules import PsgdKron, whitening
from tests import reference
from tests.reference.whitening import drawn


def trained(tx, gradients, params, dtype):
    """The updates of all steps, for the parameters of each step."""
    gradients, params = jax.tree.map(lambda x: jnp.asarray(x, dtype), (gradients, params))

    @jax.jit
    def run(gradients, params):
        def step(state, inputs):
            updates, state = tx.update(inputs[0], state, inputs[1])
            return state, updates

        return jax.lax.scan(
            step, tx.init(jax.tree.map(lambda x: x[0], params)), (gradients, params)
        )

    return jax.tree.map(np.float64, run(gradients, params)[1])


SHAPES = {"matrix": (5, 3), "vector": (4,)}
MORE = {"column": (6, 1), "number": (), "stack": (2, 3, 4), "wide": (3, 8)}
SETTINGS = [
    {},
    {"weight_decay": 0.3, "memory_save_mode": "one_diag"},
    {"memory_save_mode": "all_diag", "preconditioner_update_probability": 0.3},
    {"max_size": 4, "momentum_into_precond_update": False, "preconditioner_lr": 0.3, "b1": 0.5},
]


# A moving average of float32 goes on for 200 steps, and each of them is divided by the root of another.
@pytest.mark.parametrize(
    ("settings", "dtype", "tolerance", "shapes", "steps"),
    [
        pytest.param({}, "float64", 1e-11, SHAPES, 60, id="float64"),
        *(
            pytest.param(each, dtype, tolerance, SHAPES | MORE, 200, marks=pytest.mark.slow,
                         id=f"{dtype}-{number}")
            for number, each in enumerate(SETTINGS)
            for dtype, tolerance in (("float64", 1e-10), ("float32", 2e-5))
        ),
    ],
)  # fmt: skip
def test_follows_the_paper(settings, dtype, tolerance, shapes, steps):
    rng = np.random.default_rng(0)
    gradients, params, expected = {}, {}, {}
    for index, (name, shape) in enumerate(sorted(shapes.items())):
        scales = 10 ** rng.uniform(-2, 2, shape)
        g = (rng.normal(size=(steps, *shape)) * scales + scales).astype(dtype).astype(np.float64)
        g[0] = 0  # Not fitted to.
        start = rng.normal(size=shape)
        probes = drawn(g.shape, index)
        places = np.ndindex(shape[:-2])  # Each matrix by itself.
        updates = np.zeros_like(g)
        for at in places:
            one = (slice(None), *at)
            updates[one] = reference.psgd_kron(
                g[one], start[at], 0.1, probes=probes[one], **settings
            )
        gradients[name], expected[name] = g, updates
        params[name] = start + np.cumsum(updates, 0) - updates
    with jax.enable_x64(dtype == "float64"):
        found = trained(aj.psgd_kron(0.1, **settings), gradients, params, dtype)
    for name, each in expected.items():
        # Elements of a matrix are sums of those of the gradient, and are rounded as the largest.
        size = np.abs(each).max(axis=(0, -2, -1) if each.ndim > 2 else 0, keepdims=True)
        assert (np.abs(found[name] - each) <= tolerance * size).all(), name


# The losses of ½ΣA∘W² after steps of η = 0.1 by psgd_jax (be95524), with its probes replaced.
LOSSES = [
    8.292673966, 6.370405825, 4.776943944, 3.493695096, 2.501840458, 1.751977851, 1.273366947,
    0.94244157, 0.735394055, 0.606711722,
]  # fmt: skip


def test_takes_the_steps_of_the_authors_code(monkeypatch):
    probes = jnp.asarray(np.random.RandomState(7).normal(size=(10, 2, 3)), jnp.float32)
    salt = zlib.crc32(b"PsgdKron.False")
    keys = aj.maths.random_key(jnp.arange(1, 11), np.uint32(0), np.uint32(salt))
    monkeypatch.setattr(
        whitening, "random_normal", lambda shape, key, dtype: probes[jnp.argmax(keys == key)]
    )
    curvature = jnp.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    start = jnp.array([[1.0, -2.0, 0.5], [0.3, 1.0, -1.0]])
    # With axes of its own, so that nothing here is taken for what is traced elsewhere.
    tx = aj.psgd_kron(0.1, axes=aj.MatrixAxes(0, 1))

    def step(run, _):
        w, state = run
        updates, state = tx.update(curvature * w, state, w)
        return (w + updates, state), jnp.sum(curvature * (w + updates) ** 2) / 2

    losses = jax.lax.scan(step, (start, tx.init(start)), length=10)[1]
    np.testing.assert_allclose(losses, LOSSES, rtol=2e-5)


@pytest.mark.slow
def test_agrees_with_kron_torch(monkeypatch):
    """Which writes its noise, √ε·mean|μ̂|·V, into the momentum itself: its steps have 5e-4 of it."""
    monkeypatch.setenv("TORCH_COMPILE_DISABLE", "1")
    theirs = pytest.importorskip("kron_torch.kron")
    import torch

    rng = np.random.default_rng(0)
    gradients, probes = rng.normal(size=(2, 30, 5, 7))
    params = rng.normal(size=(5, 7))
    each = iter(probes)
    monkeypatch.setattr(torch, "randn_like", lambda x: torch.tensor(next(each), dtype=x.dtype))
    w = torch.nn.Parameter(torch.tensor(params))
    tx = theirs.Kron([w], lr=0.1, precond_dtype=torch.float64)
    expected = reference.psgd_kron(gradients, params, 0.1, probes=probes)
    for gradient, update in zip(gradients, expected, strict=True):
        w.grad, before = torch.tensor(gradient), w.detach().clone()
        tx.step()
        found = (w.detach() - before).numpy()
        np.testing.assert_allclose(found, update, atol=1e-3 * np.abs(update).max())


def test_comes_to_rest_where_the_direction_is_white():
    """Of gradients LZRᵀ, Z white: the rows and columns of directions are uncorrelated, of variance 1."""
    rng = np.random.default_rng(0)
    left, right = np.diag([10.0, 1.0, 0.1]) @ rng.normal(size=(3, 3)), rng.normal(size=(4, 4))
    gradients = left @ rng.normal(size=(1500, 3, 4)) @ right.T
    tx = aj.scale_by_psgd_kron(
        b1=0.0, preconditioner_update_probability=1.0, preconditioner_lr=0.05
    )
    found = trained(tx, gradients, gradients, "float32")[500:]
    rows = np.mean(found @ found.mT, 0) / 4
    columns = np.mean(found.mT @ found, 0) / 3
    for covariance in (rows, columns):
        size = np.trace(covariance) / len(covariance)
        assert 0.7 < size < 1.1
        np.testing.assert_allclose(covariance / size, np.eye(len(covariance)), atol=0.2)
    # What the gradients are not, at all.
    plain = np.mean(gradients @ gradients.mT, 0)
    assert np.linalg.cond(plain) > 1e3


def fits(probability, steps):
    """The steps with a fit."""
    rule, counter, found = (
        PsgdKron(preconditioner_update_probability=probability),
        jnp.zeros(()),
        [],
    )
    for step in range(1, steps + 1):
        after = rule.advance({"update_counter": counter}, {}, SimpleNamespace(step=jnp.int32(step)))
        counter = after["update_counter"]
        found += [step] * bool(after["due"])
    return found


def test_is_fitted_as_often_as_it_is_told():
    assert fits(1.0, 4) == [1, 2, 3, 4]
    assert fits(0.3, 12) == [4, 8, 12]
    assert fits(0.1, 20) == [10, 20]


def test_the_published_schedule():
    rule = PsgdKron()

    def due(step, counter):
        ctx = SimpleNamespace(step=jnp.int32(step))
        return bool(rule.advance({"update_counter": jnp.float32(counter)}, {}, ctx)["due"])

    assert due(1, 0)
    assert due(500, 0)
    assert not due(502, 0)
    assert due(502, 1)
    # exp(-1) at step 1500: three steps from one to the next.
    assert not due(1500, 1)
    assert due(1500, 2)
    # 0.03 in the end: 34 steps.
    assert not due(10_000, 32)
    assert due(10_000, 33)


def test_zeros_fit_nothing_and_large_numbers_after_small_ones_are_clipped():
    tx = aj.scale_by_psgd_kron(b1=0.0)
    params = {"w": jnp.zeros((2, 3))}
    update = jax.jit(tx.update)
    first = state = tx.init(params)
    for _ in range(5):
        updates, state = update(params, state)
        np.testing.assert_array_equal(updates["w"], 0)
    for name in ("left", "right"):
        np.testing.assert_array_equal(getattr(state, name)["w"], getattr(first, name)["w"])
    for size in (1e-30, 1e-30, 1e30, 1e-38, 1.0):
        updates, state = update({"w": size * jnp.eye(2, 3)}, state)
        assert all(np.isfinite(x).all() for x in jax.tree.leaves((updates, state)))
        assert np.sqrt(np.mean(np.square(updates["w"]))) < 1.1001


def test_a_sweep_pays_for_fits_where_they_are_due():
    def step(rate, state, gradients):
        tx = aj.psgd_kron(rate, preconditioner_update_probability=0.1)
        return tx.update(gradients, state, gradients)

    gradients, rates = {"w": jnp.ones((3, 4, 5))}, jnp.ones(3)
    states = jax.vmap(lambda rate: aj.psgd_kron(rate).init(gradients))(rates)
    update = jax.jit(jax.vmap(step, in_axes=(0, 0, None)))
    program = update.lower(rates, states, gradients).compile().as_text()
    assert len(re.findall(r" conditional\(", program)) == 1


def test_what_is_kept_of_each_array():
    params = {
        "w": jnp.ones((3, 40)),
        "b": jnp.ones(7),
        "s": jnp.ones(()),
        "layers": jnp.ones((2, 4, 1)),
    }
    state = jax.eval_shape(aj.scale_by_psgd_kron(max_size=10).init, params)
    assert [x if x is None else x.shape for x in state.left.values()] == [
        None,
        (2, 4, 4),
        None,
        (3, 3),
    ]
    assert [x.shape for x in state.right.values()] == [(7,), (2, 1), (1,), (40,)]
    saving = jax.eval_shape(aj.scale_by_psgd_kron(memory_save_mode="one_diag").init, params)
    assert (saving.left["w"].shape, saving.right["w"].shape) == ((3, 3), (40,))
    square = jax.eval_shape(
        aj.scale_by_psgd_kron(memory_save_mode="one_diag").init, jnp.ones((4, 4))
    )
    assert (square.left.shape, square.right.shape) == ((4, 4), (4,))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: aj.psgd_kron(0.1, max_size=0), "max_size=0 must be a whole number, 1 or more"),
        (lambda: aj.psgd_kron(0.1, memory_save_mode="smart"), "memory_save_mode='smart'"),
        (lambda: aj.psgd_kron(0.1, preconditioner_lr=1.5), "preconditioner_lr=1.5"),
        (
            lambda: aj.psgd_kron(0.1, preconditioner_update_probability=2.0),
            "_update_probability=2.0",
        ),
        (lambda: aj.psgd_kron(0.1, storage="factored"), "the slot 'mu' has a sign"),
        (
            lambda: aj.psgd_kron(0.1, axes=aj.MatrixAxes(0, 2)).init(
                {"a": {"b": jnp.ones((2, 3))}}
            ),
            "params['a']['b'] is float32[2, 3], of which MatrixAxes(rows=0, columns=2) of PsgdKron names",
        ),
    ],
)
def test_wrong_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


def test_complex_arrays_are_refused():
    with pytest.raises(
        TypeError, match=r"params\['b'\] is complex64\[2\]: PsgdKron takes no complex"
    ):
        aj.psgd_kron(0.1).init({"b": jnp.ones(2, jnp.complex64)})


def test_normal_numbers():
    key = jnp.uint32(12345)
    many = np.asarray(aj.maths.random_normal((200, 250), key, jnp.float32), np.float64)
    moments = [np.mean(many**power) for power in (1, 2, 3, 4)]
    np.testing.assert_allclose(moments, [0, 1, 0, 3], atol=0.15)
    np.testing.assert_allclose(moments[:2], [0, 1], atol=0.02)
    assert abs(np.mean(many[:, 1:] * many[:, :-1])) < 0.02
    assert abs(np.mean(many[1:] * many[:-1])) < 0.02
    assert np.abs(many).max() < 4.4
