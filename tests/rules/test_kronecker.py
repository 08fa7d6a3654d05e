"""Shampoo and SOAP against their papers, what people run of them, and what follows from the formulas."""

from __future__ import annotations

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import adaptive_jax as aj
from adaptive_jax.rules._factors import Blocks, power
from tests import reference

STEPS = 12
SHAMPOO_OF_THE_PAPER = {
    "b1": 0.0, "average": False, "graft": None, "eps_relative": False, "refresh_every": 1,
}  # fmt: skip
slow = pytest.mark.slow


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def taken(tx, gradients, params):
    """What each step adds, and the state after it."""
    update, state, found = jax.jit(tx.update), tx.init(params), []
    for gradient in gradients:
        updates, state = update(gradient, state, params)
        params = jax.tree.map(jnp.add, params, updates)
        found.append((jax.tree.map(np.asarray, updates), state))
    return found


def check(tx, formula, shape, dtype="float64", tolerance=1e-9):
    """An optimizer against a formula, step by step, of the same numbers."""
    gradients, params = (
        x.astype(dtype).astype(np.float64)
        for x in (numbers(STEPS, *shape), numbers(*shape, seed=1))
    )
    expected = formula(gradients, params, 0.1)
    with jax.enable_x64(dtype == "float64"):
        found = taken(tx, jnp.asarray(gradients, dtype), jnp.asarray(params, dtype))
    for step, (updates, _) in enumerate(found):
        assert updates.dtype == dtype
        np.testing.assert_allclose(
            updates, expected[step], rtol=tolerance, atol=tolerance / 10, err_msg=f"{step=}"
        )


@pytest.mark.parametrize(
    ("shape", "settings"),
    [
        ((4, 4), {"skip_first": True, "refresh_every": 3}),
        pytest.param((5, 4), {"refresh_every": 2}, marks=slow),
        pytest.param((5, 4), {"refresh_every": 1, "b3": 0.9, "b1": 0.8}, marks=slow),
        pytest.param((5, 4), {"max_size": 4, "skip_first": True, "refresh_every": 2}, marks=slow),
        pytest.param((4, 5), {"one_sided": True, "bias_correction": False}, marks=slow),
        pytest.param((5, 4), {"one_sided": True, "refresh_every": 2, "eps": 0.01}, marks=slow),
        pytest.param((2, 4, 4), {"kl": True, "refresh_every": 2}, marks=slow),
        pytest.param((4, 4), {"kl": True, "skip_first": True, "refresh_every": 1}, marks=slow),
        pytest.param((3,), {"skip_first": True}, marks=slow),
        pytest.param((), {}, marks=slow),
    ],
    ids=str,
)
def test_soap_is_what_the_paper_and_its_code_say(shape, settings):
    check(aj.soap(0.1, **settings), functools.partial(reference.soap, **settings), shape)


@pytest.mark.parametrize(
    ("shape", "settings"),
    [
        pytest.param((4, 5), {"refresh_every": 3, "weight_decay": 0.1}, marks=slow),
        pytest.param((4, 6), {"graft": "sgd", "max_size": 2, "refresh_every": 1}, marks=slow),
        pytest.param((2, 6, 4), {"graft": "adagrad", "average": False, "max_size": 3}, marks=slow),
        pytest.param((4, 4), {"graft": "rmsprop", "exponent": -0.5, "b2": 0.9}, marks=slow),
        pytest.param((4, 3), {"graft": None, "eps": 0.1, "eps_relative": False}, marks=slow),
        pytest.param((4,), {"graft": None, "average": False}, marks=slow),
        pytest.param((), {"graft": "rmsprop"}, marks=slow),
    ],
    ids=str,
)
def test_shampoo_is_what_people_run(shape, settings):
    check(aj.shampoo(0.1, **settings), functools.partial(reference.shampoo, **settings), shape)


@pytest.mark.parametrize("shape", [(4, 5), pytest.param((2, 3, 4), marks=slow)])
def test_shampoo_is_the_papers(shape):
    tx = aj.shampoo(0.1, eps=1e-4, **SHAMPOO_OF_THE_PAPER)
    check(tx, reference.shampoo_of_the_paper, shape)


@slow
def test_kl_shampoo_is_the_papers():
    settings = {"b2": 0.9, "eps": 1e-3}
    tx = aj.shampoo(0.1, graft=None, kl=True, refresh_every=1, **settings)
    check(tx, functools.partial(reference.kl_shampoo, **settings), (4, 5))


@slow
@pytest.mark.parametrize("name", ["soap", "shampoo"])
def test_in_float32_rounding_is_all_that_differs(name):
    settings = {"refresh_every": 2}
    tx = getattr(aj, name)(0.1, **settings)
    formula = functools.partial(getattr(reference, name), **settings)
    check(tx, formula, (4, 4), "float32", 2e-3)


@slow
def test_the_losses_of_the_authors_soap():
    """nikhilvyas/SOAP, a1e5535, at η 0.1, without decay, refreshed every other step."""
    places = jnp.arange(12.0).reshape(3, 4)
    tx = aj.soap(0.1, weight_decay=0.0, refresh_every=2, skip_first=True)
    w, update, losses = jnp.cos(places), jax.jit(tx.update), []
    state = tx.init(w)
    for step in range(1, 12):
        a = 1 + 0.9 * jnp.sin(places * step)
        losses.append(float((a * w * w).sum() / 2))
        updates, state = update(a * w, state, w)
        w = w + updates
    expected = [
        3.105841, 3.143758, 2.763224, 1.515062, 2.10557, 0.677077, 1.517624, 0.872298, 1.020674, 0.872097,
        0.91152,
    ]  # fmt: skip
    np.testing.assert_allclose(losses, expected, rtol=1e-4)


@slow
@pytest.mark.parametrize(
    ("gradients", "expected"),
    [
        ([np.eye(2) / 2**0.5] * 2, np.eye(2) / 2**0.5),
        ([[[1.0, 0.0]], [[0.0, 1.0]]], [[0.0, 2**-0.25]]),
    ],
    ids=["square", "row"],
)
def test_metas_shampoo_worked_by_hand(gradients, expected):
    tx = aj.scale_by_shampoo(eps=0.0, **SHAMPOO_OF_THE_PAPER)
    gradients = jnp.asarray(gradients, jnp.float32)
    updates, state = taken(tx, gradients, gradients[0])[-1]
    np.testing.assert_allclose(updates, expected, atol=1e-6)
    np.testing.assert_allclose(state.right, np.eye(2), atol=1e-6)


def test_roots_of_matrices_whose_roots_are_known():
    for matrix, exponent, expected in (
        (np.diag([1.0, 4.0]), -0.5, np.diag([1.0, 0.5])),
        (
            [[1195.0, -944, -224], [-944, 746, 177], [-224, 177, 42]],
            -0.5,
            [[1.0, 1, 1], [1, 2, -3], [1, -3, 18]],
        ),
        (np.ones((3, 3)), 0.25, np.ones((3, 3)) / 3**0.75),
    ):
        with jax.enable_x64(True):
            found = power(jnp.asarray(matrix), exponent, jnp.array(0.0), True)
        np.testing.assert_allclose(found, expected, atol=1e-3)


def test_blocks_there_and_back():
    for shape, max_size, blocks in (
        ((4, 6), 8, (4, 6)),
        ((4, 6), 3, (2, 2, 2, 3)),
        ((2, 7, 3), 3, (2, 3, 3, 3)),
        ((1, 5), 2, (3, 1, 2)),
    ):
        cut, x = Blocks.of(shape, max_size), jnp.asarray(numbers(*shape))
        assert cut.blocks(x).shape == blocks
        np.testing.assert_array_equal(cut.whole(cut.blocks(x)), x)


@slow
def test_spectral_descent_is_shampoo_that_remembers_nothing():
    g = jnp.asarray(numbers(5, 4), jnp.float32)
    u, _, vt = np.linalg.svd(g, full_matrices=False)
    tx = aj.scale_by_shampoo(b1=0.0, b2=0.0, eps=0.0, graft=None, refresh_every=1)
    np.testing.assert_allclose(tx.update(g, tx.init(g))[0], u @ vt, atol=1e-4)
    # SOAP's first step is the same, as its gradient is a diagonal in its eigenvectors.
    tx = aj.scale_by_soap()
    np.testing.assert_allclose(tx.update(g, tx.init(g))[0], u @ vt, atol=1e-4)


@slow
@pytest.mark.parametrize("settings", [{"max_size": 1}, {}], ids=["no factors", "diagonal"])
def test_soap_without_a_rotation_is_adam(settings):
    """With skip_first from its second step on."""
    diagonals = jnp.asarray(
        [np.diag([3.0, 2.0, 1.0]) * (1 + 0.1 * i) for i in range(8)], jnp.float32
    )
    params = jnp.ones((3, 3))
    first = jnp.zeros((3, 3)) if settings else diagonals[0]
    adam = aj.scale_by_adam(0.95, 0.95, eps_hat=True)
    expected = taken(adam, diagonals, params)
    found = taken(aj.scale_by_soap(**settings), diagonals, params)
    skipped = taken(aj.scale_by_soap(skip_first=True, **settings), [first, *diagonals], params)
    for (x, _), (y, _), (z, _) in zip(expected, found, skipped[1:], strict=True):
        np.testing.assert_allclose(y, x, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(z, x, rtol=1e-5, atol=1e-6)
    assert not skipped[0][0].any()


@slow
def test_a_refresh_changes_the_bases_alone():
    """And the second moment, which others lose there, moves in every step."""
    gradients, params = jnp.asarray(numbers(7, 4, 4), jnp.float32), jnp.ones((4, 4))
    runs = {k: taken(aj.scale_by_soap(refresh_every=k), gradients, params) for k in (3, 5)}
    assert all(len({np.asarray(s.nu).tobytes() for _, s in run}) == 7 for run in runs.values())
    for k, run in runs.items():
        bases = [np.asarray(state.left_basis) for _, state in run]
        changed = [i for i in range(1, 7) if not np.array_equal(bases[i], bases[i - 1])]
        assert changed == [i for i in range(1, 7) if i % k == 0]
    for i in range(7):
        equal = np.array_equal(runs[3][i][0], runs[5][i][0])
        assert equal == (i < 3)
        for name in ("left", "right"):
            of_both = [getattr(run[i][1], name) for run in runs.values()]
            np.testing.assert_array_equal(*of_both)


@slow
@pytest.mark.parametrize("name", ["scale_by_soap", "scale_by_shampoo"])
def test_a_matrix_on_its_side_moves_alike(name):
    gradients, params = numbers(6, 4, 5), numbers(4, 5, seed=1)
    make = functools.partial(getattr(aj, name), refresh_every=2, max_size=5)
    with jax.enable_x64(True):
        expected = taken(make(), jnp.asarray(gradients), jnp.asarray(params))
        lying = jnp.asarray(gradients.swapaxes(1, 2)), jnp.asarray(params.T)
        turned = taken(make(), *lying)
        by_axes = taken(make(axes=aj.MatrixAxes(-1, -2)), *lying)
    for (x, _), (y, _), (z, _) in zip(expected, turned, by_axes, strict=True):
        np.testing.assert_allclose(y.T, x, rtol=1e-7, atol=1e-9)
        np.testing.assert_allclose(z.T, x, rtol=1e-7, atol=1e-9)


@slow
def test_a_spread_refresh_of_different_arrays_in_different_steps():
    params = {name: jnp.ones((4, 4)) for name in "abc"}
    gradients = [{name: jnp.asarray(x, jnp.float32) for name in "abc"} for x in numbers(7, 4, 4)]
    for make, kept in ((aj.scale_by_soap, "left_basis"), (aj.scale_by_shampoo, "left_root")):
        run = taken(make(refresh_every=3, spread_refresh=True), gradients, params)
        for place, name in enumerate("abc"):
            bases = [np.asarray(getattr(state, kept)[name]) for _, state in run]
            changed = [i for i in range(1, 7) if not np.array_equal(bases[i], bases[i - 1])]
            assert changed == [i for i in range(1, 7) if i % 3 == place]


@slow
@pytest.mark.parametrize("name", ["scale_by_soap", "scale_by_shampoo"])
@pytest.mark.parametrize("kl", [False, True], ids=["", "kl"])
def test_what_is_hard_to_factor(name, kl):
    tx = getattr(aj, name)(refresh_every=2, kl=kl)
    outer = np.outer(np.arange(1.0, 5.0), np.ones(4))
    cases = {
        "zeros": np.zeros((4, 4)),
        "rank one": outer,
        "denormal": 1e-41 * outer,
        "tiny": 1e-30 * numbers(4, 4),
        "huge": 1e30 * numbers(4, 4),
        "alternating": numbers(4, 4) * 10.0 ** np.arange(-12, 4).reshape(4, 4),
    }
    params = {case: jnp.ones((4, 4)) for case in cases}
    run = taken(tx, [{k: jnp.asarray(x, jnp.float32) for k, x in cases.items()}] * 5, params)
    for updates, state in run:
        for case, x in updates.items():
            assert np.isfinite(x).all(), case
            assert np.linalg.norm(x, 2) < 30, case
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(state))
        assert not updates["zeros"].any()
    # In the first step, rounding errors of what is zero move nothing: the whole step has rank one.
    if name == "scale_by_soap":
        singular = np.linalg.svd(run[0][0]["rank one"])[1]
        np.testing.assert_allclose(singular, [1, 0, 0, 0], atol=1e-4)


@slow
@pytest.mark.parametrize("name", ["scale_by_soap", "scale_by_shampoo"])
def test_what_is_not_finite_stays_in_its_matrix(name):
    params = {"stack": jnp.ones((2, 3, 3)), "other": jnp.ones((3, 3))}
    gradients = [
        {"stack": jnp.asarray(numbers(2, 3, 3, seed=i), jnp.float32), "other": jnp.eye(3)}
        for i in range(4)
    ]
    poisoned = list(gradients)
    poisoned[1] = gradients[1] | {"stack": gradients[1]["stack"].at[0, 1, 1].set(jnp.nan)}
    tx = getattr(aj, name)(refresh_every=2)
    for (x, _), (y, state) in zip(  # noqa: B007  # The last one is looked at.
        taken(tx, gradients, params), taken(tx, poisoned, params), strict=True
    ):
        np.testing.assert_array_equal(x["other"], y["other"])
    assert np.isnan(y["stack"][0]).all()
    assert np.isfinite(y["stack"][1]).all()
    kept = "left_basis" if name == "scale_by_soap" else "left_root"
    assert np.isfinite(getattr(state, kept)["stack"]).all()


def conditionals(function, *args):
    return len(re.findall(r" conditional\(", jax.jit(function).lower(*args).compile().as_text()))


@slow
@pytest.mark.parametrize("name", ["soap", "shampoo", "psgd_kron"])
def test_lapack_gets_one_matrix_at_a_time(name):
    """Two stacks at once, or two programs with one, wait for each other for ever in jaxlib's threads."""
    params = {"w": jnp.ones((3, 4, 5)), "v": jnp.ones((2, 6, 7))}

    def step(rate):
        tx = getattr(aj, name)(rate)
        return tx.update(params, tx.init(params), params)

    for function, rate in ((step, jnp.float32(0.1)), (jax.vmap(step), jnp.ones(2) / 10)):
        program = jax.jit(function).lower(rate).compile().as_text()
        shapes = re.findall(r"f32(\[[\d,]*\])\S*[^=]*custom-call\(.*lapack_", program)
        assert shapes, name
        assert not [shape for shape in shapes if shape.count(",") > 1], (name, shapes)


@slow
@pytest.mark.parametrize(("name", "each"), [("soap", 2), ("shampoo", 1)])
def test_a_sweep_pays_for_its_refreshes_once_in_k_steps(name, each):
    params = {"a": jnp.ones((3, 4)), "b": jnp.ones((4, 3)), "v": jnp.ones(3)}
    make = getattr(aj, name)
    rates = jnp.geomspace(1e-4, 1e-2, 8)

    def step(rate, state):
        return make(rate).update(params, state, params)

    one = make(0.1).init(params)
    many = jax.vmap(lambda rate: make(rate).init(params))(rates)
    assert conditionals(step, rates[0], one) == 2 * each
    assert conditionals(jax.vmap(step), rates, many) == 2 * each
    found, _ = jax.vmap(step)(rates, many)
    alone, _ = step(rates[3], one)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x[3], y, rtol=1e-4, atol=1e-8), found, alone
    )


SHARDINGS = {
    "replicated": PartitionSpec(),
    "rows": PartitionSpec("x"),
    "columns": PartitionSpec(None, "x"),
}


OFTEN = {
    "soap": {"refresh_every": 2, "b2": 0.9},
    "shampoo": {"refresh_every": 2, "b2": 0.9},
    "psgd_kron": {"preconditioner_update_probability": 0.5},
}
"""Of each method, settings with which few steps see what is not done in each."""


@slow
@pytest.mark.parametrize("name", OFTEN)
def test_on_a_mesh(name, make_mesh, compiled):
    mesh = make_mesh(8)
    shardings = {where: NamedSharding(mesh, spec) for where, spec in SHARDINGS.items()}
    tx = getattr(aj, name)(0.1, **OFTEN[name])
    with jax.enable_x64(True):  # The eigenvectors of random matrices make much of rounding errors.
        params = {where: jnp.asarray(numbers(16, 16)) for where in SHARDINGS}
        params["vector"], shardings["vector"] = jnp.ones(16), shardings["rows"]
        gradients = [
            jax.tree.map(lambda x, i=i: jnp.asarray(numbers(*x.shape, seed=i)), params)
            for i in range(3)
        ]
        expected = taken(tx, gradients, params)
        here = jax.device_put(params, shardings)
        update, state = jax.jit(tx.update), tx.init(here)
        for step, gradient in enumerate(gradients):
            compiled.clear()
            updates, state = update(jax.device_put(gradient, shardings), state, here)
            assert (
                step < 2 or not compiled
            )  # The compiler may divide factors otherwise than `init` does.
            for where, x in updates.items():
                assert x.sharding.is_equivalent_to(shardings[where], x.ndim)
                np.testing.assert_allclose(x, expected[step][0][where], rtol=1e-5, atol=1e-7)
            here = jax.tree.map(jnp.add, here, updates)


STORAGE = {
    "mu": "bfloat16", "nu": "int8", "left": "bfloat16", "right": "bfloat16",
    "left_basis": "int8", "right_basis": "int8",
}  # fmt: skip


@slow
def test_factors_and_bases_in_few_bits():
    params, gradients = jnp.ones((64, 64)), jnp.asarray(numbers(6, 64, 64), jnp.float32)
    tx = aj.scale_by_soap(refresh_every=2, storage=STORAGE)
    exact = taken(aj.scale_by_soap(refresh_every=2), gradients, params)
    cosines = [
        np.vdot(x, y) / np.linalg.norm(x) / np.linalg.norm(y)
        for (x, _), (y, _) in zip(taken(tx, gradients, params), exact, strict=True)
    ]
    assert cosines[0] > 0.999  # In the exact eigenvectors, whatever is kept of them.
    assert min(cosines) > 0.85
    assert cosines[-1] > 0.98
    found = aj.state_bytes(tx, params).by_slot
    assert set(STORAGE) <= set(found)
    assert found["left"] == 2 * 64 * 64
    assert found["left_basis"] < 1.1 * 64 * 64
    half = aj.state_bytes(aj.scale_by_soap(one_sided=True), params).by_slot
    assert half["left"] == 4 * 64 * 64
    assert half["right"] == half["right_basis"] == 0


def test_factors_are_refused_in_factored_storage_by_name():
    for name in ("left", "right_basis"):
        with pytest.raises(ValueError, match=name):
            aj.soap(0.1, storage={name: "factored"})
    aj.soap(0.1, storage={"nu": "factored"})


@slow
@pytest.mark.parametrize("name", OFTEN)
def test_a_run_goes_on_in_the_middle_of_a_refresh_period(name, tmp_path):
    storage = {key: x for key, x in STORAGE.items() if name == "soap" or "basis" not in key}
    settings = {"refresh_every": 4, "storage": storage}
    if name == "psgd_kron":
        settings = {"preconditioner_update_probability": 0.25, "storage": {"mu": "bfloat16"}}
    tx = getattr(aj, name)(0.1, **settings)
    params, gradients = jnp.ones((6, 5)), jnp.asarray(numbers(8, 6, 5), jnp.float32)
    whole = taken(tx, gradients, params)
    params = params + sum(updates for updates, _ in whole[:1])
    for updates, _ in whole[1:3]:
        params = params + updates
    aj.save_checkpoint(tmp_path, (params, whole[2][1]), step=3)
    params, state = aj.restore_checkpoint(tmp_path, (params, tx.init(params)))
    for step in range(3, 8):
        updates, state = jax.jit(tx.update)(gradients[step], state, params)
        params = params + updates
        np.testing.assert_array_equal(updates, whole[step][0])


@slow
@pytest.mark.parametrize("name", OFTEN)
def test_around_them_all_works(name):
    params = {"w": jnp.asarray(numbers(4, 3), jnp.float32), "b": jnp.zeros(3)}
    x, y = (jnp.asarray(numbers(16, n, seed=n), jnp.float32) for n in (4, 3))

    def loss(params, batch):
        return jnp.mean((batch[0] @ params["w"] + params["b"][None] - batch[1]) ** 2)

    make, step = functools.partial(getattr(aj, name), **OFTEN[name]), aj.train_step(loss)
    around = (lambda tx: tx, aj.compensate, aj.diagnose, lambda tx: aj.multi_steps(tx, 2))
    for each in around:
        state = aj.TrainState.create(params, each(make(0.05)))
        for _ in range(20):
            state, metrics = step(state, (x, y))
        assert metrics["loss"] < loss(params, (x, y))
    swept = aj.sweep(
        lambda rate: aj.TrainState.create(params, make(rate)),
        step=step, batches=[(x, y)] * 20, rate=jnp.array([0.0, 0.05]),
    )  # fmt: skip
    still, moved = np.asarray(swept.objective)
    np.testing.assert_allclose(still, loss(params, (x, y)), rtol=1e-5)
    assert moved < still


def test_which_array_has_which_factors():
    params = {"embedding": jnp.zeros((300, 8)), "w": jnp.zeros((16, 8)), "bias": jnp.zeros(8)}
    shown = aj.describe(aj.soap(1e-3, max_size=100), params)
    kept = {
        row.path: [each.name for each in row.slots if each.kept is not None]
        for row in shown.rows
        if type(row.rule).__name__ == "Soap"
    }
    both = ["left", "right", "left_basis", "right_basis"]
    assert [name for name in kept["['w']"] if name in both] == both
    assert [name for name in kept["['embedding']"] if name in both] == ["right", "right_basis"]
    assert [name for name in kept["['bias']"] if name in both] == []


@pytest.mark.parametrize("make", [aj.soap, aj.shampoo, aj.scale_by_soap, aj.scale_by_shampoo])
def test_what_makes_no_sense_is_refused(make):
    settings = {"learning_rate": 0.1} if make in (aj.soap, aj.shampoo) else {}
    for name, value in (
        ("max_size", 0),
        ("refresh_every", 0),
        ("refresh_every", 2.5),
        ("max_size", True),
    ):
        with pytest.raises(ValueError, match=f"{name}={value!r} must be a whole number, 1 or more"):
            make(**settings, **{name: value})
    tx, params = make(**settings), {"a": {"w": jnp.ones((4, 6))}}
    with pytest.raises(TypeError, match=r"\['a'\]\['w'\] is complex64.* takes no complex"):
        tx.init({"a": {"w": jnp.ones((2, 2), jnp.complex64)}})
    wrong = make(**settings, axes=aj.MatrixAxes((0, 1), 2))
    with pytest.raises(
        ValueError, match=r"\['a'\]\['w'\] is float32\[4, 6\], of which .* names the axis 2"
    ):
        wrong.init(params)
    other = make(**settings, axes=aj.MatrixAxes(heads=2))
    with pytest.raises(ValueError, match=r"\['a'\]\['w'\].*the state's left has float32\[4, 4\]"):
        other.update(params, tx.init(params), params)


def test_options_that_exclude_each_other():
    with pytest.raises(ValueError, match="kl=True with average=False"):
        aj.shampoo(0.1, kl=True, average=False)
    with pytest.raises(ValueError, match="graft='lion' is not known"):
        aj.shampoo(0.1, graft="lion")


@slow
def test_temporaries_of_soap():
    """Of two layers of a language model, of width 256: no copies of the factors among them."""
    shapes = {"qkv": (256, 768), "out": (256, 256), "up": (256, 1024), "down": (1024, 256)}
    layer = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    params, tx = {"first": layer, "second": layer}, aj.soap(1e-3)

    def step(params, state, gradients):
        updates, state = tx.update(gradients, state, params)
        return aj.apply_updates(params, updates), state

    jitted = jax.jit(step, donate_argnums=(0, 1))
    program = jitted.lower(params, jax.eval_shape(tx.init, params), params).compile()
    assert program.memory_analysis().temp_size_in_bytes <= 35e6
    entry = program.as_text().partition("\nENTRY ")[2]
    assert not re.search(r"= f32\[(\d+),\1\]\S* copy\(", entry)
