"""Trainings with one fault each, and such as have none."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_network import BATCH, FIT_STEP, PARAMS, mean_squared_error, network

import adaptive_jax as aj

SCHEDULES = aj.schedules


def check(tx, *, params=PARAMS, step=FIT_STEP, batches=(BATCH,), **options):
    state = aj.TrainState.create(params, tx)
    before = jax.tree.map(np.asarray, (state.params, state.opt_state))
    found = aj.check_training(state, step, batches, **options)
    # The state is left as it was.
    jax.tree.map(np.testing.assert_array_equal, before, (state.params, state.opt_state))
    return found


def only(found):
    """The one finding."""
    (text,) = found.findings
    assert repr(found) == f"1. {text}"
    return text


def noisy(count=30):
    numbers = np.random.default_rng(1)
    for _ in range(count):
        inputs = jnp.asarray(numbers.normal(size=(16, 5)), jnp.float32)
        yield {"inputs": inputs, "targets": jnp.sin(inputs.sum(1, keepdims=True))}


def decays(params):
    return jax.tree.map(lambda x: x.shape[0] > 1, params)


HEALTHY = {
    "adam": lambda: aj.adam(0.01),
    "sgd": lambda: aj.sgd(0.05),
    "momentum": lambda: aj.sgd(0.01, momentum=0.9),
    "adamw, mask": lambda: aj.adamw(0.01, weight_decay=0.1, mask=decays),
    "warm-up": lambda: aj.adam(SCHEDULES.warmup_cosine_decay_schedule(0.0, 0.02, 200, 2000)),
    "cosine": lambda: aj.adam(SCHEDULES.cosine_decay_schedule(0.02, 500)),
    "clipped": lambda: aj.chain(aj.clip_by_global_norm(1.0), aj.adam(0.01)),
    "accumulated": lambda: aj.multi_steps(aj.adam(0.03), 2),
    "schedule-free": lambda: aj.schedule_free_adamw(0.02),
    "without a rate": lambda: aj.prodigy(),
    "of optax": lambda: optax.adam(0.01),
    "frozen": lambda: aj.partition(
        {"a": aj.adam(0.01), "no": None}, {"hidden": "no", "bias": "a", "output": "a"}
    ),
}


SLOWLY = {"momentum", "cosine", "clipped", "schedule-free", "without a rate", "sgd"}


@pytest.mark.parametrize(
    "name",
    [pytest.param(each, marks=pytest.mark.slow if each in SLOWLY else ()) for each in HEALTHY],
)
@pytest.mark.filterwarnings("ignore:The metric 'learning_rate' is left out")
def test_a_healthy_training_has_no_findings(name):
    with jax.numpy_dtype_promotion("standard"):
        found = check(HEALTHY[name](), batches=list(noisy()))
    assert found.findings == (), found
    assert repr(found) == "nothing found in 30 steps"
    assert "nothing found" in found._repr_html_()


@pytest.mark.parametrize(
    "factory",
    [
        aj.adam,
        aj.sgd,
        pytest.param(
            lambda rate: aj.adam(SCHEDULES.cosine_decay_schedule(rate, 1000)),
            marks=pytest.mark.slow,
        ),
        optax.adam,
    ],
    ids=["adam", "sgd", "schedule", "of optax"],
)
@pytest.mark.filterwarnings("ignore:The metric 'learning_rate' is left out")
def test_a_rate_that_is_far_too_high_or_too_low(factory):
    for rate, word in ((1.0, "high"), (0.001, "low")):
        with jax.numpy_dtype_promotion("standard"):
            found = check(factory(rate))
        text = only(found)
        assert f"The learning rate is too {word}" in text
        assert "aj.find_learning_rate(state, step, batches)" in text
        if factory is not optax.adam:
            assert f"the learning rate {rate:.3g}" in text
    assert found.losses[30.0] < found.losses[10.0] < found.losses[1.0] < found.losses[0.0]
    for rate in (1e-5, 1e-8):  # Thirty times as much hardly changes the loss.
        with jax.numpy_dtype_promotion("standard"):
            found = check(factory(rate))
        text = only(found)
        known = "this learning rate" if factory is optax.adam else f"the learning rate {rate:.3g}"
        assert f"much too low: {known} gets the loss" in text
        assert f"; {max(found.losses):.0f} times as much gets it to" in text
        assert found.losses[0.0] - found.losses[30.0] < 0.2 * found.losses[0.0]
        assert found.losses[max(found.losses)] < 0.9 * found.losses[0.0]


@pytest.mark.filterwarnings("ignore:The metric 'learning_rate' is left out")
def test_the_beginning_of_a_warm_up_that_cannot_be_read_is_not_too_low():
    """A schedule of optax's, whose peak is not known."""
    tx = optax.chain(optax.scale_by_adam(), optax.scale_by_schedule(lambda count: -1e-7 * count))
    with jax.numpy_dtype_promotion("standard"):
        assert check(tx).findings == ()


def test_a_run_that_is_done_needs_no_higher_rate():
    """However low its rate: nothing but noise is left to fit."""
    best = network(PARAMS, BATCH["inputs"])
    batches = [{"inputs": BATCH["inputs"], "targets": best + sign} for sign in (1.0, -1.0)]
    for rate in (1e-3, 1e-7):
        found = check(aj.sgd(rate), batches=batches)
        assert found.findings == ()
        assert found.losses[30.0] > 0.9


@pytest.mark.slow
@pytest.mark.parametrize(("factory", "right"), [(aj.adam, 0.003), (aj.sgd, 0.1)])
def test_rates_of_a_convolutional_network(factory, right):
    """On digits, between the rates that do well there, 0.001 to 0.03 and 0.03 to 0.3."""
    pytest.importorskip("flax")
    pytest.importorskip("sklearn")
    import digits
    import with_flax_nnx

    train, _ = digits.load()
    batches = list(digits.batches(*train, epochs=2))[:30]
    step = aj.train_step(with_flax_nnx.loss_function)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        params = with_flax_nnx.init(jax.random.key(0))
        for factor, expected in ((1, "nothing found"), (0.1, "too low"), (100, "too high")):
            if factory is aj.sgd and factor < 1:
                factor = 0.03
            found = check(factory(right * factor), params=params, step=step, batches=batches)
            assert expected in repr(found), found


@pytest.mark.slow
def test_a_warm_up_to_a_peak_that_is_too_low():
    low = SCHEDULES.warmup_cosine_decay_schedule(0.0, 0.0005, 300, 2000)
    assert "The learning rate is too low at its peak" in only(check(aj.adam(low)))
    lower = SCHEDULES.warmup_cosine_decay_schedule(0.0, 1e-7, 300, 2000)
    assert "The learning rate is much too low at its peak" in only(check(aj.adam(lower)))
    right = SCHEDULES.warmup_cosine_decay_schedule(0.0, 0.02, 100_000, 200_000)
    assert check(aj.adam(right), batches=list(noisy())).findings == ()


@pytest.mark.slow
def test_the_advice_about_rates_works():
    state = aj.TrainState.create(PARAMS, aj.adam(1.0))
    assert "too high" in only(aj.check_training(state, FIT_STEP, [BATCH]))
    rate = aj.find_learning_rate(state, FIT_STEP, [BATCH] * 30).suggestion
    assert check(aj.adam(rate)).findings == ()


def test_parameters_of_bfloat16_that_do_not_move():
    params = jax.tree.map(lambda x: (x + jnp.ones((), x.dtype)).astype(jnp.bfloat16), PARAMS)

    def loss(params, batch):
        params = jax.tree.map(lambda x: x.astype(jnp.float32) - 1, params)
        return mean_squared_error(params, batch)

    text = only(
        check(aj.adam(1e-3), params=params, step=aj.train_step(loss, rounding="nearest"), steps=10)
    )
    assert text.startswith(
        "The array ['hidden'] of bfloat16 does not move: the updates are smaller"
    )
    # What it advises.
    advised = (aj.adam(1e-3), "stochastic"), (aj.compensate(aj.adam(1e-3)), "nearest")
    for tx, rounding in advised:
        step = aj.train_step(loss, rounding=rounding)
        assert "not move" not in repr(check(tx, params=params, step=step, steps=10))


def test_arrays_without_gradient():
    def loss(params, batch):
        return mean_squared_error({**params, "bias": jax.lax.stop_gradient(params["bias"])}, batch)

    params = {**PARAMS, "unused": jnp.ones(3)}
    text = only(check(aj.adam(0.01), params=params, step=aj.train_step(loss)))
    assert text.startswith("The arrays ['bias'] and ['unused'] get no gradient: they were 0 in all")
    labels = {"hidden": "a", "output": "a", "bias": "no", "unused": "no"}
    frozen = aj.partition({"a": aj.adam(0.01), "no": None}, labels)
    assert check(frozen, params=params, step=aj.train_step(loss)).findings == ()


def test_dead_arrays():
    rates = {"hidden": 0.01, "bias": 0.0, "output": 0.01}
    text = only(check(aj.adam(rates)))
    assert text.startswith("The array ['bias'] gets a gradient, and all updates were 0 in 30 steps")
    assert "Nothing moves" in only(check(aj.multi_steps(aj.adam(0.01), 50)))
    assert check(aj.multi_steps(aj.adam(0.03), 50), steps=60).findings == ()


def test_what_has_nothing_to_move_is_not_found():
    """Arrays without elements, and what is no number in a batch."""
    params = {"w": jnp.ones(3), "empty": jnp.zeros((0, 3)), "none": None}
    step = aj.train_step(lambda params, x: jnp.sum((params["w"] - x) ** 2) + params["empty"].sum())
    state = aj.TrainState.create(params, aj.adam(0.1))
    batch = {"x": 3.0, "names": np.array(["a"]), "source": "b"}
    found = aj.check_training(state, lambda state, batch: step(state, batch["x"]), [batch])
    assert found.findings == ()


def test_a_schedule_that_is_zero():
    ended = SCHEDULES.linear_schedule(0.1, 0.0, 5)
    state = aj.TrainState.create(PARAMS, aj.adam(ended))
    for _ in range(6):
        state, _ = FIT_STEP(state, BATCH)
    text = only(aj.check_training(state, FIT_STEP, [BATCH]))
    assert "The learning rate is 0 in all 30 steps from step 7 on" in text
    assert "The learning rate is 0" in only(check(aj.sgd(0.0)))


@pytest.mark.parametrize(
    "make",
    [
        lambda mask: aj.adamw(0.01, weight_decay=0.1, mask=mask),
        lambda mask: aj.sgd(0.05, weight_decay=0.1, mask=mask),
        lambda mask: aj.chain(aj.add_decayed_weights(0.1, mask), aj.adam(0.01)),
        lambda mask: aj.chain(aj.masked(aj.add_decayed_weights(0.1), mask), aj.adam(0.01)),
    ],
    ids=["adamw", "sgd", "chain", "masked"],
)
def test_a_mask_that_decays_nothing(make):
    nothing = jax.tree.map(lambda x: False, PARAMS)
    text = only(check(make(nothing), batches=list(noisy())))
    assert text.startswith("Nothing decays: weight_decay=0.1 is for the arrays that its mask")
    assert check(make(decays), batches=list(noisy())).findings == ()


def test_numbers_that_are_not_finite():
    def root(params, batch):
        return mean_squared_error(params, batch) + jnp.sum(jnp.sqrt(jnp.abs(params["bias"])))

    zeros = {**PARAMS, "bias": jnp.zeros((1, 8))}
    text = only(check(aj.adam(0.01), params=zeros, step=aj.train_step(root)))
    assert text.startswith("In step 1 the gradient of ['bias'] is not finite.")

    bad = {**BATCH, "inputs": BATCH["inputs"].at[3, 2].set(jnp.nan)}
    text = only(check(aj.adam(0.01), batches=[BATCH, BATCH, bad]))
    assert text.startswith(
        "batch['inputs'] of step 3 (batch 2, counted from 0) is not finite: mend the data"
    )
    lost = {**PARAMS, "output": PARAMS["output"].at[0].set(jnp.inf)}
    assert only(check(aj.adam(0.01), params=lost)).startswith("The array ['output'] is not finite")

    step = aj.train_step(root, skip_nonfinite=True)
    assert "30 of 30 steps were skipped" in only(check(aj.adam(0.01), params=zeros, step=step))

    def value(params, batch):  # Its derivative is finite.
        return mean_squared_error(params, batch) + jnp.where(
            jnp.all(batch["inputs"] > 9), 0.0, jnp.inf
        )

    assert "In step 1 the loss is not finite" in repr(
        check(aj.adam(0.01), step=aj.train_step(value))
    )


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda s: aj.check_training(FIT_STEP, s, [BATCH]), TypeError, "call check_training.state"),
        (lambda s: aj.check_training(PARAMS, FIT_STEP, [BATCH]), TypeError, "takes a TrainState"),
        (lambda s: aj.check_training(s, 3, [BATCH]), TypeError, "step=3 must be a function"),
        (lambda s: aj.check_training(s, FIT_STEP, BATCH), TypeError, "which is one batch"),
        (
            lambda s: aj.check_training(s, lambda params, batch: params["w"], [BATCH]),
            TypeError,
            r"make a step of it: aj.train_step\(",
        ),
        (lambda s: aj.check_training(s, FIT_STEP, []), ValueError, "there are no batches"),
        (lambda s: aj.check_training(s, FIT_STEP, [BATCH], steps=2), ValueError, "steps=2 must be"),
        (
            lambda s: aj.check_training(
                s, aj.train_step(mean_squared_error, metrics=("skipped",)), [BATCH]
            ),
            ValueError,
            re.escape('make it with train_step(loss_fn, metrics=("loss",))'),
        ),
    ],
    ids=range(8),
)
def test_what_cannot_be_checked(call, error, message):
    state = aj.TrainState.create(PARAMS, aj.adam(0.01))
    with pytest.raises(error, match=message):
        call(state)
    assert FIT_STEP(state, BATCH)[0].step == 1
    with pytest.raises(ValueError, match="was used up by a step before"):
        aj.check_training(state, FIT_STEP, [BATCH])


@pytest.mark.slow
def test_states_with_everything_and_on_a_mesh(make_mesh):
    def loss(params, batch, model_state, rng):
        noise = 0.01 * jax.random.normal(rng, (1, 1))
        return jnp.mean(jnp.square(network(params, batch["inputs"]) - batch["targets"] + noise)), (
            model_state + 1
        )

    everywhere = jax.sharding.NamedSharding(make_mesh(2), jax.sharding.PartitionSpec())
    params = jax.device_put(PARAMS, everywhere)
    batch = jax.device_put(BATCH, everywhere)
    state = aj.TrainState.create(
        params, aj.adam(0.01), model_state=jnp.zeros(()), rng=jax.random.key(0),
        average=aj.average(0.9),
    )  # fmt: skip
    step = aj.train_step(loss)
    assert aj.check_training(state, step, [batch]).findings == ()
    assert step(state, batch)[0].model_state == 1
