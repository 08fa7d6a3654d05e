"""The training step and the loop, against loops written by hand with optax."""

from __future__ import annotations

import dataclasses
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import adaptive_jax as aj

rng = np.random.default_rng(0)
PARAMS = {
    "hidden": jnp.asarray(rng.normal(size=(5, 8)) / 2, jnp.float32),
    "bias": jnp.zeros((1, 8)),
    "output": jnp.asarray(rng.normal(size=(8, 1)) / 2, jnp.float32),
}
INPUTS = jnp.asarray(rng.normal(size=(16, 5)), jnp.float32)
BATCH = {"inputs": INPUTS, "targets": jnp.sin(INPUTS.sum(1, keepdims=True))}


def network(params, inputs):
    return jnp.tanh(inputs @ params["hidden"] + params["bias"]) @ params["output"]


def mean_squared_error(params, batch):
    return jnp.mean(jnp.square(network(params, batch["inputs"]) - batch["targets"]))


def by_hand(tx, loss_fn, params, batches):
    """What users write around optax."""

    @jax.jit
    def step(params, opt_state, batch):
        loss, gradients = jax.value_and_grad(loss_fn)(params, batch)
        updates, opt_state = tx.update(gradients, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    opt_state, losses = tx.init(params), []
    for batch in batches:
        params, opt_state, loss = step(params, opt_state, batch)
        losses.append(loss)
    return params, opt_state, np.array(losses)


def run(step, state, batches):
    all_metrics = []
    for batch in batches:
        state, metrics = step(state, batch)
        all_metrics.append(metrics)
    return state, all_metrics


def assert_close(got, expected, tolerance=1e-6):
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance), got, expected
    )


def test_it_is_the_loop_written_by_hand():
    """In the last bit: 1 - b is exact inside of the step too."""
    batches = [jax.tree.map(lambda x, i=i: jnp.roll(x, i, 0), BATCH) for i in range(20)]
    tx = aj.chain(aj.clip_by_global_norm(0.1), aj.adamw(0.01, weight_decay=0.1))
    params, opt_state, losses = by_hand(tx, mean_squared_error, PARAMS, batches)
    step = aj.train_step(mean_squared_error)
    state, metrics = run(step, aj.TrainState.create(PARAMS, tx), batches)
    assert_close(state.params, params, 1e-7)
    assert_close(state.opt_state, opt_state, 1e-7)
    np.testing.assert_allclose([m["loss"] for m in metrics], losses, rtol=1e-6)
    theirs = optax.chain(optax.clip_by_global_norm(0.1), optax.adamw(0.01, weight_decay=0.1))
    with jax.numpy_dtype_promotion("standard"):
        expected, _, _ = by_hand(theirs, mean_squared_error, PARAMS, batches)
        state, _ = run(step, aj.TrainState.create(PARAMS, theirs), batches)
    assert_close(state.params, expected)
    assert_close(params, expected, 1e-4)


def test_a_new_learning_rate_compiles_nothing_and_nothing_else_compiles_twice():
    step = aj.train_step(mean_squared_error)
    state = aj.TrainState.create(PARAMS, aj.adam(0.01))
    for rate in (0.01, 0.02, 0.03):
        state = state.replace(tx=aj.adam(rate))
        state, metrics = step(state, BATCH)
        state, metrics = step(state, BATCH)
        assert float(metrics["learning_rate"]) == pytest.approx(rate)
    assert step._jitted._cache_size() == 1
    assert repr(state.tx).startswith("adam(learning_rate=0.03, b1=0.9, b2=0.999")
    assert state.step == 6


def test_the_users_arrays_stay():
    params = jax.tree.map(jnp.copy, PARAMS)
    state = aj.TrainState.create(params, aj.adam(0.01))
    new, _ = aj.train_step(mean_squared_error)(state, BATCH)
    assert np.isfinite(params["hidden"]).all()
    assert state.params["hidden"].is_deleted()
    handed_over = aj.TrainState.create(params, aj.adam(0.01), copy=False)
    assert handed_over.params is params
    assert not new.params["hidden"].is_deleted()


@pytest.mark.parametrize("parts", [2, 8])
def test_accumulation_is_the_whole_batch(parts):
    tx = aj.adam(0.01)
    whole, whole_metrics = run(
        aj.train_step(mean_squared_error, metrics=("loss", "gradient_norm")),
        aj.TrainState.create(PARAMS, tx),
        [BATCH] * 5,
    )
    step = aj.train_step(mean_squared_error, accumulate=parts, metrics=("loss", "gradient_norm"))
    state, metrics = run(step, aj.TrainState.create(PARAMS, tx), [BATCH] * 5)
    assert_close(state.params, whole.params)
    assert_close(metrics, whole_metrics)


def test_accumulation_needs_the_memory_of_one_part_and_compiles_the_model_once():
    params = {"w": jnp.ones((64, 64)), "v": jnp.ones((64, 64))}
    traced = []

    def loss(params, batch):
        traced.append(batch.shape)
        x = batch
        for _ in range(6):
            x = jnp.tanh(jnp.tanh(x @ params["w"]) @ params["v"])
        return jnp.mean(x)

    def compiled(rows, **settings):
        state = aj.TrainState.create(params, aj.adam(0.01))
        return aj.train_step(loss, **settings).lower(state, jnp.ones((rows, 64))).compile()

    one = compiled(512)
    traced.clear()
    eight = compiled(8 * 512, accumulate=8)
    assert set(traced) == {(512, 64)}
    assert len(traced) <= 3  # The shape of the loss, the scan, and its fixed point.
    assert eight.as_text().count("tanh(") <= 1.1 * one.as_text().count("tanh(")
    temporaries = [each.memory_analysis().temp_size_in_bytes for each in (one, eight)]
    assert temporaries[1] <= 1.1 * temporaries[0]


def test_a_key_for_every_step_and_part():
    def loss(params, batch, rng):
        noise = jax.random.uniform(rng)
        return params * noise, noise

    state = aj.TrainState.create(jnp.ones(()), aj.sgd(0.0), rng=jax.random.key(3))
    again = aj.TrainState.create(jnp.ones(()), aj.sgd(0.0), rng=jax.random.key(3))
    step = aj.train_step(loss, has_aux=True)
    _, first = run(step, state, [jnp.zeros(4)] * 3)
    _, second = run(step, again, [jnp.zeros(4)] * 3)
    noise = [float(m["aux"]) for m in first]
    assert len(set(noise)) == 3
    assert noise == [float(m["aux"]) for m in second]
    state = aj.TrainState.create(jnp.ones(()), aj.sgd(0.0), rng=jax.random.key(3))
    _, metrics = aj.train_step(loss, has_aux=True, accumulate=4)(state, jnp.zeros(4))
    assert len({float(x) for x in metrics["aux"]}) == 4
    with pytest.raises(ValueError, match=r"takes rng, and the state has none.*rng=jax.random.key"):
        step(aj.TrainState.create(jnp.ones(()), aj.sgd(0.0)), jnp.zeros(4))


@pytest.mark.parametrize("parts", [1, 2])
def test_model_state_goes_through(parts):
    def loss(params, batch, model_state):
        mean = 0.9 * model_state["mean"] + 0.1 * jnp.mean(batch)
        return params * jnp.mean(batch), {"mean": mean}, mean

    step = aj.train_step(loss, has_aux=True, accumulate=parts)
    state = aj.TrainState.create(jnp.ones(()), aj.sgd(0.1), model_state={"mean": jnp.zeros(())})
    state, metrics = step(state, jnp.full(4, 2.0))
    expected = 0.2 if parts == 1 else 0.9 * 0.2 + 0.2
    assert float(state.model_state["mean"]) == pytest.approx(expected)
    assert metrics["aux"].shape == (() if parts == 1 else (parts,))
    assert float(state.params) == pytest.approx(0.8)


def test_a_step_that_is_not_finite_changes_no_bit():
    def loss(params, batch, model_state):
        return jnp.sum(params["w"] * batch), {"seen": model_state["seen"] + batch[0]}

    step = aj.train_step(loss, skip_nonfinite=True)
    params = {"w": jnp.array([0.0, -0.0, 1.0])}
    create = aj.TrainState.create
    state = create(params, aj.adam(0.1), model_state={"seen": jnp.zeros(())})
    state, _ = step(state, jnp.ones(3))
    kept = (state.params, state.opt_state, state.model_state)
    before = [np.asarray(x).tobytes() for x in jax.tree.leaves(kept)]
    for bad in (jnp.nan, jnp.inf):
        state, metrics = step(state, jnp.array([1.0, bad, 1.0]))
    after = (state.params, state.opt_state, state.model_state)
    assert [np.asarray(x).tobytes() for x in jax.tree.leaves(after)] == before
    assert state.skipped == metrics["skipped"] == 2
    assert state.step == 3
    state, metrics = step(state, jnp.ones(3))
    assert metrics["skipped"] == 2
    assert state.opt_state[0].count == 2


def test_a_loss_scale_that_adapts():
    """In float16, gradients of 1e-8 are zero, and 2^16 is infinite."""

    def loss(params, batch):
        return jnp.sum(params * batch)

    batch = jnp.full(2, 1e-8)
    plain = aj.train_step(loss, compute_dtype=jnp.float16)
    state, _ = plain(aj.TrainState.create(jnp.ones(2), aj.sgd(1e6)), batch)
    np.testing.assert_array_equal(state.params, 1.0)

    def scaled_loss(params, batch):  # The gradient's cast is what underflows: batch is float32.
        return jnp.sum((params.astype(jnp.float16) * batch.astype(jnp.float16)).astype(jnp.float32))

    scale = aj.LossScale(2.0**17, growth_interval=3)
    state = aj.TrainState.create(jnp.ones(2), aj.sgd(0.1), loss_scale=scale)
    step = aj.train_step(scaled_loss)
    state, _ = step(state, jnp.ones(2))  # 2^17 is infinite in float16: skipped.
    np.testing.assert_array_equal(state.params, 1.0)
    assert (state.loss_scale.scale, state.skipped) == (2.0**16, 1)
    state, _ = step(state, jnp.ones(2))
    assert (state.loss_scale.scale, state.skipped) == (2.0**15, 2)
    for _ in range(3):
        state, _ = step(state, jnp.ones(2))
    np.testing.assert_allclose(state.params, 0.7, rtol=1e-6)
    assert (state.loss_scale.scale, state.skipped, state.loss_scale.good_steps) == (2.0**16, 2, 0)
    constant = aj.train_step(scaled_loss, loss_scale=1024.0)
    state, _ = constant(aj.TrainState.create(jnp.ones(2), aj.sgd(0.1)), jnp.ones(2))
    np.testing.assert_allclose(state.params, 0.9, rtol=1e-6)
    bad = jnp.bool_(False)
    shrunk = [float(aj.LossScale(each).after(bad).scale) for each in (4.0, 1.5, 1.0, 0.25)]
    assert shrunk == [2.0, 1.0, 1.0, 0.25]
    with pytest.raises(ValueError, match="give one"):
        constant(aj.TrainState.create(jnp.ones(2), aj.sgd(0.1), loss_scale=scale), jnp.ones(2))


def test_computing_in_bfloat16():
    seen = []

    def loss(params, batch):
        seen.append({x.dtype for x in jax.tree.leaves((params, batch))})
        return mean_squared_error(params, batch)

    step = aj.train_step(loss, compute_dtype=jnp.bfloat16)
    state, metrics = run(step, aj.TrainState.create(PARAMS, aj.adam(0.01)), [BATCH] * 5)
    assert seen[0] == {jnp.dtype(jnp.bfloat16)}
    assert metrics[0]["loss"].dtype == jnp.float32
    assert {x.dtype for x in jax.tree.leaves(state.params)} == {jnp.dtype(jnp.float32)}
    params, _, _ = by_hand(aj.adam(0.01), mean_squared_error, PARAMS, [BATCH] * 5)
    assert_close(state.params, params, 0.05)


def test_parameters_in_bfloat16_learn_with_stochastic_rounding():
    def loss(params, batch):
        return jnp.sum(params * batch)

    start, ones = jnp.ones(1000, jnp.bfloat16), jnp.ones(1000, jnp.bfloat16)
    for rounding, expected in (("nearest", 1.0), ("stochastic", 0.9)):
        state = aj.TrainState.create(start, aj.sgd(1e-3))
        state, _ = run(aj.train_step(loss, rounding=rounding), state, [ones] * 100)
        assert float(state.params.astype(jnp.float32).mean()) == pytest.approx(expected, abs=2e-3)


def test_metrics():
    from adaptive_jax.training import METRICS

    schedule = optax.linear_schedule(0.1, 0.0, 10)
    step = aj.train_step(mean_squared_error, metrics=METRICS)
    state = aj.TrainState.create(PARAMS, aj.sgd(schedule))
    for count in range(3):
        params = jax.tree.map(np.asarray, state.params)
        loss, gradients = jax.value_and_grad(mean_squared_error)(params, BATCH)
        state, metrics = step(state, BATCH)
        assert set(metrics) == set(METRICS)
        norm = np.sqrt(sum(np.sum(np.square(x)) for x in jax.tree.leaves(gradients)))
        size = np.sqrt(sum(np.sum(np.square(x)) for x in jax.tree.leaves(params)))
        rate = 0.1 * (1 - count / 10)
        expected = {
            "loss": loss,
            "learning_rate": rate,
            "skipped": 0,
            "gradient_norm": norm,
            "update_norm": rate * norm,
            "parameter_norm": size,
            "update_ratio": rate * norm / size,
        }
        assert_close(metrics, expected, 1e-5)


@pytest.mark.parametrize(
    ("tx", "rates"),
    [
        (aj.chain(optax.identity(), aj.adam(0.1)), [0.1, 0.1]),
        (aj.skip_nonfinite(aj.adam(optax.linear_schedule(0.1, 0.0, 2))), [0.1, 0.05]),
        (aj.compensate(aj.multi_steps(aj.sgd(optax.linear_schedule(0.1, 0.0, 2)), 2)), [0.1, 0.1]),
        (aj.interop.torch.adagrad(0.1, lr_decay=1.0), [0.1, 0.05]),
        (aj.scale_by_adam(), None),
        (optax.adam(0.1), None),
    ],
    ids=["chain", "skip_nonfinite", "nested", "decay", "none", "optax"],
)
def test_the_learning_rate_in_force(tx, rates):
    step = aj.train_step(mean_squared_error)
    with jax.numpy_dtype_promotion("standard"):
        _, metrics = run(step, aj.TrainState.create(PARAMS, tx), [BATCH] * 2)
    if rates is None:
        assert "learning_rate" not in metrics[0]
    else:
        np.testing.assert_allclose([m["learning_rate"] for m in metrics], rates, rtol=1e-6)


def test_a_vmapped_state_is_a_sweep():
    rates = jnp.array([0.001, 0.01, 0.1])
    states = jax.vmap(lambda rate: aj.TrainState.create(PARAMS, aj.adam(rate)))(rates)
    step = aj.train_step(mean_squared_error)
    many = jax.jit(jax.vmap(step, in_axes=(0, None)), donate_argnums=0)
    for _ in range(3):
        states, metrics = many(states, BATCH)
    assert metrics["loss"].shape == (3,)
    for index, rate in enumerate(rates):
        params, _, _ = by_hand(aj.adam(float(rate)), mean_squared_error, PARAMS, [BATCH] * 3)
        assert_close(jax.tree.map(lambda x, i=index: x[i], states.params), params, 1e-4)
    # Nothing of the trace stays in the step.
    state, _ = step(aj.TrainState.create(PARAMS, aj.adam(0.1)), BATCH)
    assert np.isfinite(state.params["bias"]).all()


WIDE = {
    "hidden": jnp.asarray(rng.normal(size=(8, 16)) / 3, jnp.float32),
    "bias": jnp.zeros((1, 16)),
    "output": jnp.asarray(rng.normal(size=(16, 1)) / 4, jnp.float32),
}
WIDE_BATCH = {
    "inputs": jnp.asarray(rng.normal(size=(32, 8)), jnp.float32),
    "targets": jnp.ones((32, 1)),
}
PLACEMENTS = {
    "replicated": {"hidden": (), "bias": (), "output": ()},
    "sharded like FSDP": {"hidden": ("data",), "bias": (None, "data"), "output": ("data",)},
}


def on_eight_devices(placement):
    mesh = Mesh(np.array(jax.devices()[:8]), ("data",))
    shardings = {
        name: NamedSharding(mesh, PartitionSpec(*axes))
        for name, axes in PLACEMENTS[placement].items()
    }
    params = jax.device_put(WIDE, shardings)
    return shardings, params, jax.device_put(WIDE_BATCH, NamedSharding(mesh, PartitionSpec("data")))


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_data_parallel(placement, parts):
    """As on one device; the optimizer's state lies where its parameters do, and stays there."""
    shardings, params, batch = on_eight_devices(placement)
    step = aj.train_step(mean_squared_error, accumulate=parts)
    alone, _ = run(
        aj.train_step(mean_squared_error),
        aj.TrainState.create(WIDE, aj.adam(0.01)),
        [WIDE_BATCH] * 3,
    )
    state = aj.TrainState.create(params, aj.adam(0.01))
    for tree in (state.params, state.opt_state[0].mu):
        for name, sharding in shardings.items():
            assert tree[name].sharding.is_equivalent_to(sharding, tree[name].ndim), name
    state, _ = run(step, state, [batch] * 3)
    for tree in (state.params, state.opt_state[0].mu, state.opt_state[0].nu):
        for name, sharding in shardings.items():
            assert tree[name].sharding.is_equivalent_to(sharding, tree[name].ndim), name
    assert_close(state.params, alone.params)
    assert step._jitted._cache_size() == 1


@jax.numpy_dtype_promotion("standard")  # For optax.
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_no_communication_beside_that_of_the_gradient(placement):
    """The optimizer, the scalars and the loss add none to the step written by hand."""
    _, params, batch = on_eight_devices(placement)
    tx = optax.adam(0.01)

    def by_hand(params, opt_state, batch):
        loss, gradients = jax.value_and_grad(mean_squared_error)(params, batch)
        updates, opt_state = tx.update(gradients, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    def communication(lowered):
        operations = (
            "all-reduce",
            "all-gather",
            "reduce-scatter",
            "all-to-all",
            "collective-permute",
        )
        text = lowered.compile().as_text()
        return {
            name: text.count(f" {name}(") + text.count(f" {name}-start(") for name in operations
        }

    theirs = jax.jit(by_hand, donate_argnums=(0, 1)).lower(params, tx.init(params), batch)
    state = aj.TrainState.create(params, aj.adam(0.01))
    ours = aj.train_step(mean_squared_error).lower(state, batch)
    assert communication(ours) == communication(theirs)
    assert sum(communication(ours).values()) > 0


@pytest.mark.parametrize(
    ("loss", "settings", "message"),
    [
        (
            lambda p, b: network(p, b["inputs"]),
            {},
            r"the loss is float32\[16, 1\].*one real number",
        ),
        (lambda p, b: (mean_squared_error(p, b), 1), {}, "a tuple of 2 for the loss.*has_aux=True"),
        (mean_squared_error, {"has_aux": True}, "must return loss, aux.*has_aux=True"),
        (
            mean_squared_error,
            {"accumulate": 3},
            r"batch\['inputs'\] is float32\[16, 5\].*accumulate=3",
        ),
        (lambda p, b: None, {}, "returned None for the loss. Is its return missing"),
        (
            lambda p, b: mean_squared_error(p, {**b, "inputs": b["inputs"][:8]}),
            {"accumulate": 2, "batch": {**BATCH, "inputs": BATCH["inputs"][:8]}},
            r"in common: batch\['inputs'\] is float32\[8, 5\], batch\['targets'\] is float32\[16",
        ),
        (
            lambda p, b, model_state: (mean_squared_error(p, b), {"a": jnp.ones(2)}),
            {},
            r"new model state differs from the model state at \['a'\]",
        ),
    ],
    ids=["vector", "aux", "no aux", "split", "none", "lengths", "model state"],
)
def test_a_mistake_is_named_and_loses_nothing(loss, settings, message):
    state = aj.TrainState.create(PARAMS, aj.adam(0.01), model_state={"a": jnp.ones(3)})
    batch = settings.get("batch", BATCH)
    settings = {name: value for name, value in settings.items() if name != "batch"}
    with pytest.raises((TypeError, ValueError), match=message):
        aj.train_step(loss, **settings)(state, batch)
    state, _ = aj.train_step(mean_squared_error)(state, BATCH)
    assert state.step == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: aj.train_step(mean_squared_error, metrics=("norm",)),
            "metrics='norm' is not known",
        ),
        (lambda: aj.train_step(mean_squared_error, metrics="loss"), "is a string"),
        (lambda: aj.train_step(mean_squared_error, rounding="up"), "rounding='up'"),
        (lambda: aj.train_step(mean_squared_error, accumulate=0), "accumulate=0"),
        (lambda: aj.train_step(3), "loss_fn=3"),
        (lambda: aj.train_step(mean_squared_error, loss_scale=0.0), "loss_scale=0.0"),
        (
            lambda: aj.TrainState.create(PARAMS, aj.sgd(1.0), loss_scale=aj.LossScale(-1.0)),
            "scale=-1.0",
        ),
        (
            lambda: aj.TrainState.create(PARAMS, aj.sgd(1.0), loss_scale=aj.LossScale(factor=1.0)),
            "factor must be above 1",
        ),
        (lambda: aj.train_step(mean_squared_error)(PARAMS, BATCH), "takes a TrainState, got"),
        (lambda: aj.TrainState.create({"w": jnp.arange(3)}, aj.sgd(1.0)), r"\['w'\] is int32\[3\]"),
        (lambda: aj.TrainState.create(PARAMS, 0.1), "takes optax gradient transformations"),
        (lambda: aj.TrainState.create(PARAMS, aj.sgd(1.0), rng=0), "rng=0 is no random key"),
        (lambda: aj.fit(aj.train_step(mean_squared_error), create(), [BATCH]), r"call fit\(state,"),
        (lambda: aj.fit(create(), aj.train_step(mean_squared_error), 3), "batches=3 must be an it"),
    ],
    ids=range(14),
)
def test_bad_arguments(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()


def create():
    return aj.TrainState.create(PARAMS, aj.adam(0.01))


def test_fit():
    step = aj.train_step(mean_squared_error)
    expected, metrics = run(step, create(), [BATCH] * 70)
    state, history = aj.fit(create(), step, [BATCH] * 70)
    assert_close(state.params, expected.params, 0)
    assert type(history["loss"]) is np.ndarray
    np.testing.assert_array_equal(history["loss"], [m["loss"] for m in metrics])
    state, history = aj.fit(state, step, iter([BATCH] * 70), steps=3)
    assert (state.step, history["loss"].shape) == (73, (3,))
    state, history = aj.fit(state, step, [])
    assert history == {}


def test_fit_ends_when_the_callback_says_so():
    seen = []

    def callback(state, metrics):
        seen.append(int(state.step))
        return len(seen) == 2

    _, history = aj.fit(create(), aj.train_step(mean_squared_error), [BATCH] * 9, callback=callback)
    assert (seen, len(history["loss"])) == ([1, 2], 2)


def test_an_interrupt_returns_what_was_reached():
    usual = signal.getsignal(signal.SIGINT)

    def callback(state, metrics):
        if state.step == 3:
            signal.raise_signal(signal.SIGINT)

    step = aj.train_step(mean_squared_error)
    state, history = aj.fit(create(), step, [BATCH] * 9, callback=callback)
    assert (state.step, len(history["loss"])) == (3, 3)
    assert signal.getsignal(signal.SIGINT) is usual
    state, _ = step(state, BATCH)

    def twice(state, metrics):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        aj.fit(state, step, [BATCH] * 9, callback=twice)
    assert signal.getsignal(signal.SIGINT) is usual


def test_an_error_in_the_loop_brings_the_state_along():
    def batches():
        yield BATCH
        yield BATCH
        raise OSError("the file ends here")

    with pytest.raises(OSError, match="ends here") as caught:
        aj.fit(create(), aj.train_step(mean_squared_error), batches())
    assert caught.value.state.step == 2
    assert "after 2 steps" in caught.value.__notes__[0]
    with pytest.raises(ValueError, match="ended after 2 of 5 steps"):
        aj.fit(create(), aj.train_step(mean_squared_error), [BATCH] * 2, steps=5)
    with pytest.raises(ValueError, match="steps=-1"):
        aj.fit(create(), aj.train_step(mean_squared_error), [BATCH], steps=-1)


def test_fit_shows_a_bar(capsys):
    aj.fit(create(), aj.train_step(mean_squared_error), [BATCH] * 70, progress=True)
    assert "70step" in capsys.readouterr().err.replace(" ", "")


def test_a_state_is_a_pytree():
    state = create()
    leaves, treedef = jax.tree.flatten(state)
    again = treedef.unflatten(leaves)
    assert isinstance(again, aj.TrainState)
    assert dataclasses.asdict(again).keys() == dataclasses.asdict(state).keys()
    assert len(leaves) == len(set(map(id, leaves)))


def test_a_state_that_was_used_up_says_so():
    state = aj.TrainState.create(jnp.ones(3), aj.sgd(0.1))
    step = aj.train_step(lambda params, batch: jnp.sum(params * batch))
    step(state, 1.0)
    with pytest.raises(ValueError, match=r"used up by a step before.*the state that it returned"):
        step(state, 1.0)


def test_a_loss_of_three_arguments_is_told_about_batches():
    with pytest.raises(TypeError, match=r"params, x, y.*unpack it inside, x, y = batch"):
        aj.train_step(lambda params, x, y: 0.0)
    aj.train_step(lambda params, batch, rng, model_state, *, more=1: 0.0)
    aj.train_step(lambda params, batch, scale=1.0: 0.0)


def test_an_optimizer_that_was_not_called():
    with pytest.raises(TypeError, match=r"Call it: adam\("):
        aj.TrainState.create(jnp.ones(3), aj.adam)


def test_a_state_shows_shapes_and_its_optimizer():
    state = aj.TrainState.create({"w": jnp.ones((2, 3))}, aj.sgd(0.1), rng=jax.random.key(0))
    shown = "TrainState(step=int32[], params={'w': float32[2, 3]}, opt_state=EmptyState(), "
    assert repr(state).startswith(shown + "tx=sgd(learning_rate=0.1), rng=key<fry>[]")
    assert repr(jax.tree.map(lambda x: None, state)).startswith("TrainState(")
