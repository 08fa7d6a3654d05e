"""Sweeps, against loops over every run."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
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
    # That of held-out batches, a dict of one number.
    given = {"step": step, "batches": batches, "learning_rate": RATES[:2], "seeds": 2}
    of_batches = aj.Evaluation(lambda w, batch: held_out(w), [batches[0]])
    by_batches = aj.sweep(make, evaluate=of_batches, **given)
    np.testing.assert_allclose(by_batches.objective, result.objective, rtol=1e-5)
    two = lambda w: {"loss": held_out(w), "size": jnp.sum(w)}  # noqa: E731
    advice = "'loss', 'size': choose one, objective=(lambda result: [^.]*)[.]"
    with pytest.raises(ValueError, match=advice) as caught:
        aj.sweep(make, evaluate=two, **given)
    chosen = eval(re.search(advice, str(caught.value))[1])
    by_choice = aj.sweep(make, evaluate=two, objective=chosen, **given)
    np.testing.assert_allclose(by_choice.objective, result.objective, rtol=1e-5)
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


def squares(w, batch):
    return jnp.mean((batch @ w - 1) ** 2)


DATA = np.asarray(np.random.default_rng(0).normal(size=(24, 3)), np.float32)


def in_order(seed):
    """Six batches of the data, in an order of the seed's."""
    return DATA[np.random.default_rng(seed).permutation(24).reshape(6, 4)]


@pytest.mark.usefixtures("devices")
def test_batches_by_seed_and_the_parameters_at_the_end():
    step = aj.train_step(squares)

    def make(learning_rate, seed):
        return aj.TrainState.create(start(seed), aj.adam(learning_rate))

    settings = {"learning_rate": RATES[:3], "seeds": [4, 0]}
    result = aj.sweep(
        make, step=step, batches=in_order, evaluate=jnp.sum, keep_params=True, **settings
    )
    assert result.outputs["params"].shape == (3, 2, 3)
    for i, rate in enumerate(RATES[:3]):
        for j, seed in enumerate([4, 0]):
            state, history = aj.fit(make(rate, seed), step, in_order(seed))
            np.testing.assert_allclose(result.outputs["loss"][i, j], history["loss"], rtol=2e-5)
            np.testing.assert_allclose(result.outputs["params"][i, j], state.params, rtol=2e-5)
    # Fresh seeds have orders of their own, and the outputs come with them.
    best = result.best(confirm=2)
    state, _ = aj.fit(make(best["learning_rate"], 1), step, in_order(1))
    np.testing.assert_allclose(best.sweep.outputs["params"][0, 0], state.params, rtol=2e-5)
    # A train without a seed: the order alone differs.
    fixed = aj.sweep(
        lambda learning_rate: make(learning_rate, 0), step=step, batches=in_order, **settings
    )
    state, history = aj.fit(make(RATES[1], 0), step, in_order(4))
    np.testing.assert_allclose(fixed.outputs["loss"][1, 0], history["loss"], rtol=2e-5)
    assert len(fixed.best(confirm=2).objective) == 2


def test_batches_that_a_generator_gives_once_are_there_for_the_confirmation():
    def make(learning_rate, seed):
        return aj.TrainState.create(start(seed), aj.adam(learning_rate))

    step = aj.train_step(squares)
    result = aj.sweep(make, step=step, batches=iter(in_order(0)), learning_rate=RATES, seeds=2)
    best = result.best(confirm=3)
    _, history = aj.fit(make(best["learning_rate"], 2), step, in_order(0))
    np.testing.assert_allclose(best.objective[0], history["loss"][-1], rtol=2e-5)


def test_optimizers_of_optax_are_swept_and_their_rates_looked_up():
    for make in (optax.sgd, optax.inject_hyperparams(optax.sgd)):
        metrics = ("loss",) if make is optax.sgd else ("loss", "learning_rate")
        result = aj.sweep(
            lambda rate, seed, make=make: aj.TrainState.create(start(seed), make(learning_rate=rate)),
            step=aj.train_step(squares, metrics=metrics),
            batches=in_order(0), rate=RATES[:2], seeds=2, keep_params=True,
        )  # fmt: skip
        own = aj.sweep(
            lambda rate, seed: aj.TrainState.create(start(seed), aj.sgd(rate)),
            step=aj.train_step(squares), batches=in_order(0), rate=RATES[:2], seeds=2, keep_params=True,
        )  # fmt: skip
        np.testing.assert_allclose(result.outputs["params"], own.outputs["params"], rtol=1e-5)
        for name in metrics:
            np.testing.assert_allclose(result.outputs[name], own.outputs[name], rtol=1e-5)


def test_what_is_wrong_with_batches_and_with_what_is_kept_is_named():
    def make(learning_rate, seed):
        return aj.TrainState.create(start(seed), aj.adam(learning_rate))

    def named(state, batch):
        return state, {"params": jnp.zeros(()), "loss": jnp.zeros(())}

    def swept(**options):
        options = {"step": aj.train_step(squares), "batches": in_order, "seeds": 2} | options
        return aj.sweep(make, learning_rate=RATES, **options)

    with pytest.raises(
        ValueError, match=r"batches\(seed=1\) comes to float32\[5, 4, 3\], and batches\(seed=0\)"
    ):
        swept(batches=lambda seed: in_order(seed)[seed:])
    with pytest.raises(ValueError, match=r"batches\(seed=0\) has no batch in it"):
        swept(batches=lambda seed: [])
    with pytest.raises(
        TypeError, match=r"batches\(seed=0\) is None of type NoneType: it must be the"
    ):
        swept(batches=lambda seed: None)
    with pytest.raises(TypeError, match="batches is 3 of type int: it must be the batches, a list"):
        swept(batches=3)
    with pytest.raises(TypeError, match="keep_params='params' must be True or False"):
        swept(keep_params="params")
    with pytest.raises(
        ValueError, match=r"evaluate and keep_params add \['params'\] to the metrics of step"
    ):
        swept(step=named, keep_params=True)
    with pytest.raises(
        ValueError, match="train returns what is kept, so let it return its parameters"
    ):
        aj.sweep(train, learning_rate=RATES, keep_params=True)
