"""Muon and NorMuon against their papers, their authors' numbers, and the libraries that have them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import adaptive_jax as aj
from adaptive_jax.rules.orthogonal import COEFFICIENTS, Muon, orthogonalized
from tests import reference
from tests.reference import orthogonal

SHAPES = {"wide": (4, 9), "tall": (9, 4), "square": (5, 5), "layers": (2, 3, 5)}
SETTINGS = {
    "default": {},
    "moonlight": {"nesterov": False, "scale": "rms", "weight_decay": 0.1, "b1": 0.9},
    "polar express": {"ns_coeffs": "polar_express", "scale": "ratio", "ns_steps": 9},
    "speedrun": {"ns_coeffs": "speedrun", "normuon": True, "weight_decay": 0.1},
    "of the user": {"ns_coeffs": ((3.4, -4.7, 2.0), (2.0, -1.5, 0.5)), "eps": 0.1},
    "one polynomial": {"ns_coeffs": (2, -1.5, 0.5), "ns_steps": 2, "normuon": True, "b2": 0.5},
}
DEFAULT = [("speedrun", "float64"), ("default", "float32")]


def normal(seed, shape):
    return np.random.default_rng(seed).standard_normal(shape)


def graded(shape, least=1e-6):
    """A matrix whose singular values go down to `least` in equal ratios."""
    (q, _), (p, _) = (np.linalg.qr(normal(size, (size, min(shape)))) for size in shape)
    return (q * np.geomspace(1, least, min(shape))) @ p.T


def run(tx, gradients, params):
    """The updates of all steps, the parameters moving along."""

    @jax.jit
    def steps(gradients, params):
        def step(carry, gradient):
            params, state = carry
            updates, state = tx.update(gradient, state, params)
            return (optax.apply_updates(params, updates), state), updates

        return jax.lax.scan(step, (params, tx.init(params)), gradients)[1]

    return steps(gradients, params)


# The papers, and those who wrote them


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        pytest.param(name, dtype, marks=[] if (name, dtype) in DEFAULT else [pytest.mark.slow])
        for name in SETTINGS
        for dtype in ("float64", "float32")
    ],
)
def test_follows_the_papers(name, dtype):
    settings, steps = {"learning_rate": 0.5, **SETTINGS[name]}, 30
    with jax.enable_x64(dtype == "float64"):
        gradients = {key: normal(7, (steps, *shape)).astype(dtype) for key, shape in SHAPES.items()}
        params = {key: normal(8, shape).astype(dtype) for key, shape in SHAPES.items()}
        found = run(aj.muon(**settings), gradients, params)
        for key in SHAPES:
            assert found[key].dtype == dtype
            expected = reference.muon(
                gradients[key].astype("float64"), params[key].astype("float64"), **settings
            )
            tolerance = 1e-11 if dtype == "float64" else 5e-5
            np.testing.assert_allclose(found[key], expected, rtol=0, atol=tolerance, err_msg=key)


@pytest.mark.parametrize("steps", [1, 5, 9])
@pytest.mark.parametrize("name", [*COEFFICIENTS, "user's"])
def test_polynomials_of_matrices_are_those_of_singular_values(name, steps):
    """Two ways to the reference; and ours where float32 has few digits left: 7.5e-4 of the largest."""
    name = ((3.0, -3.2, 1.2), (1.5, -0.5, 0.0)) if name == "user's" else name
    if name == "speedrun" and steps > 5:
        pytest.skip("it has five")
    matrices = [
        normal(0, (6, 20)), normal(1, (20, 6)), normal(2, (7, 7)), graded((8, 30)), graded((30, 8)),
        graded((9, 9)), np.outer(normal(3, 8), normal(4, 20)), np.outer(normal(5, 9), normal(6, 9)),
    ]  # fmt: skip
    polynomials = Muon(ns_coeffs=name, ns_steps=steps).polynomials
    assert len(polynomials) == steps
    for x in matrices:
        expected = orthogonal.of_singular_values(x, name, steps)
        np.testing.assert_allclose(
            orthogonal.orthogonalized(x, name, steps), expected, rtol=0, atol=1e-10
        )
        with jax.disable_jit():  # A program for each would take longer.
            found = orthogonalized(jnp.asarray(x, jnp.float32), polynomials, jnp.float32(1e-7))
        values, theirs = (np.linalg.svd(each)[1] for each in (found, expected))
        # Each step makes what was rounded up to 3.4 times as large.
        np.testing.assert_allclose(values, theirs, rtol=0, atol=7.5e-4 if steps <= 5 else 3e-2)


def test_what_polynomials_make_of_singular_values():
    """Of 1e-3, 3e-3, 1e-2, 0.1, 0.3, read off the papers' figures; an orthogonal matrix stays one."""

    def value(name, s):
        for a, b, c in Muon(ns_coeffs=name).polynomials:
            s = a * s + b * s**3 + c * s**5
        return s

    assert value("quintic", 1e-3) == pytest.approx(0.47, abs=0.01)
    for s, expected in {1e-3: 0.85, 3e-3: 0.98, 1e-2: 1.0, 0.1: 1.02, 0.3: 1.13}.items():
        assert value("speedrun", s) == pytest.approx(expected, abs=0.02)
    for name in COEFFICIENTS:
        q = np.linalg.qr(normal(0, (16, 4)))[0]
        found = orthogonalized(
            jnp.asarray(7 * q, jnp.float32), Muon(ns_coeffs=name).polynomials, jnp.float32(0)
        )
        np.testing.assert_allclose(found, q * value(name, 0.5), atol=1e-5)


def test_losses_of_jordans_code():
    """f(W) = ½ΣA∘W², W out × in, η = 0.1; to 1e-2 or so: polynomials there are of bfloat16."""
    a = jnp.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    w = jnp.array([[1.0, -2.0, 0.5], [0.3, 1.0, -1.0]])
    tx = aj.muon(0.1, axes=aj.MatrixAxes(rows=-1, columns=-2))
    update, state, losses = jax.jit(tx.update), tx.init(w), []
    for _ in range(10):
        updates, state = update(a * w, state, w)
        w = w + updates
        losses.append(float(jnp.sum(a * w**2) / 2))
    expected = [
        9.759296, 9.018641, 8.238359, 7.583554, 6.925517, 6.315062, 5.767188, 5.258101, 4.781366, 4.339874,
    ]  # fmt: skip
    np.testing.assert_allclose(losses, expected, rtol=1.1e-2)


def test_numbers_in_the_tests_of_keras():
    x = jnp.array([[0.2499, 0.9105], [0.2655, 0.8824]])
    expected = [[-0.4419, 0.6456], [0.7282, 0.2970]]
    found = orthogonalized(x, Muon().polynomials, jnp.float32(1e-7))
    np.testing.assert_allclose(found, expected, atol=2e-4)
    params, gradients = jnp.array([[1.0, 2.0], [3.0, 4.0]]), jnp.array([[1.0, 6.0], [7.0, 2.0]])
    tx = aj.muon(0.5, scale="rms")
    updates, _ = tx.update(gradients, tx.init(params), params)
    expected = [[0.988775, 1.887053], [2.873428, 3.97035]]
    np.testing.assert_allclose(params + updates, expected, atol=1e-2)


@jax.numpy_dtype_promotion("standard")  # optax mixes dtypes.
def test_the_first_step_is_that_of_optax_without_nesterov():
    gradients = {
        "wide": normal(0, (16, 64)), "tall": normal(1, (64, 16)), "square": normal(2, (16, 16)),
        "one": graded((16, 48), 1.0), "graded": graded((16, 48)), "graded square": graded((20, 20)),
        "rank one": np.outer(normal(3, 16), normal(4, 40)),
    }  # fmt: skip
    gradients = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), gradients)
    txs = (
        optax.contrib.muon(1.0, nesterov=False, eps=1e-8),
        aj.muon(1.0, nesterov=False, eps=1e-8),
    )
    theirs, ours = (jax.jit(tx.update)(gradients, tx.init(gradients), gradients)[0] for tx in txs)
    for name in ("wide", "tall", "square", "one"):
        np.testing.assert_allclose(ours[name], theirs[name], rtol=0, atol=2e-5, err_msg=name)
    for name in gradients:
        own, expected = (np.linalg.svd(each[name])[1] for each in (ours, theirs))
        largest = expected.max()  # Of the shape's factor as well.
        np.testing.assert_allclose(own, expected, rtol=0, atol=1e-3 * largest, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("scale", ["original", "match_rms_adamw"])
def test_the_steps_of_torch(scale):
    """To 2e-2 of a step: its polynomials are of bfloat16."""
    torch = pytest.importorskip("torch")
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("torch.optim has no Muon before 2.9")
    for shape in ((6, 10), (10, 6)):
        gradients, start = normal(0, (6, *shape)), normal(1, shape)
        weight = torch.nn.Parameter(torch.tensor(start.T.copy(), dtype=torch.float32))
        theirs = torch.optim.Muon(
            [weight], lr=0.1, weight_decay=0.2, momentum=0.9, adjust_lr_fn=scale
        )
        for each in gradients:
            weight.grad = torch.tensor(each.T.copy(), dtype=torch.float32)
            theirs.step()
        ours = {"original": "spectral", "match_rms_adamw": "rms"}[scale]
        tx = aj.muon(0.1, b1=0.9, weight_decay=0.2, scale=ours)
        updates = run(tx, jnp.float32(gradients), jnp.float32(start))
        moved, other = np.sum(updates, axis=0), weight.detach().numpy().T - start
        assert np.linalg.norm(moved - other) < 2e-2 * np.linalg.norm(other)


@pytest.mark.slow
def test_the_steps_of_keras(monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    keras = pytest.importorskip("keras")
    if not hasattr(keras.optimizers, "Muon"):
        pytest.skip("keras.optimizers has no Muon before 3.11")
    for shape in ((6, 10), (10, 6)):
        gradients, start = normal(0, (6, *shape)), normal(1, shape)
        theirs = keras.optimizers.Muon(0.1, weight_decay=0.2, momentum=0.9, nesterov=True)
        variable = keras.Variable(start, dtype="float32", name="kernel")
        theirs.build([variable])
        for each in gradients:
            theirs.apply([keras.ops.convert_to_tensor(each, dtype="float32")])
        tx = aj.muon(0.1, b1=0.9, weight_decay=0.2, scale="rms")
        updates = run(tx, jnp.float32(gradients), jnp.float32(start))
        moved, other = np.sum(updates, axis=0), np.asarray(variable.value) - start
        assert np.linalg.norm(moved - other) < 1e-3 * np.linalg.norm(other)


# Arrays that are several matrices, or one that is not to be seen at once


def test_arrays_of_several_matrices_are_what_they_are_one_by_one():
    """Fused queries, keys and values, heads, convolutions, scanned layers; each has its own scale."""
    shapes = {
        "qkv": (6, 24), "query": (6, 2, 3), "out": (2, 3, 6), "conv": (3, 3, 2, 7), "layers": (3, 4, 7),
        "blocks/conv_1/kernel": (5, 2, 7), "torch": (7, 4),
    }  # fmt: skip
    axes = {
        "^qkv": aj.MatrixAxes(heads=3),
        "query": aj.MatrixAxes(rows=0, columns=(1, 2)),
        "out": aj.MatrixAxes(rows=(0, 1), columns=2),
        "torch": aj.MatrixAxes(rows=-1, columns=-2),
    }
    arrays = {
        name: jnp.asarray(normal(len(name), shape), jnp.float32) for name, shape in shapes.items()
    }

    def split(tree):
        whole = {
            "query": tree["query"].reshape(6, 6),
            "out": tree["out"].reshape(6, 6),
            "conv": tree["conv"].reshape(18, 7),
            "blocks/conv_1/kernel": tree["blocks/conv_1/kernel"].reshape(10, 7),
            "torch": tree["torch"].T,
        }
        parts = {f"qkv {i}": x for i, x in enumerate(jnp.split(tree["qkv"], 3, axis=1))}
        return whole | parts | {f"layer {i}": x for i, x in enumerate(tree["layers"])}

    by_axes = aj.muon(1.0, axes=axes, normuon=True)
    by_hand = aj.muon(1.0, normuon=True, where=True)
    updates, _ = jax.jit(by_axes.update)(arrays, by_axes.init(arrays), arrays)
    parts = split(arrays)
    expected, _ = jax.jit(by_hand.update)(parts, by_hand.init(parts), parts)
    for name, x in split(updates).items():
        np.testing.assert_allclose(x, expected[name], rtol=0, atol=5e-6, err_msg=name)


@pytest.mark.parametrize("scale", ["spectral", "ratio", "rms"])
def test_the_scale_is_of_the_matrix_and_not_of_the_array(scale):
    """A convolution of 3 × 3: out/in·9. Its first step has singular values from 0.68 to 1.14 times that."""
    factor = {"spectral": 1.0, "ratio": np.sqrt(32 / 72), "rms": 0.2 * np.sqrt(72)}[scale]
    params = {"conv": jnp.asarray(normal(0, (3, 3, 8, 32)), jnp.float32)}
    tx = aj.muon(1.0, scale=scale)
    with jax.disable_jit():
        updates, _ = tx.update(params, tx.init(params))
    values = np.linalg.svd(np.reshape(updates["conv"], (72, 32)))[1] / factor
    assert values.min() > 0.67
    assert values.max() < 1.14


# What may come


def hard_cases(dtype):
    limits = jnp.finfo(dtype)
    arrays = {
        "zeros": np.zeros((4, 6)),
        "one row": np.eye(4, 9)[:1] * 3,
        "rank one": np.outer(normal(0, 5), normal(1, 8)),
        "denormal": np.full((3, 4), float(limits.smallest_subnormal)),
        "huge": normal(2, (4, 4)) * float(limits.max) / 8,
        "of all sizes": normal(3, (4, 12)) * np.geomspace(float(limits.tiny), 1, 4)[:, None],
        "empty": np.zeros((0, 3)),
        "without columns": np.zeros((3, 0)),
        "one number": np.full((1, 1), -2.0),
        "of three axes": normal(4, (2, 3, 4)),
        "of four": normal(5, (2, 1, 3, 4)),
        "of five": normal(6, (1, 2, 2, 3, 2)),
        "vector": normal(7, 3),
        "number": np.ones(()),
    }
    return {name: jnp.asarray(x, dtype) for name, x in arrays.items()}


@pytest.mark.parametrize(
    "dtype",
    ["float32", *(pytest.param(x, marks=pytest.mark.slow) for x in ("float16", "bfloat16"))],
)
def test_hard_gradients_give_finite_updates(dtype):
    gradients = hard_cases(dtype)
    tx = aj.muon(1.0, normuon=True)
    state, update = tx.init(gradients), jax.jit(tx.update)
    for _ in range(3):
        updates, state = update(gradients, state, gradients)
        for name, x in updates.items():
            assert x.dtype == dtype
            assert x.shape == gradients[name].shape
            values = np.asarray(x, np.float64)
            assert np.isfinite(values).all(), name
            if name != "vector" and x.size:
                assert np.max(np.abs(values)) < 6, name
            if name == "zeros":
                assert not values.any()


def test_what_is_not_finite_stays_in_its_matrix():
    gradients = {"a": jnp.ones((2, 3, 4)), "b": jnp.ones((3, 4)), "c": jnp.ones(3)}
    gradients["a"] = gradients["a"].at[1, 0, 0].set(jnp.nan)
    tx = aj.muon(0.1)
    updates, _ = tx.update(gradients, tx.init(gradients), gradients)
    assert np.isfinite(updates["a"][0]).all()
    assert np.isnan(updates["a"][1]).all()
    assert all(np.isfinite(updates[name]).all() for name in "bc")


def test_wide_and_tall_are_the_same():
    x = jnp.asarray(normal(0, (4, 9)), jnp.float32)
    params = {"wide": x, "tall": x.T, "square": x[:, :4], "other": x[:, :4].T}
    tx = aj.muon(1.0, scale="rms")
    updates, _ = jax.jit(tx.update)(params, tx.init(params))
    np.testing.assert_allclose(updates["wide"], updates["tall"].T, atol=1e-6)
    np.testing.assert_allclose(updates["square"], updates["other"].T, atol=1e-6)


def test_the_length_of_gradients_does_not_matter():
    """But for ε."""
    x = normal(0, (4, 6))
    tx = aj.scale_by_muon(eps=0.0)
    update = jax.jit(tx.update)
    first, *others = (
        update(each, tx.init(each))[0]
        for each in (jnp.float32(x * size) for size in (1.0, 1e-12, 1e12, 1e30))
    )
    for each in others[:2]:
        np.testing.assert_allclose(each, first, atol=1e-5)
    assert np.isfinite(others[-1]).all()


def test_on_a_mesh_the_numbers_are_the_same(make_mesh, compiled):
    """Replicated, rows divided as in FSDP, columns divided, and layers one by one, over 8 devices."""
    specs = {
        "replicated": PartitionSpec(),
        "rows": PartitionSpec("x"),
        "columns": PartitionSpec(None, "x"),
        "layers": PartitionSpec("x"),
        "wte": PartitionSpec("x"),
    }
    shapes = {"layers": (8, 4, 6), "wte": (16, 4)}
    params = {
        name: jnp.asarray(normal(0, shapes.get(name, (16, 24))), jnp.float32) for name in specs
    }
    tx = aj.muon(0.1, weight_decay=0.1, normuon=True)
    expected, _ = jax.jit(tx.update)(params, tx.init(params), params)
    mesh = make_mesh(8)
    placed = {name: NamedSharding(mesh, spec) for name, spec in specs.items()}
    params = jax.device_put(params, placed)
    state, update = tx.init(params), jax.jit(tx.update)
    before = jax.tree.map(lambda x: x.sharding, state)
    updates, state = update(params, state, params)
    for name, x in updates.items():
        np.testing.assert_allclose(x, expected[name], rtol=0, atol=1e-6, err_msg=name)
        assert x.sharding.is_equivalent_to(placed[name], x.ndim)
    for x, old in zip(jax.tree.leaves(state), jax.tree.leaves(before), strict=True):
        assert not isinstance(old, NamedSharding) or x.sharding.is_equivalent_to(old, x.ndim)
    _, state = update(params, state, params)  # The count is on the mesh from here on.
    compiled.clear()
    update(params, state, params)
    assert not compiled


# All else of the library


PARAMS = {
    "embed": jnp.asarray(normal(0, (5, 4)), jnp.float32),
    "dense": {"kernel": jnp.asarray(normal(1, (4, 3)), jnp.float32), "bias": jnp.zeros(3)},
}


def loss(params, batch):
    x = params["embed"][batch] @ params["dense"]["kernel"] + params["dense"]["bias"][None]
    return jnp.mean(jnp.square(x - jnp.arange(3, dtype=x.dtype)[None]).astype(jnp.float32))


BATCHES = [jnp.array([0, 1, 2]), jnp.array([3, 4, 0])] * 8


def test_a_sweep_over_the_rates_is_a_vmap():
    rates = jnp.array([0.01, 0.1])
    many = jax.vmap(lambda rate: aj.muon(rate, adam_learning_rate=0.1 * rate, ns_steps=2))(rates)

    def updated(tx):
        return tx.update(PARAMS, tx.init(PARAMS), PARAMS)[0]

    found = jax.jit(jax.vmap(updated))(many)
    for i, rate in enumerate(rates.tolist()):
        alone = updated(aj.muon(rate, adam_learning_rate=0.1 * rate, ns_steps=2))
        here = jax.tree.map(lambda x, i=i: x[i], found)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), here, alone)


def test_training_with_it():
    """train_step, its measures of the rates, diagnose, and a saved run."""
    tx = aj.diagnose(aj.muon(0.05, adam_learning_rate=0.01, ns_steps=3))
    step = aj.train_step(loss)
    state, first = aj.TrainState.create(PARAMS, tx), None
    for batch in BATCHES:
        state, metrics = step(state, batch)
        first = metrics["loss"] if first is None else first
    assert metrics["loss"] < 0.8 * first
    assert metrics["learning_rate/muon"] == pytest.approx(0.05)
    assert metrics["learning_rate/rest"] == pytest.approx(0.01)


@pytest.mark.slow
def test_sweeps_comparisons_wrappers_and_checkpoints(tmp_path):
    def make(rate):
        return aj.TrainState.create(PARAMS, aj.muon(rate, ns_steps=2))

    step = aj.train_step(loss)
    swept = aj.sweep(make, step=step, batches=BATCHES, rate=jnp.array([0.01, 0.05]))
    assert np.isfinite(swept.objective).all()
    low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS)
    cases = (
        (PARAMS, aj.muon(0.05, ns_steps=2, storage={"mu": "int8"})),
        (PARAMS, aj.muon(0.05, ns_steps=2, mu_dtype=jnp.bfloat16)),
        (PARAMS, aj.muon(0.05, ns_steps=2, normuon=True, storage={"nu": "bfloat16"})),
        (low, aj.compensate(aj.muon(0.05, ns_steps=2))),
        (PARAMS, aj.multi_steps(aj.muon(0.05, ns_steps=2), 2)),
        (PARAMS, aj.chain(aj.clip_by_global_norm(1.0), aj.muon(0.05, ns_steps=2))),
    )
    for number, (params, tx) in enumerate(cases):
        run = tmp_path / f"run{number}"
        state = aj.TrainState.create(params, tx)
        for batch in BATCHES[:3]:
            state, _ = step(state, batch)
        aj.save_checkpoint(run, state)
        restored = aj.restore_checkpoint(run, aj.TrainState.create(params, tx))
        for batch in BATCHES[3:]:
            state, metrics = step(state, batch)
            restored, others = step(restored, batch)
        assert metrics["loss"] == others["loss"] < loss(PARAMS, BATCHES[0])
        jax.tree.map(np.testing.assert_array_equal, state.params, restored.params)


# Mistakes


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (jnp.ones(3), r"params\['w'\] is float32\[3\], and Muon takes matrices"),
        (jnp.ones(()), r"params\['w'\] is float32\[\], and Muon takes matrices"),
        (jnp.ones((2, 2), jnp.complex64), r"params\['w'\] is complex64\[2, 2\]: Muon takes no"),
    ],
)
def test_what_is_no_matrix_is_refused_by_its_path(array, message):
    with pytest.raises((TypeError, ValueError), match=message):
        aj.scale_by_muon().init({"w": array})
    tx = aj.muon(0.1)  # It has another one for them.
    params = {"w": array}
    assert np.isfinite(tx.update(params, tx.init(params), params)[0]["w"]).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ns_coeffs": "muon"}, "ns_coeffs='muon' is not known: it must be one of 'quintic'"),
        ({"ns_coeffs": (1.0, 2.0)}, r"ns_coeffs=\(1.0, 2.0\) must be one of .* \(a, b, c\)"),
        ({"ns_coeffs": ((1.0, 2.0, 3.0), (1.0,))}, "tuple of such triples"),
        ({"ns_coeffs": (1.0, np.nan, 3.0)}, "numbers known"),
        ({"ns_steps": 0}, "ns_steps=0 must be a whole number, 1 or more"),
        ({"ns_steps": 2.5}, "ns_steps=2.5 must be a whole number"),
        ({"scale": "frobenius"}, "scale='frobenius' is not known: it must be one of 'spectral'"),
        ({"b1": 1.0}, "b1 must be"),
        ({"normuon": "yes"}, "normuon='yes' is not known"),
        ({"b2": 0.9}, "b2=0.9 is the decay rate of NorMuon's .* give normuon=True as well"),
        ({"axes": (0, 1)}, "is out of place in Muon"),
        ({"beta": 0.9}, "muon takes no argument 'beta': here it is b1"),
        ({"weight_decay_mask": True}, "muon takes no argument 'weight_decay_mask': here it is mask"),
        ({"where": "kernel"}, "where is 'kernel'"),
        ({"rest": 0.1}, "rest of muon takes optax gradient transformations, got 0.1"),
        ({"rest": 3e-4}, r"give an optimizer with it: aj\.adamw\(0\.0003\)"),
        ({"rest": aj.sgd(0.1), "adam_learning_rate": 0.1}, "got both rest=sgd.*give one of them"),
        ({"storage": {"trace": "int8"}}, r"storage names the slots \['trace'\]"),
        ({"storage": "factored"}, "the slot 'mu' has a sign"),
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_is_named(settings, message):
    with pytest.raises((TypeError, ValueError), match=message):
        aj.muon(0.1, **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"axes": {"w": aj.MatrixAxes(0, 5)}}, r"params\['w'\] is .* names the axis 5"),
        ({"axes": {"w": aj.MatrixAxes(0, -2)}}, r"params\['w'\] is .* names the axis 0 twice"),
        ({"axes": {"w": aj.MatrixAxes(..., (0, 1))}}, "leaves no axis for the rows"),
        ({"axes": {"w": aj.MatrixAxes(heads=4)}}, "4 parts, which are not equal"),
        ({"axes": {"kernel": aj.MatrixAxes()}}, "the key 'kernel' in axes of Muon is found in no path"),
        ({"where": {"v": True}}, "where"),
        ({"where": {"w": True, "b": True}}, r"params\['b'\] is float32\[3\], and Muon takes matrices"),
    ],
    ids=str,
)  # fmt: skip
def test_what_does_not_fit_the_parameters_is_named_in_init(settings, message):
    with pytest.raises((TypeError, ValueError), match=message):
        aj.muon(0.1, **settings).init({"w": jnp.ones((4, 6)), "b": jnp.ones(3)})


def test_a_state_made_with_other_axes_is_refused_by_path():
    params = {"w": jnp.ones((4, 6))}
    tx, other = (
        aj.muon(0.1, normuon=True, axes=axes) for axes in (None, {"w": aj.MatrixAxes(1, 0)})
    )
    with pytest.raises(ValueError, match=r"\['w'\]"):
        tx.update(params, other.init(params), params)


def test_coefficients_are_static_and_print_as_they_came():
    rules = [Muon(ns_coeffs=given) for given in ([3, -3, 1], np.array([[3.0, -3.0, 1.0]]))]
    assert rules[0] == rules[1]
    assert hash(rules[0].ns_coeffs) == hash(((3.0, -3.0, 1.0),))
    names = {"muon": aj.muon, "adam": aj.adam, "sgd": aj.sgd, "MatrixAxes": aj.MatrixAxes}
    for tx in (
        aj.muon(0.1, ((3, -3, 1), (2, -1, 0)), rest=aj.sgd(0.5), axes={"w": aj.MatrixAxes(..., -1)}),
        aj.muon(0.1, adam_learning_rate=0.01, normuon=True, where={"w": True}, storage="bfloat16"),
    ):  # fmt: skip
        assert repr(eval(repr(tx), names)) == repr(tx)
