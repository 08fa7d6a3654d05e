"""The same network in every model library: the same training step takes it to the same loss."""

from __future__ import annotations

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adaptive_jax as aj

PLAIN = {
    (layer, name): array
    for layer, arrays in importlib.import_module("with_plain_pytrees")
    .init(jax.random.key(7))
    .items()
    for name, array in arrays.items()
}


def from_linen(path, shape):
    layer = {"Conv_0": "first", "Conv_1": "second", "Dense_0": "output"}[path[-2]]
    return PLAIN[layer, path[-1]]


def from_nnx(path, shape):
    return PLAIN[path[-3], path[-2]]  # The last is the value of an nnx.Param.


def from_haiku(path, shape):
    layer = {"conv2_d": "first", "conv2_d_1": "second", "linear": "output"}[path[-2]]
    return PLAIN[layer, {"w": "kernel", "b": "bias"}[path[-1]]]


def from_equinox(path, shape):
    """Channels first, and (out, in)."""
    array = PLAIN[path[-2], {"weight": "kernel", "bias": "bias"}[path[-1]]]
    if path[-1] == "bias":
        return array.reshape(shape)
    if array.ndim == 4:
        return array.transpose(3, 2, 0, 1)
    return array.reshape(4, 4, 32, 10).transpose(3, 2, 0, 1).reshape(shape)


LIBRARIES = {
    "with_flax_linen": from_linen,
    "with_flax_nnx": from_nnx,
    "with_haiku": from_haiku,
    "with_equinox": from_equinox,
}


def names(path):
    return [str(getattr(key, "key", getattr(key, "name", key))) for key in path]


def losses(example, params):
    from digits import batches, load

    train, _ = load()
    state = aj.TrainState.create(params, aj.adam(0.003))
    step = aj.train_step(example.loss_function)
    _, history = aj.fit(state, step, batches(*train), steps=30)
    return history["loss"]


@jax.numpy_rank_promotion("allow")
@pytest.mark.parametrize("library", LIBRARIES)
def test_the_same_loss_from_the_same_weights(library):
    plain = importlib.import_module("with_plain_pytrees")
    example = importlib.import_module(library)
    params = jax.tree_util.tree_map_with_path(
        lambda path, x: LIBRARIES[library](names(path), x.shape), example.init(jax.random.key(0))
    )
    expected = losses(plain, plain.init(jax.random.key(7)))
    assert expected[-1] < expected[0] / 2
    np.testing.assert_allclose(losses(example, params), expected, rtol=1e-3)


@jax.numpy_rank_promotion("allow")
def test_batch_statistics_and_dropout_of_nnx():
    from digits import accuracy, batches, load
    from flax import nnx

    example = importlib.import_module("with_flax_nnx")
    train, (images, labels) = load()
    params, first = example.init_normalized(jax.random.key(0))
    state = aj.TrainState.create(params, aj.adam(0.003), model_state=first)
    step = aj.train_step(example.normalized_loss)
    state, history = aj.fit(state, step, batches(*train), steps=60)
    assert history["loss"][-10:].mean() < history["loss"][0] / 4
    assert int(state.model_state["dropout"]["rngs"]["count"].get_value()) == 60
    mean = state.model_state["norm"]["mean"].get_value()
    assert jnp.all(mean != first["norm"]["mean"].get_value())
    network = nnx.merge(example.NORMALIZED, state.params, state.model_state)
    network.eval()
    assert accuracy(network(images), labels) > 85


# ---------------------------------------------------------------------------- NNX's own Optimizer

LEAN = aj.Blocks(min_size=0)
FOR_NNX = {
    "int8": aj.adam(1e-2, storage=LEAN),
    "int16": aj.adam(1e-2, storage=aj.Blocks(bits=16, min_size=0)),
    "factored": aj.adam(1e-2, storage={"nu": aj.Factored(min_size=2)}),
    "masked": aj.adam(
        1e-2, storage=aj.Masked(LEAN, lambda tree: jax.tree.map(lambda x: x.ndim > 1, tree))
    ),
    "compensate": aj.compensate(aj.adam(1e-2, storage=LEAN)),
    "multi_steps": aj.multi_steps(aj.adam(1e-2, storage=LEAN), 2),
    "skip_nonfinite": aj.skip_nonfinite(aj.adam(1e-2, storage=LEAN)),
    "diagnose": aj.diagnose(aj.adam(1e-2, storage=LEAN)),
    "monitor": aj.chain(aj.monitor({"norm": aj.global_norm}), aj.sgd(1e-2, 0.9, storage=LEAN)),
    "optax": optax.partition({"all": aj.adam(1e-2, storage=LEAN)}, "all"),
    "partition": aj.partition(
        {"a": aj.adam(1e-2, storage=LEAN), "b": None}, [("kernel", "a"), (".*", "b")]
    ),
    "masked group": aj.masked(
        aj.adam(1e-2, storage=LEAN), lambda tree: jax.tree.map(lambda x: x.ndim > 1, tree)
    ),
}


@pytest.mark.parametrize(
    "tx",
    [
        pytest.param(tx, id=name, marks=() if name in ("int8", "factored") else pytest.mark.slow)
        for name, tx in FOR_NNX.items()
    ],
)
def test_nnx_optimizer_takes_the_same_steps(tx):
    """It hands the NamedTuples of a lean state back as mappings, their names in another order."""
    from flax import nnx

    model = nnx.Linear(6, 4, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    params = {name: getattr(model, name).get_value() for name in ("bias", "kernel")}
    state, update = tx.init(params), jax.jit(tx.update)

    @nnx.jit
    def step(model, optimizer, gradients):
        optimizer.update(model, gradients)

    for number in range(4):
        gradients = jax.tree.map(lambda x, n=number: jnp.cos(3.0 * n + x), params)
        step(model, optimizer, nnx.State({k: nnx.Param(x) for k, x in gradients.items()}))
        updates, state = update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        for name, expected in params.items():
            np.testing.assert_allclose(
                getattr(model, name).get_value(), expected, rtol=1e-6, atol=1e-7
            )


# ---------------------------------------------------------------------------- whole modules


def matrices(params):
    return jax.tree.map(lambda x: jnp.ndim(x) > 1, params)


WHOLE = {
    "weight decay and mask": aj.adamw(1e-3, weight_decay=0.1, mask=matrices),
    "int8": aj.adamw(1e-3, storage=aj.Masked(aj.Blocks(min_size=0), matrices)),
    "factored": aj.adamw(1e-3, storage={"nu": aj.Factored(min_size=2)}),
    "multi_steps": aj.multi_steps(aj.adamw(1e-3), 2),
    "skip_nonfinite": aj.skip_nonfinite(aj.adamw(1e-3)),
    "compensate": aj.compensate(aj.adamw(1e-3)),
    "diagnose": aj.diagnose(aj.adamw(1e-3)),
    "chain": aj.chain(aj.monitor({"norm": aj.global_norm}), optax.add_decayed_weights(0.1)),
    "optax.chain": optax.chain(aj.clip_by_global_norm(1.0), aj.adamw(1e-3)),
    "patterns": aj.partition(
        {"a": aj.adamw(1e-3), "b": aj.sgd(0.1, 0.9)}, [("^w$", "a"), ("", "b")]
    ),
    "function": aj.partition(
        {"a": aj.adamw(1e-3), "b": aj.sgd(0.1, 0.9)},
        lambda tree: jax.tree.map(lambda x: "a" if x.ndim > 1 else "b", tree),
    ),
    "masked": aj.masked(aj.adamw(1e-3), matrices),
}


@pytest.mark.parametrize("tx", WHOLE.values(), ids=WHOLE)
def test_whole_modules_as_parameters(tx):
    """What has no gradient is not looked at: functions, text, numbers and arrays of integers."""
    import equinox as eqx

    class Model(eqx.Module):
        w: jax.Array
        b: jax.Array
        frozen: jax.Array | None
        table: jax.Array
        activation: object
        layers: int
        training: bool
        name: str

    array = jnp.linspace(-1, 1, 12).reshape(3, 4)
    rest = [jnp.arange(3), jax.nn.relu, 3, True, "model"]
    dtype = jnp.bfloat16 if tx is WHOLE["compensate"] else jnp.float32
    model = Model(array.astype(dtype), jnp.ones(4), jnp.ones(2), *rest)
    gradients = Model(jnp.cos(array).astype(dtype), jnp.ones(4), *[None] * 6)
    filtered = eqx.filter(model, eqx.is_inexact_array)
    only_trained = Model(model.w, model.b, *[None] * 6)
    state = tx.init(filtered)
    for wrap in (lambda update: update, eqx.filter_jit):
        whole, whole_state = wrap(tx.update)(gradients, state, model)
        updates, new_state = tx.update(gradients, state, only_trained)
        # What fuses differently rounds differently; outside of jit it is one program.
        for got, expected in zip(
            jax.tree.leaves((whole, whole_state)),
            jax.tree.leaves((updates, new_state)),
            strict=True,
        ):
            np.testing.assert_allclose(got, expected, rtol=1e-5)
        assert jax.tree.structure(whole_state) == jax.tree.structure(state)
        moved = aj.apply_updates(model, whole)
        assert (moved.name, moved.layers, moved.activation) == ("model", 3, jax.nn.relu)
        assert moved.frozen is model.frozen
        with jax.numpy_dtype_promotion("standard"):
            theirs = eqx.apply_updates(model, whole)
        assert eqx.tree_equal((moved.b, moved.table), (theirs.b, theirs.table))
    exact = aj.exact_params(model, state)
    assert (exact.w.dtype, exact.name, exact.table.dtype) == (jnp.float32, "model", jnp.int32)


@pytest.mark.parametrize("tx", WHOLE.values(), ids=WHOLE)
def test_gradients_of_integers(tx):
    """`allow_int=True` gives float0 for them: they are left alone, as with a gradient of None."""
    params = {"w": jnp.linspace(-1, 1, 12).reshape(3, 4), "table": jnp.arange(2)}
    gradients = jax.grad(lambda params: jnp.sum(params["w"] ** 2), allow_int=True)(params)
    state = tx.init({**params, "table": None})
    for update in (tx.update, jax.jit(tx.update)):
        updates, new_state = update(gradients, state, params)
        assert updates["table"] is None
        assert jax.tree.structure(new_state) == jax.tree.structure(state)
        assert aj.apply_updates(params, updates)["table"] is params["table"]
        assert jnp.all(jnp.isfinite(updates["w"]))


def test_a_parameter_with_a_gradient_is_still_checked():
    tx, state = aj.adamw(0.1), aj.adamw(0.1).init({"w": jnp.ones(3), "f": None})
    for bad, message in (
        (jax.nn.relu, "params\\['f'\\] is .*custom_jvp"),
        (jnp.arange(3), "int32\\[3\\]"),
    ):
        with pytest.raises(TypeError, match=message):
            tx.update({"w": jnp.ones(3), "f": jnp.ones(3)}, state, {"w": jnp.ones(3), "f": bad})
