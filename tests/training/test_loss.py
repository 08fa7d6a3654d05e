"""A loss function as a user writes it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from small_network import BATCH, PARAMS, assert_close, by_hand, mean_squared_error, network, run

import adaptive_jax as aj


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


def test_a_loss_of_three_arguments_is_told_about_batches():
    with pytest.raises(TypeError, match=r"params, x, y.*unpack it inside, x, y = batch"):
        aj.train_step(lambda params, x, y: 0.0)
    aj.train_step(lambda params, batch, rng, model_state, *, more=1: 0.0)
    aj.train_step(lambda params, batch, scale=1.0: 0.0)
