"""The learning-rate finder, against closed forms, loops, and what it must leave alone."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import adaptive_jax as aj
from adaptive_jax.training.rates import rate_setter

CURVATURES = np.array([1.0, 4.0, 10.0])


def loss(w, batch):
    return jnp.sum(jnp.asarray(CURVATURES, jnp.float32) * w**2) / 2 + 0 * batch


def started(tx):
    return aj.TrainState.create(jnp.ones(3), tx)


STEP = aj.train_step(loss)
BATCHES = [0.0] * 20


def test_losses_are_those_of_the_closed_form_and_the_limit_is_two_over_the_curvature():
    rates = np.geomspace(1e-3, 1, 25)
    found = aj.find_learning_rate(started(aj.sgd(1.0)), STEP, BATCHES, rates=rates)
    shrinks = (1 - np.outer(rates, CURVATURES))[:, None, :] ** np.arange(20)[:, None]
    expected = (CURVATURES * shrinks**2).sum(-1) / 2
    np.testing.assert_allclose(found.losses, expected, rtol=1e-4)
    np.testing.assert_allclose(found.objective, expected[:, -5:].mean(1), rtol=1e-4)
    assert found.unmoved == 7.5
    # The loss grows from 2/λ = 0.2 on, and is below that at the start until 20 steps have shown it.
    assert found.limit == rates[rates > 0.2][0]
    assert found.suggestion == rates[rates <= found.limit / 2][-1]
    assert f"{found.suggestion:.3g} is the largest rate up to half of that" in found.reason
    assert repr(found).startswith(f"learning rate {found.suggestion:.3g}. ")


@pytest.mark.parametrize(
    ("spec", "shard"),
    [((), "x"), pytest.param(("x",), None, marks=pytest.mark.slow)],
    ids=["zero", "fsdp"],
)
def test_a_state_on_a_mesh_and_batches_there_come_to_the_same(spec, shard, make_mesh):
    """And stay where they are, for a step on the mesh before and afterwards."""
    mesh, rng = make_mesh(8), np.random.default_rng(0)

    def place(x, *spec):
        return jax.device_put(x, NamedSharding(mesh, PartitionSpec(*spec)))

    def square(params, batch):
        return jnp.mean((batch @ params["w"]) ** 2) + jnp.sum(params["b"] ** 2)

    params = {
        "w": rng.normal(size=(16, 8)).astype(np.float32),
        "b": rng.normal(size=8).astype(np.float32),
    }
    batches = rng.normal(size=(4, 32, 16)).astype(np.float32)
    step, rates = aj.train_step(square), [0.01, 0.1]
    alone = aj.TrainState.create(params, aj.adam(1.0), rng=jax.random.key(0))
    there = aj.TrainState.create(
        place(params, *spec), aj.adam(1.0), rng=jax.random.key(0), shard=shard
    )
    rows = [place(batch, *(["x"] if shard else [])) for batch in batches]
    there, _ = step(there, rows[0])
    alone, _ = step(alone, batches[0])
    shardings = [x.sharding for x in jax.tree.leaves((there.params, there.opt_state))]
    expected = aj.find_learning_rate(alone, step, batches, rates=rates)
    found = aj.find_learning_rate(there, step, rows, rates=rates)
    np.testing.assert_allclose(found.losses, expected.losses, rtol=1e-5)
    assert found.suggestion == expected.suggestion
    there, _ = step(there, rows[1])
    assert shardings == [x.sharding for x in jax.tree.leaves((there.params, there.opt_state))]


@pytest.mark.parametrize(
    "tx",
    [pytest.param(aj.adam(1.0), marks=pytest.mark.slow), aj.schedule_free_sgd(1.0)],
    ids=["adam", "schedule-free"],
)
def test_a_rate_is_what_a_run_of_its_own_comes_to(tx):
    rng = np.random.default_rng(0)
    batches = [np.float32(x) for x in rng.normal(size=12)]
    step = aj.train_step(lambda w, batch: loss(w - batch, batch))

    def evaluate(w):
        return jnp.sum(w**2)

    rates = [0.01, 0.1]
    found = aj.find_learning_rate(started(tx), step, iter(batches), rates=rates, evaluate=evaluate)
    for place, rate in enumerate(rates):
        again = jax.tree.map(lambda leaf, rate=rate: rate if leaf == 1.0 else leaf, tx)
        state, history = aj.fit(started(again), step, batches, progress=False)
        np.testing.assert_allclose(found.losses[place], history["loss"], rtol=2e-5)
        np.testing.assert_allclose(found.objective[place], evaluate(state.eval_params()), rtol=2e-5)
    assert found.name == "evaluation"
    assert found.unmoved == 3.0


def test_the_state_is_left_as_it_is_and_one_that_was_used_up_is_refused():
    state = started(aj.adam(0.1))
    before = jax.tree.map(
        np.array, state
    )  # Not a view, which would keep the arrays from being donated.
    aj.find_learning_rate(state, STEP, BATCHES, steps=4, rates=[0.1], progress=False)
    jax.tree.map(np.testing.assert_array_equal, state, before)
    new, _ = STEP(state, 0.0)  # It can be written over still.
    with pytest.raises(
        ValueError, match=r"used up by a step before, .* find a learning rate first"
    ):
        aj.find_learning_rate(state, STEP, BATCHES)
    # In the middle of a run, from where it is.
    found = aj.find_learning_rate(new, STEP, BATCHES, steps=2, rates=[0.1])
    assert found.unmoved == pytest.approx(float(loss(new.params, 0.0)), rel=1e-6)


def test_a_schedule_gives_way_to_each_rate():
    schedule = aj.schedules.warmup_cosine_decay_schedule(0.0, 3.0, 10, 100)
    for tx in (aj.sgd(schedule), aj.sgd(lambda count: jnp.zeros(()))):
        found = aj.find_learning_rate(started(tx), STEP, BATCHES, steps=5, rates=[0.05, 0.1])
        expected = aj.find_learning_rate(
            started(aj.sgd(1.0)), STEP, BATCHES, steps=5, rates=[0.05, 0.1]
        )
        np.testing.assert_allclose(found.losses, expected.losses, rtol=1e-6)


def rate_in_force(tx, params):
    step = aj.train_step(lambda params, batch: sum(jax.tree.leaves(params)) * 0.0)
    return step(aj.TrainState.create(params, tx), 0.0)[1]


@pytest.mark.parametrize(
    "tx",
    [
        aj.sgd({"a": 1.0, "b": 0.1}),
        aj.partition({"x": aj.adam(0.5), "y": aj.sgd(0.05)}, {"a": "x", "b": "y"}),
        aj.partition(
            {"x": aj.adam(aj.schedules.constant_schedule(0.5)), "y": aj.sgd(0.05)},
            {"a": "x", "b": "y"},
        ),
    ],
    ids=["tree", "partition", "a schedule in one"],
)
def test_arrays_with_rates_of_their_own_keep_their_proportions(tx):
    params = {"a": jnp.ones(()), "b": jnp.ones(())}
    tx = rate_setter(tx, tx.init(params))(0.2)
    metrics = rate_in_force(tx, params)
    np.testing.assert_allclose(metrics["learning_rate"], 0.2, rtol=1e-6)
    if "learning_rate/y" in metrics:
        np.testing.assert_allclose(metrics["learning_rate/y"], 0.02, rtol=1e-6)
    else:
        np.testing.assert_allclose(tx.data.rules[-1].learning_rate["b"], 0.02)


def test_the_same_schedule_of_all_groups_becomes_one_rate():
    schedule = aj.schedules.linear_schedule(0.0, 1.0, 10)
    tx = aj.partition({"x": aj.adam(schedule), "y": aj.sgd(schedule)}, {"a": "x", "b": "y"})
    params = {"a": jnp.ones(()), "b": jnp.ones(())}
    metrics = rate_in_force(rate_setter(tx, tx.init(params))(0.2), params)
    np.testing.assert_allclose(metrics["learning_rate/x"], 0.2, rtol=1e-6)
    np.testing.assert_allclose(metrics["learning_rate/y"], 0.2, rtol=1e-6)


def refused(tx=None, step=STEP, batches=BATCHES, **options):
    tx = aj.sgd(1.0) if tx is None else tx
    return aj.find_learning_rate(started(tx), step, batches, **options)


def test_what_is_refused():
    twice = aj.chain(aj.sgd(0.1), aj.scale_by_learning_rate(0.1, flip_sign=False))
    with pytest.raises(ValueError, match=r"product of several factors, .* with 0.5 it is 0.25"):
        refused(twice)
    with pytest.raises(ValueError, match="must be one that can be set, and none is known"):
        refused(optax.sgd(0.1))
    with pytest.raises(ValueError, match="must be learning rates above 0"):
        refused(rates=[0.1, 0.0])
    with pytest.raises(ValueError, match="must be learning rates above 0"):
        refused(rates=0.1)
    with pytest.raises(ValueError, match="ended after 1, and steps=None"):
        refused(batches=[0.0])
    with pytest.raises(ValueError, match="ended after 20, and steps=30"):
        refused(steps=30)
    with pytest.raises(ValueError, match="steps=1 must be a whole number, 2 or more"):
        refused(steps=1)
    with pytest.raises(TypeError, match="takes a TrainState"):
        aj.find_learning_rate(STEP, started(aj.sgd(1.0)), BATCHES)
    silent = aj.train_step(loss, metrics=("gradient_norm",))
    with pytest.raises(ValueError, match=r'measures gradient_norm, .* "loss"'):
        refused(step=silent)
    zeros = aj.sgd({"a": 0.0, "b": aj.schedules.linear_schedule(0.0, 1.0, 10)})
    with pytest.raises(ValueError, match="all of them are 0 at this step"):
        rate_setter(zeros, zeros.init({"a": jnp.ones(()), "b": jnp.ones(())}))


def test_no_rate_where_nothing_falls():
    flat = aj.train_step(lambda w, batch: jnp.sum(0 * w) + 1.0)
    found = aj.find_learning_rate(started(aj.sgd(1.0)), flat, BATCHES, rates=[0.1, 1.0])
    with pytest.raises(
        ValueError, match=r"none of the 2 learning rates from 0.1 to 1 lowers the loss"
    ):
        _ = found.suggestion
    assert repr(found).startswith("no learning rate: none of the 2")


def test_rates_at_the_ends_say_so():
    found = refused(rates=[0.001, 0.01])
    assert found.limit is None
    assert found.suggestion == 0.01
    assert found.reason.endswith("It is the highest that was tried: try higher ones.")
    assert "lowest that was tried: try lower ones" in refused(rates=[0.1, 1.0]).reason


def test_the_picture(monkeypatch):
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    found = refused(rates=np.geomspace(1e-3, 10, 17))
    ax = found.plot(ax=Figure().subplots())
    shown = [text.get_text() for text in ax.get_legend().get_texts()]
    assert f"suggested: {found.suggestion:.3g}" in shown
    assert "without a step: 7.5" in shown
    assert ax.get_xscale() == "log"
    assert ax.get_ylim()[1] == 15.0
    with pytest.raises(TypeError, match=r"must be what aj.sharpness returned"):
        found.plot(sharpness=2.0)
    with pytest.raises(ValueError, match="must be above 0"):
        aj.plotting.learning_rates([0.0], [1.0], unmoved=1.0)
