"""The runs of a sweep: in pieces that fit, on every core, and what choices of code compare."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from swept_run import RATES, train

import adaptive_jax as aj
from adaptive_jax.training.search import runs


def test_pieces_give_what_the_whole_gives():
    whole = aj.sweep(train, learning_rate=RATES, seeds=5)
    pieces = aj.sweep(train, learning_rate=RATES, seeds=5, batch_size=3)
    np.testing.assert_allclose(pieces.outputs, whole.outputs, rtol=2e-5)


@pytest.fixture
def programs(monkeypatch):
    """The programs that sweeps make during a test."""
    made, original = [], runs.program

    def watched(*arguments):
        made.append(original(*arguments))
        return made[-1]

    monkeypatch.setattr(runs, "program", watched)
    return made


@pytest.fixture
def two_cores(monkeypatch):
    one = jax.local_devices()[:1]
    monkeypatch.setattr(jax, "local_devices", lambda: one)
    monkeypatch.setattr(runs, "_cores", lambda: 2)


def needed(size):
    """The bytes of so many runs at once, by XLA's account."""
    numbers = np.zeros(size, np.float32), np.zeros(size, np.int32)
    curves = jax.jit(
        jax.vmap(lambda rate, seed: (lambda curve: (curve[-1], curve))(train(rate, seed=seed)))
    )
    return runs._bytes(curves.lower(*numbers).compile())


@pytest.mark.usefixtures("two_cores")
def test_a_byte_budget_chooses_the_pieces(programs):
    whole = aj.sweep(train, learning_rate=RATES, seeds=50)
    few = aj.sweep(train, learning_rate=RATES, seeds=50, memory=2 * needed(40))
    one = aj.sweep(train, learning_rate=RATES, seeds=2, memory=1.5 * needed(1))
    assert [made.threads for made in programs] == [2, 2, 1]
    assert programs[0].size == 64
    assert 25 <= programs[1].size <= 40
    assert needed(programs[1].size) <= needed(40)
    assert programs[2].size == 1
    np.testing.assert_allclose(few.outputs, whole.outputs, rtol=2e-5)
    np.testing.assert_allclose(one.outputs, whole.outputs[:, :2], rtol=2e-5)
    with pytest.raises(ValueError, match=r"1 run at a time would take .* 8 bytes are allowed"):
        aj.sweep(train, learning_rate=RATES, memory=8)
    with pytest.raises(ValueError, match=r"150 runs at a time .* give a smaller batch_size"):
        aj.sweep(train, learning_rate=RATES, seeds=50, memory=2 * needed(40), batch_size=150)


@pytest.mark.usefixtures("two_cores")
def test_each_core_takes_its_share(programs):
    for seeds, batch_size in [(1, None), (10, None), (10, 30), (10, 7), (10, 1), (10, 100)]:
        aj.sweep(train, learning_rate=RATES, seeds=seeds, batch_size=batch_size)
    made = [(each.size, each.threads) for each in programs]
    assert made == [(2, 2), (20, 2), (15, 2), (3, 2), (1, 1), (20, 2)]


@pytest.mark.usefixtures("two_cores")
def test_threads_see_what_the_caller_set(programs):
    def precise(learning_rate, seed):
        return jnp.asarray(learning_rate) ** 2

    rates = np.array([1 / 3, 2 / 3, 1.0, 4 / 3])
    with jax.enable_x64(True):
        result = aj.sweep(precise, learning_rate=rates)
    assert programs[0].threads == 2
    assert result.outputs.dtype == np.float64
    np.testing.assert_array_equal(result.outputs[:, 0], rates**2)


def test_choices_need_not_hash(compiled):
    lean = {"mu": aj.Blocks(min_size=0), "nu": aj.BFloat16(min_size=0)}
    result = aj.sweep(
        train, learning_rate=RATES[:2], storage=[None, lean, dict(lean)], nesterov=True, seeds=2
    )
    assert compiled.count("jit(_all_runs)") == 2  # two of the three are equal
    np.testing.assert_array_equal(result.objective[1], result.objective[2])
    assert np.all(result.objective[0] != result.objective[1])


def test_branches_are_found_by_the_axes_they_are_on():
    def branches(a, b, c):
        if a > 0 and c > 0:
            return b
        return a

    with pytest.raises(ValueError, match="'a', 'c'"):
        aj.sweep(branches, a=[1.0], b=[1.0], c=[1.0])

    def numpy_seed(a, seed):
        return a * np.random.default_rng(seed).normal()

    with pytest.raises(ValueError, match=r"value of its seed .* jax.random.key\(seed\), not with"):
        aj.sweep(numpy_seed, a=[1.0], seeds=2)

    def broken(a):
        raise RuntimeError("of its own")

    with pytest.raises(RuntimeError, match="of its own"):
        aj.sweep(broken, a=[1.0])


@jax.numpy_dtype_promotion("standard")
def test_the_peak_of_a_schedule_of_optax():
    """It takes Python numbers: the peak is multiplied behind a schedule that peaks at 1."""
    schedule = functools.partial(
        optax.warmup_cosine_decay_schedule, init_value=0.0, warmup_steps=3, decay_steps=8
    )

    def run(tx):
        params, state = jnp.ones(3), tx.init(jnp.ones(3))
        for _ in range(6):
            updates, state = tx.update(jnp.cos(params), state, params)
            params = optax.apply_updates(params, updates)
        return jnp.sum(params)

    with pytest.raises(
        ValueError, match=r"'peak'.* aj.scale_by_learning_rate\(peak, flip_sign=False\)"
    ):
        aj.sweep(lambda peak: run(aj.adam(schedule(peak_value=peak))), peak=[0.1, 0.2])
    once = aj.adam(schedule(peak_value=1.0))

    def recipe(peak):
        return run(aj.chain(once, aj.scale_by_learning_rate(peak, flip_sign=False)))

    found = aj.sweep(recipe, peak=[0.1, 0.2])
    expected = [run(aj.adam(schedule(peak_value=peak))) for peak in (0.1, 0.2)]
    np.testing.assert_allclose(found.objective.ravel(), expected, rtol=1e-5)
