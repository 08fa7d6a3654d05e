"""The ports of PyTorch's and Keras's optimizers, without PyTorch and Keras: recorded trajectories.

`test_interop_live.py` does the same against the libraries themselves.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import trajectories

import adaptive_jax as aj
from adaptive_jax.interop import keras, torch

RECORDED = np.load(Path(__file__).parents[1] / "data" / "trajectories.npz")
SETTINGS = json.loads(str(RECORDED["settings"]))
OPTIMIZERS = [
    (library, name) for library, (_, names) in trajectories.LIBRARIES.items() for name in names
]


@pytest.mark.parametrize("dtype", ["float64", pytest.param("float32", marks=pytest.mark.seldom)])
@pytest.mark.parametrize(("library", "name"), OPTIMIZERS)
def test_replays_what_was_recorded(library, name, dtype):
    expected = RECORDED[f"{library} {name} {dtype}"]
    first = trajectories.problem(dtype)[1]
    for settings, theirs in zip(SETTINGS[f"{library} {name}"], expected, strict=True):
        settings = {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}
        ours = trajectories.ours(library, name, settings, dtype)[RECORDED["steps"]]
        tolerance = trajectories.tolerance(library, settings, dtype)
        assert trajectories.error(ours, theirs, first) <= tolerance, settings


def test_the_recorded_settings_are_those_that_are_drawn_now():
    for library, (draw, names) in trajectories.LIBRARIES.items():
        for name in names:
            drawn = [draw(name, index) for index in trajectories.recorded(name)]
            drawn = json.loads(json.dumps(drawn))
            assert SETTINGS[f"{library} {name}"] == drawn


@pytest.mark.parametrize("library", ["torch", "keras"])
def test_importing_needs_neither_library(library):
    code = (
        f"import sys; sys.modules['{library}'] = None; import adaptive_jax as aj; "
        f"aj.interop.{library}.adam(1e-3)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(("library", "name"), OPTIMIZERS)
def test_repr_is_the_call(library, name):
    tx = getattr(getattr(aj.interop, library), name)()
    assert repr(eval(repr(tx), {"torch": torch, "keras": keras})) == repr(tx)


def test_hyperparameters_are_data():
    rates = jnp.array([0.1, 0.2])
    params = {"w": jnp.ones(3)}

    def updates_of(tx):
        return tx.update(params, tx.init(params), params)[0]["w"]

    for factory in (torch.adamw, keras.adamw):
        many = jax.vmap(updates_of)(jax.vmap(factory)(rates))
        alone = [updates_of(factory(float(rate))) for rate in rates]
        np.testing.assert_allclose(many, alone, rtol=1e-6)


def test_another_value_compiles_nothing_again():
    update = jax.jit(lambda tx, grads, state, params: tx.update(grads, state, params))
    params = {"w": jnp.ones(3)}
    for clip in (0.5, 1.0, 2.0):
        tx = keras.adam(clipnorm=clip, epsilon=clip * 1e-7, weight_decay=clip)
        update(tx, params, tx.init(params), params)
    assert update._cache_size() == 1


def test_muon_of_keras_is_its_formula():
    """In float64, in which Keras's own norm is one of float32."""
    rng, b, eta = np.random.default_rng(3), 0.75, 0.25
    gradients, expected = rng.standard_normal((2, 3, 5)), rng.standard_normal((3, 5))
    with jax.enable_x64(True):
        tx = keras.muon(eta, momentum=b, ns_steps=2, weight_decay=0.5, rms_rate=0.5, muon_a=3.0)
        params, state, mu = [expected], None, 0
        for gradient in gradients:
            state = tx.init(params) if state is None else state
            updates, state = tx.update([gradient], state, params)
            params = [params[0] + np.asarray(updates[0])]
            mu = b * mu + gradient
            x = b * mu + gradient
            x = x / (np.linalg.norm(x) + 1e-7)
            for _ in range(2):
                square = x @ x.T
                x = 3.0 * x + (-4.775 * square + 2.0315 * square @ square) @ x
            expected = expected - eta * 0.5 * expected - eta * 0.5 * 5**0.5 * x
            np.testing.assert_allclose(params[0], expected, rtol=1e-12)


def test_mask_keeps_an_l2_penalty_off():
    params = {"w": jnp.ones(2), "b": jnp.ones(2)}
    tx = torch.sgd(lr=1.0, weight_decay=0.5, mask={"w": True, "b": False})
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    np.testing.assert_array_equal(updates["w"], -0.5)
    np.testing.assert_array_equal(updates["b"], 0.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: torch.adam([jnp.ones(2)]), r"lr is a list with 1 leaves in torch\.adam"),
        (lambda: torch.adam([jnp.ones(2)], lr=0.1), r"torch\.adam: multiple values .* no parameters"),
        (lambda: torch.adam(lr=-1.0), r"lr=-1.0 is out of range in torch\.adam"),
        (lambda: torch.adam(lr=None), r"lr=None is out of place in torch\.adam"),
        (lambda: torch.adam(betas=0.9), r"betas=0.9 is out of place in torch\.adam.*2 numbers"),
        (lambda: torch.adam(betas=(0.9, 1.0)), r"betas\[1\]=1.0 is out of range"),
        (lambda: torch.rmsprop(alpha=1.5), r"alpha=1.5 is out of range in torch\.rmsprop"),
        (lambda: torch.adam(amsgrad="yes"), r"amsgrad='yes' is not known"),
        (lambda: torch.adam(learning_rate=1.0), "unexpected keyword argument 'learning_rate'"),
        (lambda: torch.sgd(nesterov=True), "nesterov=True needs a momentum and no dampening"),
        (lambda: torch.adam(betas=(jnp.array([0.9]), 0.999)), r"betas\[0\] has shape \(1,\) in torch"),
        (lambda: torch.adam(betas=np.array([0.9, 0.99, 0.999])), "betas=.* is out of place.*2 numbers"),
        (lambda: torch.sgd(lr=lambda: 0.1), r"lr=<lambda> in torch\.sgd cannot be called with the number"),
        (lambda: keras.adam(lambda: 0.1), r"learning_rate=<lambda> in keras\.adam .*lambda count: …"),
        (lambda: keras.adam(beta_1=lambda: 0.9), r"beta_1=<lambda> in keras\.adam cannot be called"),
        (lambda: keras.adam(beta_1=-0.1), r"beta_1=-0.1 is out of range in keras\.adam"),
        (lambda: keras.adam(epsilon=None), r"epsilon=None is out of place in keras\.adam"),
        (lambda: keras.adam(clipnorm=1.0, clipvalue=1.0), "only one of clipnorm, clipvalue"),
        (lambda: keras.adam(use_ema=True), "use_ema=True is no part of an optimizer here"),
        (lambda: keras.sgd(gradient_accumulation_steps=4), "wrap the optimizer in optax.MultiSteps"),
        (lambda: keras.sgd(loss_scale_factor=2.0), "loss_scale_factor=2.0 is no part"),
        (lambda: keras.muon(exclude_layers="head"), r"exclude_layers='head' must be a list"),
        (lambda: keras.muon(exclude_layers=["("]), r"exclude_layers\[0\] is '\(', which is no regular"),
        (lambda: keras.muon(muon_b=None), "muon_b=None must be a number"),
        (lambda: keras.muon(momentum=1.5), r"momentum=1.5 is out of range in keras\.muon"),
        (lambda: keras.muon(adam_beta_1=1.0), r"adam_beta_1=1.0 is out of range in keras\.muon"),
    ],
)  # fmt: skip
def test_bad_arguments_are_refused_by_the_name_that_they_were_given_under(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()


def test_two_betas_may_be_an_array():
    expected = repr(torch.adam(betas=(0.5, 0.75)))
    assert repr(torch.adam(betas=np.array([0.5, 0.75]))) == expected
    assert repr(torch.adam(betas=[0.5, np.array(0.75)])) == expected
    assert repr(torch.adam(betas=jnp.array([0.5, 0.75]))) == expected
