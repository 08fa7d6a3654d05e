"""Sweeps, against loops over every run."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from swept_run import RATES, start, train

import adaptive_jax as aj


@pytest.fixture(params=["every device", "one device"])
def devices(request, monkeypatch):
    if request.param == "one device":
        one = jax.local_devices()[:1]
        monkeypatch.setattr(jax, "local_devices", lambda: one)


@pytest.mark.usefixtures("devices")
def test_equal_to_a_loop_over_every_combination():
    result = aj.sweep(train, learning_rate=RATES, b1=[0.5, 0.9], seeds=[3, 7, 8])
    expected = [
        [train(rate, b1, seed=seed) for seed in (3, 7, 8)] for rate in RATES for b1 in (0.5, 0.9)
    ]
    np.testing.assert_allclose(result.outputs, expected, rtol=2e-5)
    np.testing.assert_array_equal(result.objective, result.outputs[..., -1])
    np.testing.assert_array_equal(result.settings["learning_rate"], np.repeat(RATES, 2))
    np.testing.assert_array_equal(result.settings["b1"], [0.5, 0.9] * 4)
    np.testing.assert_array_equal(result.seeds, [3, 7, 8])
    best = int(np.argmin(np.mean(np.array(expected)[..., -1], axis=1)))
    assert result.best() == {"learning_rate": RATES[best // 2], "b1": [0.5, 0.9][best % 2]}
    assert type(result.best()["learning_rate"]) is float


@pytest.mark.usefixtures("devices")
def test_numbers_compile_once_and_never_again(compiled):
    def fresh(learning_rate, seed):
        return train(learning_rate, seed=seed)

    first = aj.sweep(fresh, learning_rate=RATES, seeds=3)
    aj.sweep(fresh, learning_rate=RATES / 2, seeds=3)
    again = aj.sweep(fresh, learning_rate=RATES, seeds=3)
    assert compiled.count("jit(_all_runs)") == 1
    np.testing.assert_array_equal(first.objective, again.objective)


@pytest.mark.usefixtures("devices")
def test_what_train_reads_from_elsewhere_is_read_in_each_call(compiled):
    found = {"power": 2.0, "data": np.ones(3, np.float32)}

    def power(learning_rate, seed):
        return jnp.sum(jnp.asarray(found["data"]) * jnp.asarray(learning_rate) ** found["power"])

    def swept():
        return aj.sweep(power, learning_rate=RATES).objective[:, 0]

    np.testing.assert_allclose(swept(), 3 * RATES**2, rtol=1e-6)
    found["power"] = 3.0
    np.testing.assert_allclose(swept(), 3 * RATES**3, rtol=1e-6)
    assert compiled.count("jit(_all_runs)") == 2
    # An array is an argument of the program: another of its shape compiles nothing.
    programs = []
    for factor in (2, 3, 4):
        found["data"] = jnp.full(3, factor, jnp.float32)
        np.testing.assert_allclose(swept(), 3 * factor * RATES**3, rtol=1e-6)
        programs.append(compiled.count("jit(_all_runs)"))
    assert programs[0] == programs[1] == programs[2]


@pytest.mark.usefixtures("devices")
def test_arrays_of_one_device_are_used_on_every_device():
    data = jax.device_put(jnp.arange(3.0), jax.devices()[-1])
    result = aj.sweep(lambda rate: jnp.sum(rate * data), rate=RATES)
    np.testing.assert_allclose(result.objective[:, 0], 3 * RATES, rtol=1e-6)


@pytest.mark.usefixtures("devices")
def test_a_mesh_that_is_set_is_not_that_of_the_runs(make_mesh):
    def final(learning_rate, seed):
        return train(learning_rate, seed=seed)[-1]

    expected = aj.sweep(final, learning_rate=[0.1, 0.5, 0.9], seeds=2)
    with jax.set_mesh(make_mesh(4)):
        found = aj.sweep(final, learning_rate=[0.1, 0.5, 0.9], seeds=2)
    np.testing.assert_array_equal(found.outputs, expected.outputs)


@pytest.mark.usefixtures("devices")
def test_choices_of_code_are_a_loop_around_the_rest():
    result = aj.sweep(
        train, learning_rate=RATES[:2], make=[aj.adam, aj.sgd], seeds=2, objective=jnp.min
    )
    for i in range(4):
        setting = result.setting(i)
        expected = [train(**setting, seed=seed) for seed in range(2)]
        np.testing.assert_allclose(result.outputs[i], expected, rtol=2e-5)
        np.testing.assert_allclose(result.objective[i], np.min(expected, axis=1), rtol=2e-5)
    assert result.settings["make"] == [aj.adam, aj.sgd, aj.adam, aj.sgd]
    shown = str(result)
    assert "adam" in shown
    assert "sgd" in shown


@pytest.mark.usefixtures("devices")
def test_a_maker_of_states_and_a_step():
    rng = np.random.default_rng(0)
    batches = [np.asarray(rng.normal(size=(4, 3)), np.float32) for _ in range(6)]
    step = aj.train_step(
        lambda w, batch: jnp.mean((batch @ w - 1) ** 2), metrics=("loss", "learning_rate")
    )

    def make(learning_rate, seed):
        return aj.TrainState.create(start(seed), aj.adam(learning_rate))

    result = aj.sweep(make, step=step, batches=batches, learning_rate=RATES, seeds=2)
    assert result.outputs["loss"].shape == (4, 2, 6)
    np.testing.assert_array_equal(result.objective, result.outputs["loss"][..., -1])
    for i, rate in enumerate(RATES):
        for seed in range(2):
            _, history = aj.fit(make(rate, seed), step, batches)
            np.testing.assert_allclose(result.outputs["loss"][i, seed], history["loss"], rtol=2e-5)
            np.testing.assert_allclose(
                result.outputs["learning_rate"][i, seed], history["learning_rate"], rtol=1e-6
            )
    with pytest.raises(TypeError, match="train makes a TrainState, and returned"):
        aj.sweep(train, step=step, batches=batches, learning_rate=RATES)
    with pytest.raises(ValueError, match="step and batches go together"):
        aj.sweep(make, step=step, learning_rate=RATES)
    with pytest.raises(ValueError, match="one structure and one shape"):
        aj.sweep(make, step=step, batches=[batches[0], batches[1][:2]], learning_rate=RATES)


def test_complex_parameters_of_a_train_state_descend():
    target = jnp.array([1 + 2j, 3 - 1j])

    def train(learning_rate):
        return aj.TrainState.create(jnp.zeros(2, jnp.complex64), aj.sgd(learning_rate))

    step = aj.train_step(lambda z, batch: jnp.sum(jnp.square(jnp.abs(z - target))) * batch)
    result = aj.sweep(train, step=step, batches=[np.float32(1)] * 100, learning_rate=[0.1, 0.2])
    assert np.all(result.objective < 1e-10)


def test_a_sweep_is_judged_by_an_evaluation_of_the_last_parameters():
    batches = [np.full(3, i, np.float32) for i in range(3)]
    step = aj.train_step(lambda w, batch: jnp.mean((w - batch) ** 2))

    def make(learning_rate, seed):
        return aj.TrainState.create(start(seed), aj.compensate(aj.sgd(learning_rate)))

    def held_out(w):
        return jnp.sum((w - 1) ** 2)

    result = aj.sweep(
        make, step=step, batches=batches, evaluate=held_out, learning_rate=RATES[:2], seeds=2
    )
    for i, rate in enumerate(RATES[:2]):
        for seed in range(2):
            state, _ = aj.fit(make(rate, seed), step, batches)
            expected = held_out(state.eval_params())
            np.testing.assert_allclose(result.objective[i, seed], expected, rtol=1e-5)
    np.testing.assert_array_equal(result.outputs["evaluation"], result.objective)
    by_loss = aj.sweep(
        make, step=step, batches=batches, evaluate=held_out, objective="loss", learning_rate=[0.1]
    )
    np.testing.assert_array_equal(by_loss.objective, by_loss.outputs["loss"][..., -1])
    with pytest.raises(ValueError, match="evaluate is for a sweep with step and batches"):
        aj.sweep(make, evaluate=held_out, learning_rate=RATES)
    with pytest.raises(
        TypeError, match=r"evaluate=3 must be a function of the parameters\. \(Values"
    ):
        aj.sweep(make, step=step, batches=batches, evaluate=3, learning_rate=RATES)
