"""Schedules are data: equal to optax's, printable, and their numbers are leaves that nothing recompiles."""

from __future__ import annotations

import copy
import inspect
import itertools
import pickle
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adaptive_jax as aj
from adaptive_jax import schedules
from adaptive_jax.schedules import Schedule

# Before, at and past every boundary.
COUNTS = np.array(
    [-1, 0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 15, 19, 20, 21, 29, 30, 85, 100, 101, 10**6], np.int32
)
CYCLE = {"init_value": 0.0, "peak_value": 1.0, "warmup_steps": 5, "end_value": 0.1}
DICTS = [
    None,
    {},
    {20: 0.5, 10: 3},
    {5: 0.0, 7: 2.0},
    {0: 0.5, 10: 0.1},
    {1: 2.0},
    {-5: 2.0, 6: 0.3},
]
OPTIONS = {
    "constant_schedule": {"value": [0.1, -2]},
    "polynomial_schedule": {
        "init_value": [1.0], "end_value": [0.01, 3], "power": [2, 0.5, 0, 1],
        "transition_steps": [10, 0, -5], "transition_begin": [0, 5, -4],
    },
    "linear_schedule": {
        "init_value": [-1.0], "end_value": [0.01], "transition_steps": [10, 1, 0, -5],
        "transition_begin": [0, 5, -4],
    },
    "exponential_decay": {
        "init_value": [1.0], "transition_steps": [10, 0], "decay_rate": [0.5, 1.5, 0, 0.99999999],
        "transition_begin": [0, -4], "staircase": [False, True], "end_value": [None, 0.25, 2],
    },
    "cosine_decay_schedule": {
        "init_value": [1.0], "decay_steps": [10, 10_000], "alpha": [0.0, 0.1], "exponent": [1.0, 0.5, 0],
    },
    "piecewise_constant_schedule": {"init_value": [0.3], "boundaries_and_scales": DICTS},
    "piecewise_interpolate_schedule": {
        "interpolate_type": ["linear", "cosine"], "init_value": [0.3], "boundaries_and_scales": DICTS,
    },
    "linear_onecycle_schedule": {
        "transition_steps": [100, 1], "peak_value": [0.3], "pct_start": [0.29, 0.9],
        "pct_final": [0.85, 1.0], "div_factor": [25.0], "final_div_factor": [1e4, 0.5],
    },
    "cosine_onecycle_schedule": {
        "transition_steps": [100, 2], "peak_value": [0.3], "pct_start": [0.29, 1.0], "div_factor": [4],
    },
    "warmup_constant_schedule": {
        "init_value": [0.1], "peak_value": [1.0], "warmup_steps": [10, 1, 0, -2],
    },
    "warmup_cosine_decay_schedule": {
        "init_value": [0.1], "peak_value": [1.0, 0.0], "warmup_steps": [5, 0, -2], "decay_steps": [20, 100],
        "end_value": [0.0, 0.2], "exponent": [1.0, 2],
    },
    "warmup_exponential_decay_schedule": {
        "init_value": [0.1], "peak_value": [1.0], "warmup_steps": [5, 0], "transition_steps": [10],
        "decay_rate": [0.5, 1.5], "transition_begin": [0, 5], "staircase": [False, True],
        "end_value": [None, 0.25],
    },
    "sgdr_schedule": {
        "cosine_kwargs": [[{**CYCLE, "decay_steps": n} for n in ns] for ns in [(10,), (6, 7, 30)]],
    },
}  # fmt: skip
# Those that optax has not.
OWN = {
    "cyclic_schedule": {
        "init_value": [0.1], "peak_value": [1.0], "up_steps": [4], "down_steps": [None, 6],
        "decay_rate": [1.0, 0.5], "decay_each_step": [False, True],
    },
    "half_life_schedule": {
        "init_value": [0.9], "end_value": [0.9999, 0.5], "transition_steps": [10, 0, -5],
        "transition_begin": [0, 5, -4],
    },
    "warmup_inverse_sqrt_schedule": {
        "init_value": [0.1], "peak_value": [1.0], "warmup_steps": [5, 0], "timescale": [None, 3],
    },
    "warmup_stable_decay_schedule": {
        "init_value": [0.1], "peak_value": [1.0], "warmup_steps": [5], "stable_steps": [10],
        "decay_steps": [5, 0], "end_value": [0.0, 0.2], "shape": ["linear", "cosine", "sqrt"],
    },
}  # fmt: skip
JOINED = schedules.join_schedules(
    [schedules.linear_schedule(0.0, 1.0, 5), 0.5, schedules.cosine_decay_schedule(1.0, 10)], [5, 9]
)


def settings(name):
    options = (OPTIONS | OWN)[name]
    return [
        dict(zip(options, values, strict=True)) for values in itertools.product(*options.values())
    ]


def optax_values(name, setting, counts):
    """At all counts; its schedules between boundaries take one at a time."""
    schedule = getattr(optax, name)(**setting)
    with jax.numpy_dtype_promotion("standard"):
        if "interpolate" in name or "onecycle" in name:
            return jax.vmap(schedule)(counts)
        return jnp.broadcast_to(schedule(counts), counts.shape)


def test_every_schedule_of_optax_is_here_under_its_name_with_its_arguments():
    theirs = {
        name: value
        for name, value in vars(optax.schedules).items()
        if inspect.isfunction(value) and not name.startswith("inject")
    }
    assert set(theirs) == {*OPTIONS, "join_schedules"}
    for name, function in theirs.items():
        ours = inspect.signature(getattr(schedules, name)).parameters
        expected = inspect.signature(function).parameters
        assert list(ours) == list(expected)
        for argument, parameter in expected.items():
            assert ours[argument].default == parameter.default, (name, argument)


def chosen(listed, most):
    """So many of them, the first and the last among them."""
    places = np.linspace(0, len(listed) - 1, min(most, len(listed)))
    return [listed[int(place)] for place in places]


@pytest.mark.parametrize("most", [2, pytest.param(40, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", OPTIONS)
def test_values_are_those_of_optax(name, most):
    """In float64 the counts are floating too: optax divides int32 in float32."""
    for setting in chosen(settings(name), most):
        values = getattr(schedules, name)(**setting)(COUNTS)
        assert values.dtype == jnp.float32
        expected = optax_values(name, setting, jnp.asarray(COUNTS))
        np.testing.assert_allclose(values, expected, rtol=2e-6, err_msg=str(setting))
    with jax.enable_x64(True):
        for setting in chosen(settings(name)[::-1], max(1, most // 3)):
            values = getattr(schedules, name)(**setting)(COUNTS)
            assert values.dtype == jnp.float64
            expected = optax_values(name, setting, jnp.asarray(COUNTS, jnp.float64))
            np.testing.assert_allclose(values, expected, rtol=1e-14, err_msg=str(setting))


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("linear_onecycle_schedule", {"transition_steps": 100, "peak_value": 1.0, "pct_start": 0.29}),
        ("cosine_onecycle_schedule", {"transition_steps": 100, "peak_value": 1.0, "pct_start": 0.29}),
        ("exponential_decay", {"init_value": 1.0, "transition_steps": 10, "decay_rate": 1 - 1e-9,
                               "end_value": 0.5}),
    ],
)  # fmt: skip
def test_branches_on_python_numbers_are_taken_in_float64(name, setting):
    """0.29 · 100 is 28.999… in float64 and 29 in float32; a rate below 1 is 1."""
    counts = jnp.arange(27, 31)
    expected = optax_values(name, setting, counts)
    schedule = getattr(schedules, name)(**setting)
    np.testing.assert_allclose(schedule(counts), expected, rtol=2e-6)
    np.testing.assert_allclose(jax.jit(lambda s: s(counts))(schedule), expected, rtol=2e-6)


def test_joined_schedules_are_those_of_optax():
    theirs = optax.join_schedules(
        [optax.linear_schedule(0.0, 1.0, 5), lambda _: 0.5, optax.cosine_decay_schedule(1.0, 10)],
        [5, 9],
    )
    with jax.numpy_dtype_promotion("standard"):
        expected = theirs(jnp.asarray(COUNTS))
        np.testing.assert_array_equal(JOINED(COUNTS), expected)
        # And with schedules of optax's in it.
        mixed = schedules.join_schedules(
            [optax.linear_schedule(0.0, 1.0, 5), 0.5, schedules.cosine_decay_schedule(1.0, 10)],
            (5, 9),
        )
        np.testing.assert_array_equal(mixed(COUNTS), expected)


def test_the_schedules_that_optax_has_not():
    """Against loops in Python."""
    shapes = {"linear": lambda x: 1 - x, "cosine": lambda x: (1 + np.cos(np.pi * x)) / 2,
              "sqrt": lambda x: 1 - np.sqrt(x)}  # fmt: skip

    def warmed_up(s, t, after):
        i, p, w = s["init_value"], s["peak_value"], s["warmup_steps"]
        return i + (p - i) * t / w if t < w else after(t - w)

    def inverse_sqrt(s, t):
        scale = s["timescale"] or max(s["warmup_steps"], 1)
        return warmed_up(s, t, lambda u: s["peak_value"] * np.sqrt(scale / (u + scale)))

    def stable(s, t):
        def after(u):
            if s["decay_steps"] == 0:
                return s["peak_value"]
            x = min(max(u - s["stable_steps"], 0) / s["decay_steps"], 1)
            return s["end_value"] + (s["peak_value"] - s["end_value"]) * shapes[s["shape"]](x)

        return warmed_up(s, t, after)

    def cyclic(s, t):
        up, down = s["up_steps"], s["down_steps"] or s["up_steps"]
        cycle, step = divmod(t, up + down)
        x = step / up if step < up else (up + down - step) / down
        factor = s["decay_rate"] ** (t if s["decay_each_step"] else cycle)
        return s["init_value"] + (s["peak_value"] - s["init_value"]) * x * factor

    def half_life(s, t):
        """The paper's f⁻¹(lerp(f(I), f(E))), f(β) = log ½/log β - 1."""
        if s["transition_steps"] <= 0:
            return s["init_value"]
        x = min(max(t - max(s["transition_begin"], 0), 0) / s["transition_steps"], 1)
        first, last = (np.log(0.5) / np.log(s[key]) - 1 for key in ("init_value", "end_value"))
        return 0.5 ** (1 / ((1 - x) * first + x * last + 1))

    counts = np.arange(40)
    for name, function in zip(OWN, (cyclic, half_life, inverse_sqrt, stable), strict=True):
        for setting in settings(name):
            expected = [function(setting, int(t)) for t in counts]
            values = getattr(schedules, name)(**setting)(counts)
            np.testing.assert_allclose(values, expected, rtol=2e-6, atol=1e-7, err_msg=str(setting))


def test_sums_and_products():
    a, b = schedules.linear_schedule(1.0, 0.0, 10), schedules.cosine_decay_schedule(2.0, 20)
    for combined, expected, shown in (
        (a + b, a(COUNTS) + b(COUNTS), f"{a} + {b}"),
        (2 * a * b, 2 * a(COUNTS) * b(COUNTS), f"2.0 * {a} * {b}"),
        (np.float32(2) * (a + 1), 2 * (a(COUNTS) + 1), f"2.0 * ({a} + 1.0)"),
        (jnp.float32(0.5) * a, 0.5 * a(COUNTS), f"0.5 * {a}"),
        (a * b + 1, a(COUNTS) * b(COUNTS) + 1, f"{a} * {b} + 1.0"),
    ):
        assert isinstance(combined, Schedule)
        np.testing.assert_allclose(combined(COUNTS), expected, rtol=1e-6)
        assert repr(combined) == shown
    assert repr(sum([a, b])) == f"0.0 + {a} + {b}"
    assert len(jax.tree.leaves(2 * a * b)) == 1 + 4 + 4
    named = schedules.product_of_schedules([0.5, optax.constant_schedule(0.5)])
    assert named(3) == 0.25


@pytest.mark.parametrize("name", OPTIONS | OWN)
def test_it_prints_as_the_call_that_makes_it_again(name):
    for setting in settings(name):
        schedule = getattr(schedules, name)(**setting)
        assert eval(repr(schedule), vars(schedules) | {"dict": dict}) == schedule
        for same in (copy.copy(schedule), pickle.loads(pickle.dumps(schedule))):
            assert same == schedule
        leaves, treedef = jax.tree.flatten(schedule)
        assert all(type(leaf) is float for leaf in leaves)
        assert treedef.unflatten(leaves) == schedule


def test_an_optimizer_prints_its_schedule():
    assert repr(aj.sgd(schedules.warmup_cosine_decay_schedule(0.0, 1e-3, 5, 100))) == (
        "sgd(learning_rate=warmup_cosine_decay_schedule(init_value=0.0, peak_value=0.001, warmup_steps=5, "
        "decay_steps=100))"
    )
    steps = schedules.piecewise_constant_schedule(0.1, {60: 0.5, 80: 0.25})
    shown = "piecewise_constant_schedule(init_value=0.1, boundaries_and_scales={60: 0.5, 80: 0.25})"
    assert repr(steps) == shown
    assert repr(jax.tree.map(jnp.float32, steps)) == shown
    assert repr(JOINED) == (
        "join_schedules(schedules=[linear_schedule(init_value=0.0, end_value=1.0, transition_steps=5), "
        "0.5, cosine_decay_schedule(init_value=1.0, decay_steps=10)], boundaries=[5, 9])"
    )
    traced = []
    jax.make_jaxpr(lambda s: traced.append(repr(s)))(steps)
    assert "init_value=float32[]" in traced[0]


def grouped(name):
    """The settings with the same options and as many numbers: numbers as float32, options, values."""
    groups = {}
    for setting in settings(name):
        if setting.get("decay_rate") == 0.99999999 or 0.29 in setting.values():
            continue  # In float32 they are other numbers.
        data, options = {}, {}
        for key, value in setting.items():
            (options if value is None or isinstance(value, (bool, str)) else data)[key] = value
            if isinstance(value, dict):
                data[key] = tuple(zip(*sorted(value.items()), strict=True)) or ((), ())
        key = str(options), jax.tree.structure(data)
        groups.setdefault(key, []).append((jax.tree.map(jnp.float32, data), options, setting))
    return list(groups.values())


DEFAULT = (
    "polynomial_schedule", "exponential_decay", "cosine_decay_schedule", "piecewise_interpolate_schedule",
    "warmup_inverse_sqrt_schedule", "warmup_stable_decay_schedule",
)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "most"),
    [
        *((name, 1) for name in DEFAULT),
        *(pytest.param(name, 20, marks=pytest.mark.slow) for name in OPTIONS | OWN),
    ],
)
def test_traced_numbers_have_the_values_of_python_numbers_and_finite_derivatives(name, most):
    """All arguments at once, at every count: the corners and lengths of 0 are among them."""
    counts = jnp.asarray(COUNTS[COUNTS < 10**6])
    for group in chosen(grouped(name)[::-1], most):
        rows, (options, *_), listed = zip(*group, strict=True)

        def values(data, options=options):
            return getattr(schedules, name)(**data, **options)(counts)

        data = jax.tree.map(lambda *x: jnp.stack(x), *rows)
        found, slopes = jax.jit(jax.vmap(lambda d: (values(d), jax.jacrev(values)(d))))(data)
        expected = [getattr(schedules, name)(**setting)(counts) for setting in listed]
        np.testing.assert_allclose(found, expected, rtol=2e-6, atol=1e-7)
        for slope in jax.tree.leaves(slopes):
            assert np.isfinite(slope).all()


def test_a_new_peak_compiles_nothing(compiled):
    def optimizer(peak, steps):
        rate = schedules.warmup_cosine_decay_schedule(0.0, peak, 5, steps)
        return aj.adam(0.5 * rate, b1=schedules.linear_schedule(0.8, peak, steps))

    params = {"w": jnp.ones(3)}
    step = aj.train_step(
        lambda params, batch: jnp.sum(params["w"] ** 2), metrics=("learning_rate",)
    )
    update = jax.jit(lambda tx, gradients, state: tx.update(gradients, state))

    def run(tx):
        state = tx.init(params)
        trained = aj.TrainState.create(jax.tree.map(jnp.copy, params), tx)
        for _ in range(2):
            tx.update(params, state)
            update(tx, params, state)
            trained, metrics = step(trained, None)
        return metrics["learning_rate"]

    assert run(optimizer(0.1, 20)) == np.float32(0.01)
    compiled.clear()
    assert run(optimizer(0.2, 30)) == np.float32(0.02)
    assert compiled == []


def run(tx, steps=12):
    """Where some steps lead."""

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(jnp.sin(params) + params, state, params)
        return (optax.apply_updates(params, updates), state), None

    params = jnp.array([1.0, -2.0, 0.5])
    (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), length=steps)
    return jnp.sum(params**2)


def recipe(peak, warmup, steps):
    return aj.adam(schedules.warmup_cosine_decay_schedule(0.0, peak, warmup, steps))


def test_vmap_over_peaks_and_lengths():
    peaks, warmups, steps = (
        jnp.array([0.1, 0.2, 0.3]), jnp.array([2.0, 4.0, 0.0]), jnp.array([9.0, 20.0, 12.0])
    )  # fmt: skip
    many = jax.vmap(recipe)(peaks, warmups, steps)
    assert "warmup_cosine_decay_schedule(init_value=float32[3], peak_value=float32[3]" in repr(many)
    expected = [run(recipe(*row)) for row in [(0.1, 2, 9), (0.2, 4, 20), (0.3, 0, 12)]]
    np.testing.assert_allclose(jax.vmap(run)(many), expected, rtol=1e-6)
    params = jnp.ones(2)
    rates = jax.vmap(schedules.linear_schedule, (0, None, None))(peaks, 0.0, 10.0)
    tx = aj.sgd(schedules.linear_schedule(0.1, 0.0, 10))
    many = jax.tree.structure(tx).unflatten(jax.tree.leaves(rates))
    with pytest.raises(ValueError, match=r"learning_rate has the shape \(3,\).* jax\.vmap as well"):
        many.update(params, tx.init(params))


def test_a_sweep_over_peaks_is_one_program(compiled):
    peaks = np.geomspace(1e-3, 1.0, 64)
    compiled.clear()
    found = aj.sweep(lambda peak: run(recipe(peak, 3, 12)), peak=peaks)
    assert len(compiled) == 1
    expected = [run(recipe(float(peak), 3, 12)) for peak in peaks[[0, 40]]]
    np.testing.assert_allclose(found.objective.ravel()[[0, 40]], expected, rtol=1e-5)


def test_hypergradients_are_finite_differences():
    """By the peak, b1, a decay length, and every number at once, of a loss after training."""
    with jax.enable_x64(True):

        def loss(peak, b1, steps):
            rate = schedules.warmup_cosine_decay_schedule(0.01, peak, 3, steps, 0.001)
            return run(aj.adam(rate, b1=b1))

        at = jnp.array([0.1, 0.85, 17.0])
        found = jax.jit(jax.grad(lambda x: loss(*x)))(at)
        moved = jax.jit(jax.vmap(lambda x: loss(*x)))
        h = 1e-6 * np.eye(3)
        np.testing.assert_allclose(
            found, (moved(at[None] + h) - moved(at[None] - h)) / 2e-6, rtol=1e-5
        )

        rate = 0.5 * schedules.warmup_cosine_decay_schedule(0.01, 0.2, 3.5, 17.5, 0.001)
        tx = aj.adam(rate + 0.001, b1=schedules.linear_schedule(0.8, 0.9, 9.5), eps_root=0.1)
        leaves, treedef = jax.tree.flatten(tx)
        slopes = jax.jit(jax.grad(run))(treedef.unflatten(map(jnp.float64, leaves)))
        assert jax.tree.structure(slopes) == treedef
        moved = jax.jit(jax.vmap(lambda x: run(treedef.unflatten(list(jnp.unstack(x))))))
        base, h = np.array(leaves), 1e-6 * np.diag(np.maximum(np.abs(leaves), 1e-2))
        differences = (moved(base[None] + h) - moved(base[None] - h)) / (2 * np.diag(h))
        np.testing.assert_allclose(jax.tree.leaves(slopes), differences, rtol=1e-5, atol=1e-6)


def test_a_checkpoint_holds_the_schedule(tmp_path):
    pytest.importorskip("orbax.checkpoint")

    def create(peak, **options):
        rate = schedules.warmup_cosine_decay_schedule(0.0, peak, 2, 10, **options)
        return aj.TrainState.create({"w": jnp.ones(3)}, aj.adam(rate))

    step = aj.train_step(lambda params, batch: jnp.sum(params["w"] ** 2))
    state = create(0.3)
    for _ in range(3):
        state, _ = step(state, None)
    aj.save_checkpoint(tmp_path, state)
    again = aj.restore_checkpoint(tmp_path, create(0.3))
    assert repr(again.tx) == repr(create(0.3).tx)
    assert jax.tree.structure(again) == jax.tree.structure(state)
    message = r"peak_value is 0\.3 in the checkpoint and 0\.5 in the state"
    with pytest.warns(UserWarning, match=message):
        again = aj.restore_checkpoint(tmp_path, create(0.5))
    assert repr(again.tx) == repr(create(0.3).tx)
    again = aj.restore_checkpoint(tmp_path, create(0.5), hyperparameters="given")
    assert repr(again.tx) == repr(create(0.5).tx)
    # Another schedule, and a number in its place.
    for rate in (schedules.linear_schedule(0.3, 0.0, 10), 0.1, optax.constant_schedule(0.1)):
        other = aj.TrainState.create({"w": jnp.ones(3)}, aj.adam(rate))
        with pytest.raises(ValueError, match=r"learning_rate is the schedule warmup_cosine.*given"):
            aj.restore_checkpoint(tmp_path, other)
        again = aj.restore_checkpoint(tmp_path, other, hyperparameters="given")
        assert repr(again.tx) == repr(other.tx)
        np.testing.assert_array_equal(again.params["w"], state.params["w"])


def test_optax_takes_it_like_its_own():
    rate = schedules.warmup_cosine_decay_schedule(0.0, 0.3, 2, 10)
    params = jnp.ones(3)
    plain = aj.adam(rate)
    mapped = optax.tree.map_params(plain, lambda x: x + 1, plain.init(params))
    assert [mapped[0].count, mapped[0].mu[0]] == [0, 1]
    for tx in (optax.inject_hyperparams(aj.adam)(learning_rate=rate), optax.adam(rate)):
        state, expected = tx.init(params), plain.init(params)
        for _ in range(3):
            with jax.numpy_dtype_promotion("standard"):
                updates, state = tx.update(params, state, params)
            wanted, expected = plain.update(params, expected, params)
        np.testing.assert_allclose(updates, wanted, rtol=1e-5)
    # A schedule of a traced peak, in a function of optax's.
    chained = jax.vmap(
        lambda peak: aj.chain(optax.sgd(schedules.linear_schedule(peak, 0.0, 4)), aj.trace(0.5))
    )(jnp.array([0.1, 0.2]))
    assert [leaf.shape for leaf in jax.tree.leaves(chained)] == [(2,), (2,)]


def test_the_numbers_of_its_own_are_those_that_are_wide():
    with jax.enable_x64(True):
        assert schedules.linear_schedule(jnp.float32(1.0), 0.0, 10)(5).dtype == jnp.float32
        assert (
            schedules.linear_schedule(jnp.float64(1.0), jnp.float32(0.0), 10)(5).dtype
            == jnp.float64
        )
        assert schedules.linear_schedule(1.0, 0.0, 10)(5).dtype == jnp.float64
    assert schedules.linear_schedule(jnp.bfloat16(1.0), 0.0, 10)(5).dtype == jnp.float32
    assert schedules.linear_schedule(jnp.int32(3), 0, jnp.int32(10)).init_value.dtype == jnp.float32


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: schedules.linear_schedule(0.1, np.nan, 10), ValueError,
         r"end_value=nan is out of range in linear_schedule: end_value must be a finite number"),
        (lambda: schedules.cosine_decay_schedule(0.1, 0), ValueError,
         r"decay_steps=0 is out of range in cosine_decay_schedule: .* a finite number > 0"),
        (lambda: schedules.warmup_cosine_decay_schedule(0.0, 0.1, 10, 10), ValueError,
         r"decay_steps=10 is out of range .* the 10 of warmup_steps among them"),
        (lambda: schedules.linear_onecycle_schedule(-1, 0.1), ValueError, r"transition_steps=-1 is out"),
        (lambda: schedules.cosine_onecycle_schedule(10, 0.1, div_factor=0), ValueError,
         r"div_factor=0 is out of range in cosine_onecycle_schedule"),
        (lambda: schedules.piecewise_constant_schedule(0.1, {5: -1.0}), ValueError,
         r"boundaries_and_scales\[5\]=-1\.0 is out of range in piecewise_constant_schedule"),
        (lambda: schedules.piecewise_constant_schedule(0.1, [(5, 0.1)]), TypeError, r"must be a dict from"),
        (lambda: schedules.piecewise_constant_schedule(0.1, ((5, 6), (0.1,))), ValueError,
         r"2 counts and 1 factors"),
        (lambda: schedules.piecewise_interpolate_schedule("cubic", 0.1), ValueError,
         r"interpolate_type='cubic' is not known: it must be one of 'linear', 'cosine'"),
        (lambda: schedules.linear_schedule("0.1", 0.0, 10), TypeError, r"init_value='0\.1' is a str in"),
        (lambda: schedules.linear_schedule(None, 0.0, 10), TypeError, r"init_value=None is a NoneType in"),
        (lambda: schedules.linear_schedule(True, 0.0, 10), TypeError, r"init_value=True is a bool in"),
        (lambda: schedules.linear_schedule(jnp.ones(2), 0.0, 10), ValueError, r"has shape \(2,\) .*vmap"),
        (lambda: schedules.linear_schedule(JOINED, 0.0, 10), TypeError, r"init_value=join.* is a join"),
        (lambda: schedules.exponential_decay(0.1, 10, 0.5, staircase=1), TypeError, r"staircase=1 is out"),
        (lambda: schedules.linear_schedule(init_value=0.1, end_valeu=0.0, transition_steps=1), TypeError,
         r"linear_schedule takes no argument 'end_valeu': is end_value meant\?"),
        (lambda: schedules.constant_schedule(decay_steps=0.1), TypeError, r"it takes value\."),
        (lambda: schedules.join_schedules([0.1, 0.2], []), ValueError, r"sequence of 1, one fewer"),
        (lambda: schedules.join_schedules([], []), ValueError, r"schedules=\(\) in join_schedules"),
        (lambda: schedules.sgdr_schedule({"init_value": 1.0}), TypeError, r"must be a sequence of dicts"),
        (lambda: JOINED + "a", TypeError, r"unsupported operand"),
        (lambda: aj.adam(schedules.warmup_cosine_decay_schedule(0.0, -0.1, 10, 100)), ValueError,
         r"learning_rate is a schedule with peak_value=-0\.1 in \w+: learning_rate must be a finite number "
         r">= 0.*To maximise, turn the sign round .*scale_by_learning_rate\(schedule, flip_sign=False\)"),
        (lambda: aj.adam(0.1, b1=schedules.linear_schedule(0.9, 1.5, 10)), ValueError,
         r"b1 is a schedule with end_value=1\.5 in Adam: b1 must be a number in \[0, 1\), .* there\.$"),
        (lambda: aj.transform(aj.rules.Trace(0.9)) and aj.adagrad(0.1, initial_accumulator_value=JOINED),
         TypeError, r"initial_accumulator_value=join_schedules.* is a schedule"),
    ],
)  # fmt: skip
def test_what_is_no_schedule_is_refused_by_name(make, error, message):
    with warnings.catch_warnings(), pytest.raises(error, match=message):
        make()


def test_a_schedule_of_ones_own():
    from dataclasses import dataclass

    @dataclass(frozen=True)
    class Halving(Schedule):
        init_value: aj.NonNegative
        steps: float = 100
        whole: bool = False

        def at(self, count):
            times = count / self.steps
            return self.init_value * 0.5 ** (jnp.floor(times) if self.whole else times)

    schedule = Halving(0.5, whole=True)
    assert repr(schedule) == "Halving(init_value=0.5, whole=True)"
    assert jax.tree.leaves(schedule) == [0.5, 100.0]
    assert schedule(150) == 0.25
    with pytest.raises(ValueError, match=r"init_value=-1 is out of range in Halving: .* >= 0"):
        Halving(-1)

    class Forgotten(Schedule):
        pass

    with pytest.raises(NotImplementedError, match="Forgotten defines no `at`"):
        dataclass(frozen=True)(Forgotten)()(0)
