"""What a loop evaluates, when, and who looks at it."""

from __future__ import annotations

import functools
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adaptive_jax as aj


def loss(params, batch):
    return jnp.mean(jnp.square(params - batch))


STEP = aj.train_step(loss, metrics=("loss",))
ONE = jnp.ones(2)


def create(tx=None, **options):
    return aj.TrainState.create(jnp.zeros(()), tx or aj.sgd(0.25), **options)


def distance(params):
    return jnp.abs(params - 1)


def test_evaluations_are_of_the_parameters_of_their_steps():
    seen = {}

    def callback(state, metrics):
        seen[int(state.step)] = float(distance(state.params))

    state, history = aj.fit(
        create(), STEP, [ONE] * 7, evaluate=distance, evaluate_every=3, callback=callback
    )
    assert history["eval_step"].tolist() == [3, 6, 7]  # The last one always.
    assert history["eval_loss"].tolist() == [seen[3], seen[6], seen[7]]
    assert len(history["loss"]) == 7
    # By the count of the state: a run that goes on evaluates after the same steps.
    state, history = aj.fit(state, STEP, [ONE] * 5, evaluate=distance, evaluate_every=3)
    assert history["eval_step"].tolist() == [9, 12]
    assert history.stopped_by == ""


def test_epochs():
    numbers = []

    def batches(epoch):
        numbers.append(epoch)
        return iter([jnp.full(2, epoch + 1.0)] * (2 + epoch))

    state, history = aj.fit(create(), STEP, batches, epochs=3, evaluate=distance)
    assert numbers == [0, 1, 2]
    assert (state.step, history["eval_step"].tolist()) == (9, [2, 5, 9])
    by_hand, expected = create(), []
    for epoch in range(3):
        for _ in range(2 + epoch):
            by_hand, _ = STEP(by_hand, jnp.full(2, epoch + 1.0))
        expected.append(float(distance(by_hand.params)))
    assert history["eval_loss"].tolist() == expected
    _, history = aj.fit(create(), STEP, [ONE] * 2, epochs=3, evaluate=distance)
    assert history["eval_step"].tolist() == [2, 4, 6]
    assert aj.fit(create(), STEP, (ONE for _ in range(2)), epochs=1)[0].step == 2
    assert aj.fit(create(), STEP, [ONE], epochs=0, evaluate=distance)[1] == {}
    # Without epochs, once through is one.
    _, history = aj.fit(create(), STEP, (ONE for _ in range(4)), steps=3, evaluate=distance)
    assert history["eval_step"].tolist() == [3]


class OnlyOnce:
    """An iterable that does not say that it can be gone through once."""

    def __init__(self):
        self.rest = iter([ONE] * 2)

    def __iter__(self):
        yield from self.rest


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"batches": (ONE for _ in range(3)), "epochs": 2},
            TypeError,
            r"a generator, which can be gone through once, and epochs=2: give a list",
        ),
        ({"epochs": -1}, ValueError, "epochs=-1 must be a whole number, 0 or more"),
        ({"epochs": 2, "steps": 3}, ValueError, "steps=3 and epochs=2 both say how long"),
        ({"batches": lambda epoch: [ONE]}, TypeError, "from the number|is for epochs="),
        ({"batches": lambda epoch: 3, "epochs": 2}, TypeError, "batches=3 must be an iterable"),
        ({"evaluate_every": 3}, ValueError, "evaluate_every=3 needs something to evaluate"),
        ({"evaluate": distance, "evaluate_every": 0}, ValueError, "evaluate_every=0 must be"),
        ({"evaluate": 3}, TypeError, r"evaluate=3 must be a function.*aj.Evaluation\("),
        ({"evaluate": loss}, TypeError, r"needs the arguments params, batch.*aj.Evaluation\("),
        ({"evaluate": STEP}, TypeError, "must be a function of the parameters"),
        (
            {"evaluate": lambda: 1.0},
            TypeError,
            "cannot be called with the parameters alone: too many",
        ),
        ({"evaluate": lambda p, *, data: 1.0}, TypeError, "parameters alone: missing a.*'data'"),
        ({"callback": aj.EarlyStopping()}, ValueError, "there are none: give evaluate="),
        ({"callback": aj.KeepBest}, TypeError, r"is a class: give one of it, KeepBest\("),
        ({"callback": [3]}, TypeError, "callback=3 must be a function"),
        (
            {"callback": [aj.EarlyStopping(), aj.KeepBest(maximize=True)], "evaluate": distance},
            ValueError,
            r"EarlyStopping\('eval_loss'\) and KeepBest\('eval_loss', maximize=True\) disagree",
        ),
        (
            {"callback": [aj.KeepBest(), aj.KeepBest()], "evaluate": distance},
            ValueError,
            "KeepBest of 'eval_loss' twice",
        ),
        ({"callback": [distance, distance]}, ValueError, "is there twice"),
        (
            {"evaluate": aj.Evaluation(loss, [ONE]), "callback": aj.KeepBest("eval_los")},
            ValueError,
            "KeepBest looks at 'eval_los', and there is eval_loss",
        ),
        (
            {"evaluate": jax.jit(lambda p: {"a": p, "b": p}), "callback": aj.EarlyStopping()},
            ValueError,
            "EarlyStopping looks at 'eval_loss', and there is eval_a, eval_b",
        ),
        (
            {"evaluate": aj.Evaluation(lambda p, b: b, [ONE])},
            TypeError,
            r"returned float32\[2\]: it must return one real number",
        ),
        ({"evaluate": aj.Evaluation(lambda p, b: 1 / 0, [ONE])}, ZeroDivisionError, "division"),
        ({"evaluate": aj.Evaluation(loss, lambda: iter([]))}, ValueError, "has no batches"),
        ({"evaluate": jax.jit(lambda p: p + ONE)}, TypeError, r"evaluate returned float32\[2\]"),
    ],
    ids=range(24),
)
def test_what_is_refused_before_the_first_step(options, error, message):
    state = create()
    with pytest.raises(error, match=message):
        aj.fit(state, STEP, options.pop("batches", [ONE] * 3), **options)
    assert STEP(state, ONE)[0].step == 1


@pytest.mark.parametrize(
    ("evaluate", "error", "message"),
    [
        (lambda p: jnp.zeros(3), TypeError, r"evaluate returned float32\[3\].*jnp.mean"),
        (lambda p: {"a": 1.0, "b": [1.0]}, TypeError, "a list of 1 for 'b'"),
        (lambda p: {"a": "good"}, TypeError, "a str for 'a': it must return one real number"),
        (lambda p: None, TypeError, "evaluate returned None"),
        (lambda p: {}, TypeError, "an empty dict"),
        (lambda p: 1j, TypeError, "must return one real number"),
        (lambda p: {f"{float(p):.1f}": 1.0}, ValueError, "these must be the same every time"),
        (lambda p: 1 / 0, ZeroDivisionError, "division"),
    ],
    ids=["array", "list", "text", "none", "empty", "complex", "names", "error"],
)
def test_a_bad_evaluation_loses_nothing(evaluate, error, message):
    with pytest.raises(error, match=message) as caught:
        aj.fit(create(), STEP, [ONE] * 9, evaluate=evaluate, evaluate_every=2)
    assert caught.value.state.step in (2, 4)
    assert len(caught.value.history["loss"]) == caught.value.state.step


def test_an_error_brings_the_evaluations_along():
    def failing():
        yield from [ONE] * 5
        raise OSError("the file ends here")

    with pytest.raises(OSError, match="ends here") as caught:
        aj.fit(create(), STEP, failing(), evaluate=distance, evaluate_every=2)
    assert caught.value.history["eval_step"].tolist() == [2, 4]
    assert caught.value.history["eval_loss"].shape == (2,)


def test_an_interrupt_ends_the_loop_without_an_evaluation():
    def callback(state, metrics):
        if state.step == 3:
            signal.raise_signal(signal.SIGINT)

    _, history = aj.fit(
        create(), STEP, [ONE] * 9, evaluate=distance, evaluate_every=2, callback=callback
    )
    assert history.interrupted
    assert history["eval_step"].tolist() == [2]


def test_what_evaluate_gets():
    def with_state(params, batch, model_state):
        return loss(params, batch), model_state + 1

    state = create(model_state=jnp.zeros(()))
    step = aj.train_step(with_state, metrics=("loss",))
    for evaluate in (
        lambda params, model_state: {"loss": params, "steps": model_state},
        lambda state: {"loss": state.params, "steps": state.model_state},
    ):
        state, history = aj.fit(state, step, [ONE] * 2, evaluate=evaluate)
        assert history["eval_loss"] == state.params
        assert history["eval_steps"] == int(state.step)
    counted, history = aj.fit(
        0, lambda state, batch: (state + 1, {}), [None] * 3, evaluate=lambda state: state
    )
    assert (counted, history["eval_loss"].tolist()) == (3, [3])


@pytest.mark.parametrize("tx", [aj.schedule_free_adamw(0.1), optax.sgd(0.1)], ids=["ours", "optax"])
def test_what_is_known_of_an_evaluation_before_the_first_step(tx):
    """It computes nothing, and calls no function that was not compiled."""
    calls = []

    def host(params):
        calls.append(float(params))
        return len(calls)

    def counted(params, batch):
        jax.debug.callback(lambda: calls.append("computed"))
        return {"loss": loss(params, batch), "model": jnp.ones(())}

    for evaluate, count in ((host, 1), (aj.Evaluation(counted, [ONE, ONE]), 2)):
        best = aj.KeepBest()
        _, history = aj.fit(create(tx), STEP, [ONE] * 2, evaluate=evaluate, callback=best)
        jax.effects_barrier()
        assert len(calls) == count
        assert (best.value, best.step) == (history["eval_loss"][0], 2)
        calls.clear()
    model = create(tx, model_state=jnp.full((), 3.0), rng=jax.random.key(0))
    step = aj.train_step(lambda p, b, model_state: (loss(p, b), model_state), metrics=("loss",))
    evaluation = jax.jit(lambda params, model_state: {"loss": params, "model": model_state})
    _, history = aj.fit(
        model,
        step,
        [ONE],
        evaluate=evaluation,
        callback=aj.EarlyStopping("eval_model"),
    )
    assert history["eval_model"] == 3.0


def test_a_step_with_a_metric_called_like_an_evaluation():
    def step(state, batch):
        state, metrics = STEP(state, batch)
        return state, {"eval_loss": metrics["loss"]}

    with pytest.raises(ValueError, match="the step returns the metric 'eval_loss'"):
        aj.fit(create(), step, [ONE] * 3, evaluate=distance)
    assert "eval_loss" in aj.fit(create(), step, [ONE] * 3)[1]


def test_an_evaluation_is_the_mean_over_rows():
    rows = np.random.default_rng(0).normal(size=(10, 3)).astype(np.float32)
    weights = jnp.arange(3.0)

    def errors(params, batch):
        inputs, targets = batch
        wrong = jnp.square(inputs @ params - targets)
        return {"loss": jnp.mean(wrong), "large": jnp.mean(wrong > 1)}

    batches = [(rows[i : i + 4], np.ones(len(rows[i : i + 4]), np.float32)) for i in (0, 4, 8)]
    wrong = np.square(rows @ np.arange(3.0) - 1)
    for given in (batches, lambda: iter(batches)):
        evaluation = aj.Evaluation(errors, given)
        for _ in range(2):
            found = evaluation(weights)
            np.testing.assert_allclose(found["loss"], wrong.mean(), rtol=1e-6)
            np.testing.assert_allclose(found["large"], (wrong > 1).mean(), rtol=1e-6)
    assert repr(evaluation) == "Evaluation(errors)"

    def scaled(params, batch, model_state):
        return model_state * jnp.mean(batch)

    state = create(model_state=jnp.full((), 3.0))
    step = aj.train_step(lambda p, b, model_state: (loss(p, b), model_state), metrics=("loss",))
    state, history = aj.fit(state, step, [ONE], evaluate=aj.Evaluation(scaled, [ONE]))
    assert history["eval_loss"] == aj.Evaluation(scaled, [ONE])(state)["loss"] == 3.0
    state = create(average=aj.average(0.5))
    state, history = aj.fit(
        state, STEP, [ONE] * 3, evaluate=(evaluation := aj.Evaluation(loss, [ONE]))
    )
    assert (
        history["eval_loss"] == evaluation(state)["loss"] == evaluation(state.eval_params())["loss"]
    )
    assert history["eval_loss"] != evaluation(state.params)["loss"]


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: aj.Evaluation(3, [ONE]), TypeError, "function=3 must be a function"),
        (lambda: aj.Evaluation(STEP, [ONE]), TypeError, "must be a function"),
        (lambda: aj.Evaluation(loss, {"x": ONE}), TypeError, "which is one batch"),
        (lambda: aj.Evaluation(loss, ONE), TypeError, "which is one batch"),
        (lambda: aj.Evaluation(loss, iter([ONE])), TypeError, "can be gone through once"),
        (lambda: aj.Evaluation(loss, [])(ONE), ValueError, r"Evaluation\(loss\) has no batches"),
        (
            lambda: aj.Evaluation(lambda p, b: b, [ONE])(ONE),
            TypeError,
            r"returned float32\[2\]: it must return one real number",
        ),
    ],
    ids=range(7),
)
def test_an_evaluation_that_cannot_be(make, error, message):
    with pytest.raises(error, match=message):
        make()


VALUES = [3.0, 2.0, 2.5, float("nan"), 1.95, 1.8, 2.0, 2.0, 2.0]


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    ("patience", "minimum_change", "steps"), [(3, 0, 9), (2, 0, 4), (3, 0.1, 5), (4, 0, 9)]
)
def test_early_stopping(sign, patience, minimum_change, steps):
    values = iter(VALUES)
    stopping = aj.EarlyStopping(
        "eval_value", maximize=sign < 0, patience=patience, minimum_change=minimum_change
    )
    state, history = aj.fit(
        create(),
        STEP,
        [ONE] * 9,
        evaluate=lambda params: {"value": sign * next(values)},
        evaluate_every=1,
        callback=stopping,
    )
    assert state.step == steps
    stopped = f"for {patience} evaluations" if patience < 4 else ""
    assert history.stopped_by[-len(stopped) :] == stopped
    assert not history.interrupted


@pytest.mark.parametrize("sign", [1, -1])
def test_the_best_parameters_are_kept(sign):
    params_at, values = {}, iter([float("nan"), *VALUES])
    best = aj.KeepBest("eval_value", maximize=sign < 0)
    whole = aj.KeepBest("eval_other", maximize=sign < 0, whole_state=True)
    assert (best.params, best.step, best.value, whole.state) == (None,) * 4

    def evaluate(params):
        score = sign * next(values)
        return {"value": score, "other": jnp.asarray(score)}

    def callback(state, metrics):
        params_at[int(state.step)] = float(state.params)

    state, _ = aj.fit(
        create(aj.adam(0.1)),
        STEP,
        [ONE] * 10,
        evaluate=evaluate,
        evaluate_every=1,
        callback=[callback, best, whole],
    )
    assert (best.step, best.value) == (7, pytest.approx(sign * 1.8))
    assert float(best.params) == params_at[7] != params_at[10]
    assert (whole.state.step, float(whole.state.params)) == (7, params_at[7])
    for _ in range(2):
        again, _ = STEP(whole.state, ONE)  # A state to go on from, as often as one likes.
        assert float(again.params) == params_at[8]
        assert repr(again.tx) == repr(state.tx)
    only_bad = aj.KeepBest()
    aj.fit(state, STEP, [ONE], evaluate=lambda params: jnp.nan, callback=only_bad)
    assert only_bad.params is None


def test_the_best_of_float64_is_told_apart():
    with jax.enable_x64(True):
        values = iter(np.float64(1) - np.array([0, 1e-12, 3e-12, 2e-12]))
        best = aj.KeepBest()
        options = {"evaluate": lambda params: jnp.asarray(next(values)), "evaluate_every": 1}
        count = lambda state, batch: (state + 1, {})  # noqa: E731
        aj.fit(jnp.zeros(()), count, [ONE] * 4, callback=best, **options)
        assert (best.params, best.value) == (3, 1 - 3e-12)


def test_a_batch_without_rows_counts_for_nothing():
    batches = [jnp.ones(3), jnp.zeros(0), jnp.zeros(1)]
    assert aj.Evaluation(lambda params, x: jnp.mean(x), batches)(None)["loss"] == 0.75


def test_the_best_state_of_a_step_of_ones_own_has_its_numbers():
    """`jax.jit` returns the optimizer's numbers as arrays, which the next step writes over."""

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state, batch):
        gradient = jax.grad(lambda params: jnp.mean(jnp.square(params - batch)))(state.params)
        updates, opt_state = state.tx.update(gradient, state.opt_state, state.params)
        params = state.params + updates
        return state.replace(params=params, opt_state=opt_state, step=state.step + 1), {}

    best = aj.KeepBest(whole_state=True)
    options = {"evaluate": lambda params: jnp.abs(params - 0.3), "evaluate_every": 1}
    aj.fit(create(aj.adam(0.1)), step, [ONE] * 6, callback=best, **options)
    assert best.step == 3
    assert "learning_rate=0.1," in repr(best.state.tx)
    aj.fit(best.state, step, [ONE] * 2, callback=best, **options)  # On from the best.
    assert best.step == 3


@pytest.mark.parametrize(
    "make",
    [
        lambda: create(aj.schedule_free_sgd(0.2)),
        lambda: create(average=aj.average(0.5)),
    ],
    ids=["schedule-free", "average"],
)
def test_evaluations_are_at_the_parameters_to_evaluate_with(make):
    at = {}

    def callback(state, metrics):
        at[int(state.step)] = float(state.params), float(state.eval_params())

    best = aj.KeepBest()
    _, history = aj.fit(
        make(),
        STEP,
        [ONE] * 6,
        evaluate=distance,
        evaluate_every=2,
        callback=[callback, best, aj.EarlyStopping()],
    )
    expected = [abs(at[step][1] - 1) for step in (2, 4, 6)]
    np.testing.assert_allclose(history["eval_loss"], expected, rtol=1e-6)
    assert float(best.params) == pytest.approx(at[best.step][1])
    assert at[best.step][0] != pytest.approx(at[best.step][1])


def test_any_of_several_callbacks_stops_and_all_are_called():
    calls = []

    class Own(aj.Callback):
        def after_step(self, state, metrics):
            calls.append("step")

        def after_evaluation(self, state, values):
            calls.append(float(values["eval_loss"]))
            return True

        def __repr__(self):
            return "Own()"

    def goes_on(state, metrics):
        calls.append("function")
        return False

    state, history = aj.fit(
        create(), STEP, [ONE] * 9, evaluate=distance, evaluate_every=2, callback=[Own(), goes_on]
    )
    assert state.step == 2
    assert calls == ["step", "function"] * 2 + [float(history["eval_loss"][0])]
    assert history.stopped_by == "Own()"

    def third(state, metrics):
        return state.step == 3

    assert aj.fit(create(), STEP, [ONE] * 9, callback=third)[1].stopped_by == "third"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: aj.EarlyStopping("loss"), "looks at evaluations, and 'loss' is none: eval_loss"),
        (lambda: aj.KeepBest(3), "3 is none"),
        (lambda: aj.EarlyStopping(patience=0), "patience=0 must be a whole number"),
        (lambda: aj.KeepBest(maximize="no"), "maximize='no' must be True or False"),
        (lambda: aj.KeepBest(whole_state=None), "whole_state=None must be True or False"),
        (lambda: aj.EarlyStopping(minimum_change=-1), "minimum_change=-1 must be"),
    ],
    ids=range(6),
)
def test_callbacks_that_cannot_be(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()


@pytest.mark.parametrize("make", [aj.EarlyStopping, aj.KeepBest])
def test_a_name_that_is_good_where_it_is_large(make):
    for name, what in (
        ("eval_accuracy", "an accuracy"),
        ("eval_top5_acc", "an accuracy"),
        ("eval_F1", "an F1 score"),
        ("eval_bleu", "a BLEU score"),
    ):
        with pytest.warns(
            UserWarning, match=f"takes small for good: for {what} give maximize=True"
        ):
            make(name)
        make(name, maximize=True)
        make(name, maximize=False)
    for name in ("eval_loss", "eval_accumulated", "eval_inaccuracy"):
        make(name)


@pytest.mark.parametrize(
    ("maximize", "told"),
    [
        (None, "no lower than 0.5 for 2 evaluations; for an accuracy give maximize=True"),
        (False, "no lower than 0.5 for 2 evaluations"),
        (True, "no higher than 0.75 for 2 evaluations"),
    ],
    ids=["not said", "small is good", "large is good"],
)
@pytest.mark.filterwarnings("ignore:EarlyStopping")
def test_why_it_was_stopped(maximize, told):
    values = iter([0.5, 0.75, 0.625, 0.5, 0.5])
    stopping = aj.EarlyStopping("eval_accuracy", patience=2, maximize=maximize)
    _, history = aj.fit(
        create(),
        STEP,
        [ONE] * 5,
        evaluate=lambda params: {"accuracy": next(values)},
        evaluate_every=1,
        callback=stopping,
    )
    assert history.stopped_by == f"{stopping!r}: {told}"


def test_a_name_that_is_not_evaluated():
    best = aj.KeepBest("eval_accuracy", maximize=True)
    with pytest.raises(ValueError, match="looks at 'eval_accuracy', and there is eval_loss") as c:
        aj.fit(create(), STEP, [ONE] * 3, evaluate=distance, callback=best)
    assert c.value.state.step == 3


def test_batches_that_are_used_up_by_the_first_epoch():
    with pytest.raises(ValueError, match="no batches in epoch 2 of 3: a OnlyOnce was used") as c:
        aj.fit(create(), STEP, OnlyOnce(), epochs=3)
    assert c.value.state.step == 2


def test_sharded_states_keep_their_best(make_mesh):
    mesh = make_mesh(2)
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    state = aj.TrainState.create(jax.device_put(jnp.zeros(4), sharding), aj.adam(0.1))
    step = aj.train_step(lambda params, batch: jnp.sum(params * batch), metrics=("loss",))
    best = aj.KeepBest()
    state, _ = aj.fit(state, step, [1.0] * 4, evaluate=jnp.sum, evaluate_every=2, callback=best)
    np.testing.assert_array_equal(best.params, state.params)
    assert best.params.sharding == state.params.sharding
