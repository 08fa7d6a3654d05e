"""An optimizer is a pytree: its hyperparameters are leaves, its options are static."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from catalogue import CASES

import adaptive_jax as aj

PARAMS = {"w": jnp.array([[1.0, -2.0], [0.5, 3.0]]), "b": jnp.array([0.1, -0.1])}


def gradients(step):
    return jax.tree.map(lambda x: jnp.cos(3.0 * step + x), PARAMS)


def run(tx, steps=20):
    params, state = PARAMS, tx.init(PARAMS)
    for step in range(steps):
        updates, state = tx.update(gradients(step), state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def test_leaves_are_the_hyperparameters():
    paths = jax.tree_util.tree_leaves_with_path(aj.adam(1e-3).update)
    assert {jax.tree_util.keystr(path).rpartition(".")[2]: leaf for path, leaf in paths} == {
        "b1": 0.9,
        "b2": 0.999,
        "eps": 1e-8,
        "eps_root": 0.0,
        "learning_rate": 1e-3,
    }


def test_new_values_of_every_hyperparameter_compile_nothing():
    @jax.jit
    def step(tx, updates, state, params):
        return tx.update(updates, state, params)

    for b1, b2, eps, rate, decay in [
        (0.9, 0.999, 1e-8, 0.1, 0.1),
        (0.0, 0.9, 1e-3, 0.2, 0.2),
        (0.5, 0.99, 0.0, 0.0, 0.3),
    ]:
        tx = aj.adam(rate, b1=b1, b2=b2, eps=eps, eps_root=eps, weight_decay=decay)
        step(tx, PARAMS, tx.init(PARAMS), PARAMS)
    assert step._cache_size() == 1


def test_outside_of_jit_new_values_compile_nothing_either():
    from adaptive_jax._core.update import update_tree

    for rate in (0.1, 0.2, 0.3):
        tx = aj.rmsprop(rate, decay=0.9 + rate / 10, momentum=rate)
        tx.update(PARAMS, tx.init(PARAMS), PARAMS)
        if rate == 0.1:
            before = update_tree._cache_size()
    assert update_tree._cache_size() == before


def test_a_chain_compiles_once_for_equal_members():
    clip = optax.clip(0.5)

    @jax.jit
    def step(tx, updates, state):
        return tx.update(updates, state)

    for rate in (0.1, 0.2):
        tx = aj.chain(clip, aj.clip_by_global_norm(rate), aj.sgd(rate))
        step(tx, PARAMS, tx.init(PARAMS))
    assert step._cache_size() == 1


@pytest.mark.parametrize("factory", [aj.sgd, aj.adagrad, aj.rmsprop, aj.adam, aj.adamax])
def test_32_optimizers_under_vmap_equal_32_separate_ones(factory):
    rates = jnp.logspace(-4, 0, 32)
    params, state = jax.vmap(run)(jax.vmap(factory)(rates))
    for index, rate in enumerate(rates):
        alone, alone_state = run(factory(float(rate)))
        here = jax.tree.map(lambda x, index=index: x[index], (params, state))
        for x, y in zip(jax.tree.leaves(here), jax.tree.leaves((alone, alone_state)), strict=True):
            # A rate b in an array has lost its exact 1 - b: 1.3e-5 of b2's, hence of nu.
            np.testing.assert_allclose(x, y, rtol=2e-5, atol=1e-6)


def test_vmap_over_any_hyperparameter():
    decays = jnp.array([0.5, 0.9, 0.99])
    many = jax.vmap(lambda decay: aj.rmsprop(0.1, decay, momentum=decay))(decays)
    params, _ = jax.vmap(run)(many)
    for index, decay in enumerate(decays):
        alone, _ = run(aj.rmsprop(0.1, float(decay), momentum=float(decay)))
        np.testing.assert_allclose(params["w"][index], alone["w"], rtol=2e-5)


def test_schedules_are_static_and_start_at_count_zero():
    schedule = optax.linear_schedule(1.0, 0.0, 4)
    tx = aj.sgd(schedule)
    assert jax.tree.leaves(tx) == []
    state, seen = tx.init(PARAMS), []
    for _ in range(5):
        updates, state = tx.update(jax.tree.map(jnp.ones_like, PARAMS), state)
        seen.append(float(updates["b"][0]))
    assert seen == [-1.0, -0.75, -0.5, -0.25, 0.0]


def test_a_schedule_may_be_any_hyperparameter():
    constant = optax.constant_schedule
    scheduled = aj.adam(constant(0.1), constant(0.9), constant(0.99), constant(1e-6))
    params, state = run(scheduled)
    expected, _ = run(aj.adam(0.1, 0.9, 0.99, 1e-6))
    np.testing.assert_allclose(params["w"], expected["w"], rtol=1e-5)
    assert state[0]._fields == ("count", "b1_correction", "b2_correction", "mu", "nu")


def test_a_tracer_as_hyperparameter_is_differentiable():
    def loss(rate, b1):
        params, _ = run(aj.adam(rate, b1=b1), steps=3)
        return jnp.sum(params["w"] ** 2)

    slopes = jax.grad(loss, argnums=(0, 1))(jnp.float32(0.1), jnp.float32(0.9))
    step = 1e-2
    numeric = (loss(0.1 + step, 0.9) - loss(0.1 - step, 0.9)) / (2 * step)
    np.testing.assert_allclose(slopes[0], numeric, rtol=1e-2)
    numeric = (loss(0.1, 0.9 + step) - loss(0.1, 0.9 - step)) / (2 * step)
    np.testing.assert_allclose(slopes[1], numeric, rtol=3e-2)


@pytest.mark.parametrize("case", CASES)
def test_repr_reads_like_the_call(case):
    factory, settings = CASES[case]
    text = repr(factory(**settings))
    assert text.startswith(f"{factory.__name__}(")
    for name, value in settings.items():
        shown = "schedule" if callable(value) else repr(value)
        assert f"{name}={shown}" in text
    if not any(callable(value) for value in settings.values()):
        names = {name: getattr(aj, name) for name in ("sgd", factory.__name__)}
        names |= {name: getattr(aj.schedules, name) for name in dir(aj.schedules)}
        again = eval(text, names)
        assert repr(again) == text
        made = names[factory.__name__](**settings)
        assert jax.tree.structure(again) == jax.tree.structure(made)
        assert jax.tree.leaves(again) == jax.tree.leaves(factory(**settings))


def test_a_weight_decay_of_0_is_shown_where_it_is_not_the_default():
    assert "weight_decay" not in repr(aj.adan(0.1)) + repr(aj.lamb(0.1, weight_decay=0))
    assert (
        repr(aj.lion(0.1, weight_decay=0))
        == "lion(learning_rate=0.1, b1=0.9, b2=0.99, weight_decay=None)"
    )


def test_repr_of_many_optimizers_and_of_arrays_is_short():
    rates = jnp.array([0.1, 0.2])
    assert "learning_rate=float32[2]" in repr(jax.vmap(aj.sgd)(rates))
    assert repr(aj.sgd(jnp.float32(0.25))) == "sgd(learning_rate=0.25)"


def test_an_array_learning_rate_can_be_traced_in_a_scan():
    def train(rate):
        def body(carry, step):
            params, state = carry
            updates, state = aj.sgd(rate, momentum=0.9).update(gradients(step), state, params)
            return (optax.apply_updates(params, updates), state), None

        state = aj.sgd(rate, momentum=0.9).init(PARAMS)
        return jax.lax.scan(body, (PARAMS, state), jnp.arange(20.0))[0][0]

    expected, _ = run(aj.sgd(0.1, momentum=0.9))
    np.testing.assert_allclose(jax.jit(train)(0.1)["w"], expected["w"], rtol=1e-5)


# ---------------------------------------------------------------------------- what is not ours


def run_plainly(tx):
    params, state = PARAMS, tx.init(PARAMS)
    for step in range(3):
        updates, state = tx.update(gradients(step), state, params)
        params = optax.apply_updates(params, updates)
    return params


LABELS = {"w": "a", "b": "b"}
CLOSURES = {
    "lion": optax.lion,
    "partition": lambda lr: optax.partition(
        {"a": aj.adam(lr), "b": optax.sgd(lr, momentum=0.9)}, LABELS
    ),
    "masked": lambda lr: optax.masked(optax.adamw(lr, weight_decay=lr), {"w": True, "b": False}),
    "MultiSteps": lambda lr: optax.MultiSteps(optax.adam(lr), 2),
    "inject_hyperparams": lambda lr: optax.inject_hyperparams(optax.adam)(learning_rate=lr),
    "schedule": lambda lr: optax.adam(functools.partial(lambda n, lr: lr / (1.0 + n), lr=lr)),
    "our schedule": lambda lr: aj.adam(lambda n: lr * 0.5 ** n.astype(jnp.float32)),
    "chain": lambda lr: optax.chain(optax.scale_by_adam(), optax.scale(-lr)),
}


@jax.numpy_dtype_promotion("standard")
@pytest.mark.parametrize("make", CLOSURES.values(), ids=CLOSURES)
def test_traced_numbers_in_closures_are_data(make):
    """A transformation of optax's that is made under vmap: its numbers come out, and go in again."""
    rates = jnp.array([0.1, 0.03])
    expected = [run_plainly(aj.chain(make(float(rate)))) for rate in rates]
    expected = jax.tree.map(lambda *each: jnp.stack(each), *expected)

    def close(found, tolerance=1e-6):
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, rtol=tolerance, atol=1e-7),
            found,
            expected,
        )

    with jax.checking_leaks():
        many = jax.vmap(lambda rate: aj.chain(aj.clip(100.0), make(rate)))(rates)
    assert jax.tree.leaves(many)
    close(jax.vmap(run_plainly)(many))
    one = jax.jit(lambda rate: aj.skip_nonfinite(make(rate)))(rates[0])
    again = jax.tree.map(lambda x: x, one)
    assert jax.tree.structure(one) == jax.tree.structure(again)
    close(jax.tree.map(lambda x, y: jnp.stack([x, y[1]]), run_plainly(again), expected))


def test_sweeps_over_what_is_not_ours():
    def loss(params, batch):
        return jnp.sum(jnp.sin(params["w"])) + jnp.sum(params["b"] ** 2) + 0 * batch

    step, rates = aj.train_step(loss, metrics=("loss",)), jnp.array([0.1, 0.03])
    make = lambda rate: aj.TrainState.create(PARAMS, optax.lion(rate))  # noqa: E731
    states = jax.vmap(make)(rates)
    for _ in range(3):
        states, _ = jax.vmap(step, in_axes=(0, None))(states, 0.0)
    swept = aj.sweep(make, step=step, batches=[0.0] * 3, rate=rates)
    for i, rate in enumerate(rates):
        state = make(float(rate))
        for _ in range(3):
            state, metrics = step(state, 0.0)
        np.testing.assert_allclose(states.params["w"][i], state.params["w"], rtol=1e-6)
        np.testing.assert_allclose(swept.objective[i, 0], metrics["loss"], rtol=1e-5)
    assert state.replace(tx=state.tx).tx is state.tx


def test_what_is_not_ours_is_as_static_as_before():
    transformation = optax.lion(0.1)
    first, second = aj.chain(transformation), aj.chain(transformation)
    assert jax.tree.leaves(first) == []
    assert jax.tree.structure(first) == jax.tree.structure(second)
    steps = optax.MultiSteps(optax.adam(0.1), 2)
    assert jax.tree.structure(aj.chain(steps)) == jax.tree.structure(aj.chain(steps))


def test_a_traced_number_out_of_reach():
    def make(rate):
        scale = jax.jit(lambda updates, params: jax.tree.map(lambda x: rate * x, updates))
        return aj.chain(optax.stateless(scale))

    with pytest.raises(
        TypeError, match=r"chain got stateless, .* a PjitFunction: .*inject_hyperparams"
    ):
        jax.vmap(make)(jnp.array([0.1, 0.2]))
    make(0.1)


def test_closures_that_know_themselves():
    """Functions that call each other, defaults, methods and objects; what holds nothing is shared."""

    class Doubled:
        def __init__(self, rate):
            self.rate = rate

        def update(self, updates, state, params=None):
            return jax.tree.map(lambda x: 2 * self.rate * x, updates), state

    def recursive(rate, names=("w",)):
        unchanged = optax.clip(1.0)

        def times(x, n, *, rate=rate):
            return x if n == 0 else rate * times(x, n - 1)

        def update(updates, state, params=None):
            return jax.tree.map(lambda x: times(x, 2), updates), state

        chained = optax.chain(unchanged, optax.GradientTransformation(unchanged.init, update))
        doubled = optax.GradientTransformation(unchanged.init, Doubled(rate).update)
        return optax.chain(chained, doubled)

    many = jax.vmap(lambda rate: aj.chain(recursive(rate)))(jnp.array([0.5, 2.0]))
    ones = jnp.ones(2)
    found = jax.vmap(lambda tx: tx.update(ones, tx.init(ones))[0])(many)
    np.testing.assert_allclose(found[:, 0], [2 * 0.5**3, 2 * 2.0**3])


def test_a_schedule_that_cannot_be_opened_works_within_its_trace():
    make = lambda rate: aj.adam(jax.jit(lambda n: rate / (1.0 + n.astype(rate.dtype))))  # noqa: E731

    def first(rate):
        tx = make(rate)
        return tx.update(jnp.ones(2), tx.init(jnp.ones(2)))[0]

    found = jax.vmap(first)(jnp.array([0.1, 0.2]))
    np.testing.assert_allclose(found[:, 0], [-0.1, -0.2], rtol=1e-6)


class Trainer:
    """It has a schedule, and much else."""

    def __init__(self):
        self.rows = [object() for _ in range(10_000)]

    def schedule(self, count):
        return 0.1


def test_data_beside_a_schedule_is_not_looked_through(monkeypatch):
    looked = []
    parts = aj._core.closures._parts
    monkeypatch.setattr(aj._core.closures, "_parts", lambda x: looked.append(x) or parts(x))
    aj.adam(Trainer().schedule)
    assert len(looked) < 100


class Endless:
    """Whenever it is looked at it has another part, as proxies of objects have."""

    @property
    def __dict__(self):
        return {"next": Endless()}


def test_what_never_ends_is_not_looked_through_for_ever():
    endless, clip = Endless(), optax.clip(1.0)

    def update(updates, state, params=None):
        return clip.update(updates, state, endless and params)

    tx = aj.chain(optax.GradientTransformation(clip.init, update), aj.sgd(0.1))
    assert tx.update(jnp.ones(2), tx.init(jnp.ones(2)))[0].shape == (2,)
