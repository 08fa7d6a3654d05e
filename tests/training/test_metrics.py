"""What a step measures, and which learning rate is in force."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_network import BATCH, PARAMS, assert_close, create, mean_squared_error, run

import adaptive_jax as aj


def test_metrics():
    from adaptive_jax.training import METRICS

    schedule = optax.linear_schedule(0.1, 0.0, 10)
    step = aj.train_step(mean_squared_error, metrics=METRICS)
    tx = aj.diagnose(aj.sgd(schedule), ("update_norm",), group_by=lambda path: "all")
    state = aj.TrainState.create(PARAMS, tx)
    for count in range(3):
        params = jax.tree.map(np.asarray, state.params)
        loss, gradients = jax.value_and_grad(mean_squared_error)(params, BATCH)
        state, metrics = step(state, BATCH)
        assert set(metrics) == set(METRICS)
        assert not any(metrics.pop("nonfinite").values())
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
            "loss_at_eval_params": loss,
            "measured": {"update_norm": {"all": rate * norm}},
        }
        assert_close(metrics, expected, 1e-5)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_loss_at_both_parameters(accumulate):
    """Of one batch: where it is trained, and where it is evaluated."""
    names = ("loss", "loss_at_eval_params")
    for make in (
        lambda: aj.schedule_free_sgd(0.1),
        lambda: aj.compensate(aj.chain(aj.sgd(0.1), aj.average(0.5))),
        lambda: aj.skip_nonfinite(aj.lookahead(aj.adam(0.1), 3)),
    ):
        state = aj.TrainState.create(PARAMS, make())
        step = aj.train_step(mean_squared_error, metrics=names, accumulate=accumulate)
        for _ in range(3):
            expected = [
                float(mean_squared_error(params, BATCH))
                for params in (state.params, state.eval_params())
            ]
            state, metrics = step(state, BATCH)
            np.testing.assert_allclose([metrics[name] for name in names], expected, rtol=1e-5)
        assert abs(expected[0] / expected[1] - 1) > 1e-4


def test_the_loss_of_evaluation_costs_nothing_where_it_is_not_asked_for():
    state = aj.TrainState.create(PARAMS, aj.schedule_free_sgd(0.1))

    def flops(*names):
        lowered = aj.train_step(mean_squared_error, metrics=("loss", *names)).lower(state, BATCH)
        return lowered.compile().cost_analysis()["flops"]

    assert flops() < flops("loss_at_eval_params")


def test_what_is_diagnosed_is_in_the_history():
    from adaptive_jax import plotting

    inner = aj.diagnose(aj.scale_by_adam(), ("cosine",))
    tx = aj.diagnose(aj.chain(inner, aj.sgd(0.1)), ("update_norm", "moving"))
    state = aj.TrainState.create(PARAMS, tx)
    step = aj.train_step(mean_squared_error, metrics=("loss", "measured"))
    expected = []

    def callback(state, metrics):
        found = state.opt_state.measured, state.opt_state.inner_state[0].measured
        expected.append(jax.tree.map(np.asarray, found))

    _, history = aj.fit(state, step, [BATCH] * 5, callback=callback)
    found = jax.tree.map(lambda *each: np.stack(each), *expected)
    jax.tree.map(np.testing.assert_array_equal, history["measured"], found)
    step = aj.train_step(mean_squared_error, metrics=("measured",))
    state = aj.TrainState.create(PARAMS, aj.diagnose(aj.sgd(0.1)))
    _, history = aj.fit(state, step, [BATCH] * 5)
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    ax = plotting.measurements(history, "update_norm", ax=Figure().subplots())
    drawn = {each.get_label(): each.get_ydata() for each in ax.get_lines()}
    np.testing.assert_array_equal(
        drawn["['bias']"], history["measured"]["update_norm"]["['bias']"].astype(np.float64)
    )
    with pytest.raises(ValueError, match=r"aj.diagnose measures, and there is none.*diagnose\(tx"):
        step(aj.TrainState.create(PARAMS, aj.sgd(0.1)), BATCH)


RAMP = optax.linear_schedule(0.1, 0.0, 2)


PLATEAU = optax.contrib.reduce_on_plateau(factor=0.5, patience=1, atol=10.0)


@pytest.mark.parametrize(
    ("tx", "rates"),
    [
        (aj.chain(optax.identity(), aj.adam(0.1)), [0.1, 0.1]),
        (aj.skip_nonfinite(aj.adam(RAMP)), [0.1, 0.05]),
        (aj.compensate(aj.multi_steps(aj.sgd(RAMP), 2)), [0.1, 0.1]),
        (aj.diagnose(aj.sgd(RAMP), ("cosine",)), [0.1, 0.05]),
        (aj.interop.torch.adagrad(0.1, lr_decay=1.0), [0.1, 0.05]),
        (aj.interop.keras.sgd(0.1, momentum=0.9, weight_decay=0.1), [0.1, 0.1]),
        (aj.chain(aj.adam(RAMP), aj.scale_by_learning_rate(0.01, flip_sign=False)), [1e-3, 5e-4]),
        (aj.chain(optax.clip(1.0), optax.add_decayed_weights(0.1, True), aj.sgd(0.1)), [0.1, 0.1]),
        (optax.inject_hyperparams(aj.adam)(learning_rate=RAMP), [0.1, 0.05]),
        (aj.multi_steps(optax.inject_hyperparams(aj.sgd)(RAMP), 1), [0.1, 0.05]),
        (optax.chain(optax.clip(1.0), optax.inject_hyperparams(optax.sgd)(0.1)), [0.1, 0.1]),
        (aj.chain(aj.sgd(0.1), PLATEAU), [0.1, 0.05]),
    ],
    ids=range(12),
)
def test_the_learning_rate_in_force(tx, rates):
    step = aj.train_step(mean_squared_error, metrics=("learning_rate",))
    with jax.numpy_dtype_promotion("standard"):
        _, metrics = run(step, aj.TrainState.create(PARAMS, tx), [BATCH] * 2)
    np.testing.assert_allclose([m["learning_rate"] for m in metrics], rates, rtol=1e-6)


def test_the_learning_rate_of_a_step_that_is_skipped():
    tx = optax.inject_hyperparams(optax.sgd)(RAMP)
    step = aj.train_step(lambda p, b: jnp.sum(p * b), skip_nonfinite=True)
    _, metrics = run(step, aj.TrainState.create(jnp.ones(2), tx), [1.0, jnp.nan, 1.0])
    np.testing.assert_allclose([m["learning_rate"] for m in metrics], [0.1, 0.05, 0.05])


def test_what_was_not_finite_is_named_and_in_which_steps():
    """A gradient, a loss, and a parameter that the update would make infinite; what an estimator adds."""

    def loss(params, batch):
        return batch["loss"] + jnp.sum(params["w"] * batch["w"]) + jnp.sum(params["big"])

    def estimator(value_and_grad, params, batch, step, key):
        return *value_and_grad(params), {"more": batch["more"]}

    given = {"loss": 1.0, "w": jnp.ones(2), "more": jnp.ones(())}
    batches = [given, given | {"w": jnp.array([1.0, jnp.nan])}, given, given | {"loss": jnp.inf}]
    batches += [given | {"more": jnp.array(jnp.nan)}]
    params = {"w": jnp.zeros(2), "big": jnp.full(1, -3.3e38)}
    for rate, overflows in ((1.0, False), (3e38, True)):
        step = aj.train_step(
            loss, skip_nonfinite=True, metrics=("skipped", "nonfinite"), gradient=estimator
        )
        state = aj.TrainState.create(params, aj.sgd(rate))
        with pytest.warns(UserWarning, match="estimator makes more for the optimizer"):
            state, history = aj.fit(state, step, batches)
        found = {k: np.flatnonzero(x).tolist() for k, x in history["nonfinite"].items()}
        assert found == {
            "loss": [1, 3], "more": [4], "params['w']": [1],
            "params['big']": [0, 1, 2, 3, 4] if overflows else [],
        }  # fmt: skip
        assert history["skipped"].tolist() == ([1, 2, 3, 4, 5] if overflows else [0, 1, 1, 2, 3])


@pytest.mark.parametrize(
    "tx",
    [
        aj.scale_by_adam(),
        optax.adam(0.1),
        optax.sgd(RAMP),
        optax.masked(aj.adam(RAMP), {"hidden": True, "bias": False, "output": True}),
        optax.partition({"a": optax.inject_hyperparams(aj.sgd)(0.1), "b": aj.sgd(0.2)}, "a"),
        aj.chain(aj.sgd(0.1), optax.scale(0.5)),
        optax.chain(optax.sgd(0.1), PLATEAU),
        aj.chain(aj.sgd(0.1), optax.scale_by_schedule(lambda count: 0.5)),
    ],
    ids=range(8),
)
def test_a_learning_rate_that_cannot_be_known(tx):
    """Named, it is an error and loses nothing; else one warning, whatever compiles again."""
    state = aj.TrainState.create(PARAMS, tx)
    with jax.numpy_dtype_promotion("standard"):
        named = aj.train_step(mean_squared_error, metrics=("learning_rate", "loss"))
        with pytest.raises(
            ValueError, match=r"names 'learning_rate', and none is known of .*inject"
        ):
            named(state, BATCH)
        step = aj.train_step(mean_squared_error)
        with pytest.warns(UserWarning, match="metric 'learning_rate' is left out: none") as caught:
            state, metrics = step(state, BATCH)
        assert len(caught) == 1
        assert set(metrics) == {"loss", "skipped"}
        half = jax.tree.map(lambda x: x[:8], BATCH)
        state, _ = step(state, half)
        _, metrics = aj.train_step(mean_squared_error, metrics=("loss", "skipped"))(state, BATCH)
    assert set(metrics) == {"loss", "skipped"}


def test_the_ratio_of_update_and_parameter_is_that_of_diagnose():
    """0 where the parameters are: there is nothing to compare with."""

    def loss(params, batch):
        return jnp.sum(params * batch)

    tx = aj.diagnose(aj.sgd(0.1), ("update_ratio",), group_by=lambda path: "all")
    step = aj.train_step(loss, metrics=("update_ratio",))
    for start in (0.0, 1e-30, 3.0):
        state, metrics = step(aj.TrainState.create(jnp.full(4, start), tx), jnp.ones(4))
        assert metrics["update_ratio"] == state.opt_state.measured["update_ratio"]["all"]
        assert np.isfinite(metrics["update_ratio"])
        assert start or metrics["update_ratio"] == 0


def test_metrics_outlive_the_state():
    """A number that no step changes is not the state's own array: users may donate that."""
    step = aj.train_step(mean_squared_error)
    state, first = step(create(), BATCH)
    state, second = step(state, BATCH)
    jax.tree.map(lambda x: x.delete(), dataclasses.replace(state, tx=None))
    assert (first["skipped"], second["skipped"]) == (0, 0)


GROUPS = {"hidden": "a", "bias": "b", "output": "c"}


def masked(tx, *names):
    return aj.masked(tx, {name: name in names for name in GROUPS})


@pytest.mark.parametrize(
    ("tx", "rates"),
    [
        (aj.partition({"a": aj.adam(RAMP), "b": aj.sgd(0.04), "c": None}, GROUPS),
         {"": [0.1, 0.05], "/a": [0.1, 0.05], "/b": [0.04, 0.04]}),
        (aj.skip_nonfinite(aj.chain(
            aj.clip(1.0),
            aj.partition({"a": aj.adam(RAMP), "b": aj.sgd(0.04), "c": aj.lion(0.01)}, GROUPS),
            aj.scale_by_learning_rate(0.5, flip_sign=False))),
         {"": [0.05, 0.025], "/a": [0.05, 0.025], "/b": [0.02, 0.02], "/c": [0.005, 0.005]}),
        (aj.partition({"a": aj.partition({1: aj.sgd(0.1), 2: aj.sgd(0.2)},
                                         {"hidden": 1, "bias": 2, "output": 1}),
                       "b": optax.inject_hyperparams(optax.sgd)(0.3)},
                      {"hidden": "a", "bias": "a", "output": "b"}),
         {"": [0.3] * 2, "/a/1": [0.1] * 2, "/a/2": [0.2] * 2, "/b": [0.3] * 2}),
        # Preconditioners in groups, and one rate for all.
        (aj.chain(aj.partition({"a": aj.scale_by_adam(), "b": aj.scale_by_lion(), "c": None}, GROUPS),
                  masked(aj.add_decayed_weights(0.1), "hidden"), aj.scale_by_learning_rate(0.1)),
         {"": [0.1] * 2}),
        (aj.chain(masked(aj.sgd(0.1), "hidden", "bias"), aj.scale_by_learning_rate(0.01, flip_sign=False)),
         {"": [0.01] * 2}),
        (masked(aj.sgd(0.1), "hidden"), {"": [0.1] * 2}),
    ],
    ids=["alone", "around and beside", "nested", "one rate", "mask and rate", "mask"],
)  # fmt: skip
def test_the_learning_rate_of_each_group(tx, rates):
    """The largest of all, without a name; none for what is frozen."""
    step = aj.train_step(mean_squared_error, metrics=("learning_rate",))
    with jax.numpy_dtype_promotion("standard"):
        _, metrics = run(step, aj.TrainState.create(PARAMS, tx), [BATCH] * 2)
    got = {name: [float(each[name]) for each in metrics] for name in metrics[0]}
    assert_close(got, {f"learning_rate{name}": each for name, each in rates.items()}, 1e-5)


@jax.numpy_dtype_promotion("standard")
def test_a_group_whose_learning_rate_cannot_be_known():
    """The others have theirs, by default; by name it is an error."""
    tx = aj.partition({"a": optax.adam(0.1), "b": aj.sgd(0.2), "c": None}, GROUPS)
    state = aj.TrainState.create(PARAMS, tx)
    with pytest.raises(ValueError, match="names 'learning_rate', and none is known of chain"):
        aj.train_step(mean_squared_error, metrics=("learning_rate",))(state, BATCH)
    step = aj.train_step(mean_squared_error)
    with pytest.warns(UserWarning, match="metric 'learning_rate' is left out: none") as caught:
        state, history = aj.fit(state, step, [BATCH] * 2)
    assert len(caught) == 1
    assert set(history) == {"loss", "learning_rate/b", "skipped"}
    np.testing.assert_allclose(history["learning_rate/b"], 0.2)
    two = aj.chain(*[aj.partition({"a": aj.sgd(0.1), "b": aj.sgd(0.2), "c": None}, GROUPS)] * 2)
    state = aj.TrainState.create(PARAMS, two)
    with pytest.raises(ValueError, match="has several partitions or masks of what has one"):
        aj.train_step(mean_squared_error, metrics=("learning_rate",))(state, BATCH)


@pytest.mark.parametrize(
    "factor",
    [
        lambda: optax.inject_hyperparams(optax.scale)(step_size=0.01),
        lambda: optax.masked(optax.scale(0.01), True),
        lambda: optax.contrib.split_real_and_imaginary(optax.scale(0.01)),
    ],
    ids=["inject", "masked", "split"],
)
def test_a_factor_inside_of_what_is_optax_s_is_not_overlooked(factor):
    step = aj.train_step(
        lambda params, batch: jnp.sum(params["w"] ** 2), metrics=("learning_rate",)
    )
    state = aj.TrainState.create({"w": jnp.ones(2)}, aj.chain(aj.sgd(0.1), factor()))
    with pytest.raises(ValueError, match="none is known of"):
        step(state, None)
