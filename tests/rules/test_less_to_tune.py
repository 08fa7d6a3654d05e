"""What finds its own step size, or evaluates elsewhere, in a training run and in the library's wrappers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

import adaptive_jax as aj

PARAMS = {"w": jnp.array([[1.0, -2, 0.5], [0.3, 1, -1]]), "b": jnp.array([2.0, -3.0])}
WEIGHTS = {"w": jnp.array([[1.0, 2, 3], [4, 5, 6]]), "b": jnp.array([0.5, 2.0])}


def loss(params, batch):
    parts = jax.tree.map(
        lambda w, x: 0.5 * jnp.sum(w * (x.astype(jnp.float32) - batch) ** 2), WEIGHTS, params
    )
    return sum(jax.tree.leaves(parts))


def trained(tx, steps, params=PARAMS, **options):
    """The state after steps on one batch, in one program."""
    state, step = aj.TrainState.create(params, tx, **options), aj.train_step(loss)
    run = jax.jit(
        lambda state: jax.lax.fori_loop(0, steps, lambda _, s: step(s, jnp.float32(0.25))[0], state)
    )
    return run(state)


LOW = {
    "prodigy": (aj.prodigy, contrib.prodigy, 60),
    "dog": (aj.dog, contrib.dog, 150),
    "schedule_free_adamw": (
        lambda: aj.schedule_free_adamw(2e-3, warmup_steps=10),
        lambda: contrib.schedule_free_adamw(2e-3, warmup_steps=10),
        400,
    ),
}


@pytest.mark.parametrize("name", LOW)
def test_bfloat16_parameters_learn_as_float32_does(name):
    """And with optax, whose numbers are bfloat16, and which rounds to nearest, they stay where they are."""
    ours, theirs, steps = LOW[name]
    batch = jnp.float32(0.25)
    low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS)
    losses = []
    for params in (PARAMS, low):
        state = trained(ours(), steps, params)
        losses.append(float(loss(state.eval_params(), batch)))
    with jax.numpy_dtype_promotion("standard"):
        tx = theirs()

        def body(_, carry):
            params, state = carry
            updates, state = tx.update(jax.grad(loss)(params, batch), state, params)
            return optax.apply_updates(params, updates), state

        params, _ = jax.jit(lambda: jax.lax.fori_loop(0, steps, body, (low, tx.init(low))))()
    first, stayed = float(loss(PARAMS, batch)), float(loss(params, batch))
    assert losses[0] < 0.7 * first
    assert losses[1] < 2 * losses[0]
    assert stayed > 0.9 * first


def test_what_is_not_finite_does_not_stay_in_d():
    for make in (aj.prodigy, aj.dadapt_adamw, aj.dog, aj.momo):
        tx = aj.skip_nonfinite(make())
        state, update = tx.init(PARAMS), jax.jit(tx.update)
        for bad in (1.0, jnp.nan, jnp.inf, 1.0):
            gradients = jax.tree.map(lambda w, x, bad=bad: w * x * bad, WEIGHTS, PARAMS)
            updates, state = update(gradients, state, PARAMS, value=jnp.float32(1.0))
        leaves = jax.tree.leaves((updates, state))
        assert all(np.isfinite(x).all() for x in leaves if x.dtype != bool)
        assert state.total_notfinite == 2 if hasattr(state, "total_notfinite") else True


def test_each_group_has_its_own_d():
    tx = aj.partition({"w": aj.prodigy(), "b": aj.prodigy(estim_lr0=1e-2)}, {"w": "w", "b": "b"})
    together = trained(tx, 12).opt_state
    d = [float(together.inner_states[name].inner_state.d) for name in ("w", "b")]
    assert d[1] > 1e-2
    assert d[0] != d[1]
    alone = aj.prodigy(estim_lr0=1e-2)
    params, state = {"b": PARAMS["b"]}, alone.init({"b": PARAMS["b"]})
    for _ in range(12):
        gradients = jax.tree.map(lambda x: WEIGHTS["b"] * (x - 0.25), params)
        updates, state = alone.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(d[1], state.d, rtol=1e-3)


def test_one_step_for_two_gradients():
    for make in (aj.prodigy, aj.momo_adam, lambda: aj.schedule_free_sgd(0.1)):
        one, two = trained(make(), 3), trained(aj.multi_steps(make(), 2), 6)
        for name in PARAMS:
            np.testing.assert_allclose(one.params[name], two.params[name], rtol=1e-6)
            np.testing.assert_allclose(one.eval_params()[name], two.eval_params()[name], rtol=1e-6)


def test_a_sweep_over_the_first_d():
    firsts = jnp.array([1e-6, 1e-3])

    def found(d0):
        return trained(aj.prodigy(estim_lr0=d0), 8).opt_state.d

    np.testing.assert_allclose(jax.vmap(found)(firsts), [found(d0) for d0 in firsts], rtol=1e-4)


@pytest.mark.parametrize("storage", ["bfloat16", "int8"])
def test_any_storage(storage):
    params = {"w": jnp.linspace(-2, 2, 4096).reshape(64, 64)}
    storage = aj.Blocks(min_size=0) if storage == "int8" else storage
    for make in (aj.prodigy, aj.momo_adam, lambda **k: aj.schedule_free_adamw(0.05, **k)):
        losses = []
        for each in (None, storage):
            tx = make(storage=each)
            state, where, update = tx.init(params), params, jax.jit(tx.update)
            for _ in range(30):
                value = 0.5 * jnp.sum(where["w"] ** 2)
                updates, state = update(where, state, where, value=value)
                where = optax.apply_updates(where, updates)
            losses.append(float(jnp.sum(aj.eval_params(tx, where, state)["w"] ** 2)))
        assert losses[1] == pytest.approx(losses[0], rel=0.3)


def test_any_direction_becomes_schedule_free():
    for direction in (aj.scale_by_lion(), aj.scale_by_adam(b1=0.0), aj.scale_by_amsgrad()):
        tx = aj.chain(direction, aj.transform(aj.rules.ScheduleFree(0.05, warmup_steps=5)))
        state = trained(tx, 150)
        assert loss(state.eval_params(), 0.25) < 0.3 * loss(PARAMS, 0.25)
    # A whole optimizer's steps give the same as its direction.
    rows = [
        aj.chain(aj.scale_by_adam(b1=0.0), aj.transform(aj.rules.ScheduleFree(0.05))),
        aj.schedule_free(aj.adam(0.05, b1=0.0), 0.05),
    ]
    one, other = (trained(tx, 20) for tx in rows)
    for name in PARAMS:
        np.testing.assert_allclose(one.eval_params()[name], other.eval_params()[name], rtol=1e-5)


def test_what_cannot_be_is_refused_by_name():
    for make, name in ((aj.prodigy, "d0"), (aj.dadapt_adamw, "d0")):
        for wrong in (0.0, -1e-6):
            with pytest.raises(ValueError, match=rf"{name}={wrong} is out of range in .*: .* > 0"):
                make(estim_lr0=wrong)
    with pytest.raises(ValueError, match=r"c=0.0 is out of range in StochasticPolyak: .* > 0"):
        aj.sps(c=0.0)  # With which nothing would move.
    for make in (aj.schedule_free_sgd, aj.schedule_free_adamw):
        for wrong in (0.0, -0.5, 1.5):
            with pytest.raises(
                ValueError, match=rf"b1={wrong} is out of range in ScheduleFree.*\(0, 1\]"
            ):
                make(b1=wrong)
        with pytest.raises(TypeError, match="b1 is a schedule in ScheduleFree"):
            make(b1=optax.linear_schedule(0.9, 0.5, 10))
    for tx in (aj.momo(), aj.momo_adam(), aj.sps(), aj.polyak_sgd(), aj.scale_by_polyak()):
        with pytest.raises(
            ValueError, match="needs the extra argument value, a number: call update"
        ):
            tx.update(PARAMS, tx.init(PARAMS), PARAMS)
    with pytest.raises(
        ValueError, match=r"init_step\[0\]='far' is not known: it must be one of 'heur"
    ):
        aj.dog(init_step=("far", 1.0))
    with pytest.raises(TypeError, match=r"init_step=1e-06 must be a pair of a word"):
        aj.dog(init_step=1e-6)
    with pytest.raises(
        ValueError, match=r"Prodigy\(.* would multiply by a second one: leave that out"
    ):
        aj.chain(aj.prodigy(), aj.sgd(0.1))


def test_sums_over_devices_are_few_numbers():
    """Of arrays that are divided, the numbers that are summed, and nothing of their size."""
    if jax.device_count() < 2:
        pytest.skip("one device")
    mesh = jax.make_mesh(
        (2,), ("x",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:2]
    )
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    params = {f"w{i}": jax.device_put(jnp.ones((64, 32)), sharding) for i in range(4)}
    for make in (aj.prodigy, aj.dog, aj.momo_adam):
        tx = make()
        state = jax.jit(tx.init)(params)
        compiled = (
            jax.jit(lambda g, s, p, tx=tx: tx.update(g, s, p, value=jnp.float32(1)))
            .lower(params, state, params)
            .compile()
        )
        text = compiled.as_text()
        assert "all-gather" not in text
        for line in text.splitlines():
            if " all-reduce(" in line:
                assert "64" not in line.partition("all-reduce(")[0], line
