"""What a step computes: skipped steps, rounding, and what optimizers of optax are given."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_network import BATCH, PARAMS, assert_close, mean_squared_error, run

import adaptive_jax as aj


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


def test_parameters_in_bfloat16_learn_with_stochastic_rounding():
    def loss(params, batch):
        return jnp.sum(params * batch)

    start, ones = jnp.ones(1000, jnp.bfloat16), jnp.ones(1000, jnp.bfloat16)
    for rounding, expected in (("nearest", 1.0), ("stochastic", 0.9)):
        state = aj.TrainState.create(start, aj.sgd(1e-3))
        state, _ = run(aj.train_step(loss, rounding=rounding), state, [ones] * 100)
        assert float(state.params.astype(jnp.float32).mean()) == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize(
    "name",
    [
        "plateau",
        "optax's chain",
        "polyak",
        "momo",
        pytest.param("lbfgs", marks=pytest.mark.slow),
        pytest.param("nested", marks=pytest.mark.slow),
    ],
)
def test_optimizers_that_look_at_the_loss(name):
    """As in the loop that optax documents."""
    tx = {
        "plateau": aj.chain(aj.adam(0.1), optax.contrib.reduce_on_plateau(patience=2)),
        "optax's chain": optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau(patience=2)),
        "polyak": optax.polyak_sgd(1.0),
        "lbfgs": optax.lbfgs(linesearch=optax.scale_by_backtracking_linesearch(5)),
        "momo": optax.contrib.momo(0.1),
        "nested": aj.skip_nonfinite(
            aj.diagnose(aj.multi_steps(aj.chain(optax.lbfgs(), aj.clip(1.0)), 1))
        ),
    }[name]
    loss = lambda params: mean_squared_error(params, BATCH)  # noqa: E731

    @jax.jit
    def by_hand(params, opt_state):
        value, gradients = jax.value_and_grad(loss)(params)
        extra = {"value": value, "grad": gradients, "value_fn": loss}
        updates, opt_state = tx.update(gradients, opt_state, params, **extra)
        return optax.apply_updates(params, updates), opt_state

    with jax.numpy_dtype_promotion("standard"):
        params, opt_state = PARAMS, tx.init(PARAMS)
        for _ in range(5):
            params, opt_state = by_hand(params, opt_state)
        parts = 4 if name in ("polyak", "lbfgs") else 1
        step = aj.train_step(mean_squared_error, metrics=("loss",), accumulate=parts)
        state = aj.TrainState.create(PARAMS, tx)
        state = state.replace(opt_state=jax.tree.map(jnp.copy, state.opt_state))
        state, _ = run(step, state, [BATCH] * 5)
    assert_close(state.params, params, 1e-5 if parts == 1 else 1e-3)
    assert loss(state.params) < loss(PARAMS)


def test_extra_arguments_are_those_of_optax():
    """The unscaled loss of the whole batch; a member gets what it takes, by name or at all."""
    seen = {}

    def init(params):
        return optax.EmptyState()

    def takes_all(updates, state, params=None, **extra):
        seen["all"] = extra
        value = extra["value_fn"](jax.tree.map(lambda x: x + 1, params))
        assert extra["grad"] is not updates  # A chain has changed them.
        return jax.tree.map(
            lambda u, g: 0 * u + value + extra["value"] * g, updates, extra["grad"]
        ), state

    def takes_one(updates, state, params=None, *, value):
        seen["one"] = value
        return updates, state

    def takes_none(updates, state, params=None):
        return updates, state

    extra, plain = optax.GradientTransformationExtraArgs, optax.GradientTransformation
    members = [extra(init, takes_one), plain(init, takes_none), extra(init, takes_all)]
    tx = aj.chain(aj.clip(1e-3), *members)

    def loss(params, batch, rng, model_state):
        return params * jnp.mean(batch), model_state + 1

    step = aj.train_step(loss, accumulate=2, loss_scale=8.0)
    state = aj.TrainState.create(
        jnp.array(2.0), tx, rng=jax.random.key(0), model_state=jnp.zeros(())
    )
    with pytest.warns(UserWarning, match="'learning_rate' is left out"):
        state, metrics = step(state, jnp.arange(4.0))
    assert set(seen["all"]) == {"value", "grad", "value_fn"}
    assert "one" in seen
    assert metrics["loss"] == 3.0
    assert state.model_state == 2.0
    # The loss at θ + 1, and the loss times its gradient.
    assert state.params == 2.0 + 4.5 + 3.0 * 1.5


def test_the_number_of_steps_wraps_round():
    """Where it stopped, all further steps would draw the same numbers and round the same way."""

    def loss(params, batch, rng):
        return jnp.sum(params.astype(jnp.float32)) * batch, jax.random.uniform(rng)

    tx, step = aj.sgd(1e-3), aj.train_step(loss, has_aux=True)
    params = jnp.ones(1000, jnp.bfloat16)
    state = aj.TrainState.create(params, tx, rng=jax.random.key(0))
    state = state.replace(step=jnp.int32(2**31 - 2))
    state, metrics = run(step, state, [jnp.ones(())] * 100)
    assert len({float(each["aux"]) for each in metrics}) == 100
    assert float(state.params.astype(jnp.float32).mean()) == pytest.approx(0.9, abs=2e-3)


def test_another_library_that_does_not_take_8_bits_is_named():
    params = {"w": jnp.ones(2, jnp.float8_e4m3fn)}
    state = aj.TrainState.create(params, optax.adamw(0.1))
    step = aj.train_step(lambda p, b: jnp.sum(p["w"].astype(jnp.float32)), metrics=("loss",))
    with pytest.raises(TypeError, match=r"\['w'\] is float8_e4m3fn.*one of this library's"):
        step(state, None)
