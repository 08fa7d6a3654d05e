"""Sweeps: equal to a loop over the settings, one compilation, and clear errors before anything runs."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from matplotlib.figure import Figure
from scipy import stats

import adaptive_jax as aj
from adaptive_jax.training.search import runs

STEPS = 20
RATES = np.array([0.01, 0.1, 0.5, 1.0])


def start(seed):
    return jax.random.normal(jax.random.key(seed), (3,))


def loss(w):
    return jnp.sum(jnp.array([1.0, 2.0, 4.0]) * w**2)


def train(learning_rate, b1=0.9, *, seed=0, make=aj.adam, **options):
    """The curve of the losses of a small quadratic."""
    tx = make(learning_rate, b1, **options) if make is aj.adam else make(learning_rate)
    w = start(seed)

    def body(carry, _):
        w, state = carry
        value, gradient = jax.value_and_grad(loss)(w)
        updates, state = tx.update(gradient, state, w)
        return (optax.apply_updates(w, updates), state), value

    return jax.lax.scan(body, (w, tx.init(w)), None, length=STEPS)[1]


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


def test_choices_need_not_hash(compiled):
    lean = {"mu": aj.Blocks(min_size=0), "nu": aj.BFloat16(min_size=0)}
    result = aj.sweep(
        train, learning_rate=RATES[:2], storage=[None, lean, dict(lean)], nesterov=True, seeds=2
    )
    assert compiled.count("jit(_all_runs)") == 2  # two of the three are equal
    np.testing.assert_array_equal(result.objective[1], result.objective[2])
    assert np.all(result.objective[0] != result.objective[1])


def test_a_table_is_settings_side_by_side():
    table = {"learning_rate": RATES, "nesterov": [True, False, True, False]}
    result = aj.sweep(train, table=table, b1=[0.5, 0.9])
    assert len(result.objective) == 8
    np.testing.assert_array_equal(result.settings["learning_rate"], np.repeat(RATES, 2))
    assert result.settings["nesterov"] == [True, True, False, False] * 2
    np.testing.assert_allclose(result.outputs[5, 0], train(RATES[2], 0.9, nesterov=True), rtol=2e-5)


def test_an_axis_that_chooses_a_shape_is_static():
    def wide(width, learning_rate):
        return learning_rate * jnp.sum(jnp.ones(width))

    with pytest.raises(ValueError, match=r"the value of 'width' .*static=\('width',\)"):
        aj.sweep(wide, width=[2, 3], learning_rate=[0.5, 1.0])
    result = aj.sweep(wide, width=[2, 3], learning_rate=[0.5, 1.0], static=["width"])
    np.testing.assert_allclose(result.objective[:, 0], [1.0, 2.0, 1.5, 3.0])
    assert result.best() == {"width": 2, "learning_rate": 0.5}
    assert type(result.best()["width"]) is int


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


def diverging(learning_rate, seed):
    return jnp.where(
        (learning_rate > 1) & (seed > 0), jnp.nan, learning_rate + 0.1 * seed.astype(float)
    )


def test_what_diverges_is_kept_and_is_never_the_best():
    result = aj.sweep(diverging, learning_rate=[0.25, 0.5, 2.0], seeds=3)
    np.testing.assert_array_equal(result.diverged, [0, 0, 2])
    np.testing.assert_allclose(result.mean[:2], [0.35, 0.6], rtol=1e-6)
    np.testing.assert_allclose(result.deviation[:2], [0.1, 0.1], rtol=1e-5)
    assert np.isnan(result.mean[2])
    np.testing.assert_array_equal(result.ranking(), [0, 1, 2])
    assert result.best() == {"learning_rate": 0.25}
    most = aj.sweep(diverging, learning_rate=[0.25, 0.5, 2.0], seeds=3, maximize=True)
    assert most.best() == {"learning_rate": 0.5}
    shown = str(result.table())
    assert "2 of 3 diverged" in shown
    assert "0.350 ± 0.100" in shown
    assert "1 setting with a seed that diverged" in shown
    assert result._repr_html_().count("<tr>") == 4
    every = aj.sweep(diverging, learning_rate=[2.0, 3.0], seeds=3)
    with pytest.raises(ValueError, match="the 2 settings has a seed that diverged"):
        every.best()


def test_the_picture_has_a_line_for_each_value_of_the_other_axis():
    def run(learning_rate, width, seed):
        best = 0.1 * width
        return (jnp.log10(learning_rate / best)) ** 2 + 0.01 * width + 0.001 * seed.astype(float)

    rates = np.array([0.01, 0.1, 0.3, 1.0])
    result = aj.sweep(run, learning_rate=rates, width=[1.0, 3.0], seeds=3)
    ax = result.plot(ax=Figure().subplots())
    stars = [line.get_xydata()[0] for line in ax.lines if line.get_marker() == "*"]
    # The median seed is the second one.
    np.testing.assert_allclose(stars, [(0.1, 0.011), (0.3, 0.031)], rtol=1e-5)
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["width=1 (best: 0.1)", "width=3 (best: 0.3)"]
    ax = result.plot("width", by="learning_rate", ax=Figure().subplots())
    assert len(ax.get_legend().get_texts()) == 4
    # Too many lines: the best of the widths for each rate.
    many = aj.sweep(run, learning_rate=rates, width=np.arange(1.0, 9.0), seeds=3)
    ax = many.plot(ax=Figure().subplots())
    expected = [
        min(np.log10(rate / (0.1 * width)) ** 2 + 0.01 * width + 0.001 for width in range(1, 9))
        for rate in rates
    ]
    np.testing.assert_allclose(ax.lines[0].get_ydata(), expected, rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="by='depth' is no other axis"):
        result.plot(by="depth")


def test_a_pandas_frame_has_a_row_per_run():
    pytest.importorskip("pandas")

    def run(learning_rate, seed, kind):
        return {
            "loss": learning_rate * (seed + 1).astype(float),
            "curve": jnp.ones(3),
            "other": seed,
        }

    result = aj.sweep(run, learning_rate=[0.5, 1.0], kind=["a", "b"], seeds=2)
    assert "loss, mean ± deviation" in str(result)
    assert result.plot(ax=Figure().subplots()).get_ylabel() == "loss"
    frame = result.to_pandas()
    assert list(frame.columns) == ["learning_rate", "kind", "seed", "objective", "loss", "other"]
    assert frame["kind"].tolist() == ["a", "a", "b", "b"] * 2
    np.testing.assert_allclose(frame["objective"], [0.5, 1, 0.5, 1, 1, 2, 1, 2])
    assert frame["other"].tolist() == [0, 1] * 4


def returned(value):
    def run(learning_rate, seed):
        return value(learning_rate)

    return run


BAD = {
    "an unknown argument": (
        lambda: aj.sweep(train, learning_rates=RATES, learning_rate=RATES),
        None,  # train takes **options
    ),
    "a typo": (
        lambda: aj.sweep(diverging, learning_rates=RATES),
        "diverging has no argument 'learning_rates': it takes learning_rate, seed",
    ),
    "a missing one": (lambda: aj.sweep(diverging), "diverging needs 'learning_rate'"),
    "columns of different lengths": (
        lambda: aj.sweep(train, table={"learning_rate": RATES, "b1": [0.9]}),
        "learning_rate has 4, b1 has 1",
    ),
    "given twice": (
        lambda: aj.sweep(train, table={"b1": [0.9]}, b1=[0.9]),
        r"\['b1'\] are both in the table and an axis",
    ),
    "two dimensions": (
        lambda: aj.sweep(train, learning_rate=np.ones((2, 2))),
        r"learning_rate has the shape \(2, 2\)",
    ),
    "no values": (lambda: aj.sweep(train, learning_rate=[]), "learning_rate has no values"),
    "a distribution": (
        lambda: aj.sweep(train, learning_rate=aj.Uniform(0, 1)),
        r"is a distribution: draw from it, table=aj.draw\(64",
    ),
    "an unknown static axis": (
        lambda: aj.sweep(train, learning_rate=RATES, static="width"),
        r"static=\('width',\) names \['width'\]",
    ),
    "the seed as an axis": (
        lambda: aj.sweep(diverging, table={"seed": [1]}, learning_rate=RATES),
        "give the seeds as seeds=",
    ),
    "a table of rows": (
        lambda: aj.sweep(train, table=[{"learning_rate": 0.1}]),
        "table must be a dict from a name to its column",
    ),
    "a table of one distribution": (
        lambda: aj.sweep(train, table=aj.LogUniform(1e-3, 1)),
        r"must say of what: table=aj.draw\(64, learning_rate=LogUniform",
    ),
    "a number too large": (
        lambda: aj.sweep(train, learning_rate=[1, 2**33]),
        "learning_rate=8589934592 does not fit into int32",
    ),
    "a number that overflows": (
        lambda: aj.sweep(train, learning_rate=[1.0, 1e39]),
        r"learning_rate=1e\+39 does not fit into float32",
    ),
    "a seed too large": (
        lambda: aj.sweep(train, learning_rate=RATES, seeds=[0, 2**32]),
        "seeds=4294967296 does not fit into int32",
    ),
    "a seed twice": (
        lambda: aj.sweep(train, learning_rate=RATES, seeds=[1, 1]),
        r"seeds=\[1, 1\] has a seed twice",
    ),
    "keys for seeds": (
        lambda: aj.sweep(train, learning_rate=RATES, seeds=jax.random.split(jax.random.key(0))),
        "must be how many, a whole number",
    ),
    "a word for maximize": (
        lambda: aj.sweep(train, learning_rate=RATES, maximize="no"),
        "maximize='no' must be True or False",
    ),
    "an axis with the name of an option": (
        lambda: aj.sweep(lambda objective, seed: objective, objective=[1, 2]),
        r'needs \'objective\'.*table={"objective": \[…\]}',
    ),
    "an axis with the name of the step": (
        lambda: aj.sweep(lambda step, seed: step, step=[1, 2]),
        r'must be what train_step returns.*table={"step": \[…\]}',
    ),
    "a sweep within jit": (
        lambda: jax.jit(lambda x: aj.sweep(train, learning_rate=x).mean)(RATES),
        "call sweep outside of jit",
    ),
    "results that are too large": (
        lambda: aj.sweep(lambda n: {"loss": n, "all": jnp.ones(1 << 40) * n}, n=RATES),
        "the results of 4 runs would take .* GB of the host's memory",
    ),
    "NumPy on what is traced": (
        lambda: aj.sweep(
            lambda learning_rate: jnp.asarray(np.sqrt(learning_rate)), learning_rate=RATES
        ),
        "or write jnp where it is np",
    ),
    "a list of losses": (
        lambda: aj.sweep(lambda learning_rate: [learning_rate] * 2, learning_rate=RATES),
        r"this is a list: return jnp.stack\(losses\)",
    ),
    "a state without a step": (
        lambda: aj.sweep(
            lambda learning_rate: aj.TrainState.create(jnp.ones(2), aj.sgd(learning_rate)),
            learning_rate=RATES,
        ),
        r"this is a TrainState: give step=aj.train_step\(…\) and batches=…",
    ),
    "an objective that is no number": (
        lambda: aj.sweep(
            returned(lambda x: {"a": x}), learning_rate=RATES, objective=lambda result: result
        ),
        "this is a dict: give objective",
    ),
    "an objective of no dict": (
        lambda: aj.sweep(train, learning_rate=RATES, objective="loss"),
        r"returns no dict but float32\[20\]",
    ),
    "no seeds": (lambda: aj.sweep(train, learning_rate=RATES, seeds=0), "seeds=0 must be"),
    "seeds without effect": (
        lambda: aj.sweep(lambda learning_rate: learning_rate, learning_rate=RATES, seeds=2),
        "has no argument 'seed', so its 2 seeds would give the same run",
    ),
    "a batch size that is none": (
        lambda: aj.sweep(train, learning_rate=RATES, batch_size=[1, 2]),
        r'batch_size=\[1, 2\] must be a whole number, 1 or more.*table={"batch_size"',
    ),
    "no memory": (lambda: aj.sweep(train, learning_rate=RATES, memory=0), "memory=0 must be"),
    "no function": (lambda: aj.sweep(3, learning_rate=RATES), "train=3 must be a function"),
    "an unknown objective": (
        lambda: aj.sweep(
            returned(lambda x: {"a": x, "b": x}), learning_rate=RATES, objective="loss"
        ),
        r"objective='loss', and train returns the entries \['a', 'b'\]",
    ),
    "an objective to choose": (
        lambda: aj.sweep(returned(lambda x: {"a": x, "b": x}), learning_rate=RATES),
        r"the entries \['a', 'b'\]: name the one to judge by",
    ),
    "many numbers": (
        lambda: aj.sweep(returned(lambda x: jnp.ones((2, 2)) * x), learning_rate=RATES),
        r"a curve of them, and this is float32\[2, 2\]",
    ),
    "results of different shapes": (
        lambda: aj.sweep(
            lambda width: jnp.ones(width), width=[2, 3], static=["width"], objective=jnp.sum
        ),
        r"float32\[2\] with width=2, and float32\[3\] with width=3",
    ),
    "no count": (lambda: aj.draw(0, b1=aj.Uniform(0, 1)), "count=0 must be"),
    "an unknown method": (lambda: aj.draw(4, method="grid", b1=aj.Uniform(0, 1)), "method='grid'"),
    "nothing to draw": (lambda: aj.draw(4), "draw needs a distribution"),
    "no distribution": (lambda: aj.draw(4, b1=[0.9]), r"b1=\[0.9\] is no distribution"),
    "a logarithm of 0": (lambda: aj.LogUniform(0, 1), "low must be above 0"),
    "bounds that are swapped": (lambda: aj.Uniform(1, 0), "low no more than high"),
    "no choice": (lambda: aj.Choice(), "at least one value"),
    "a choice of a list": (lambda: aj.Choice([0.5, "a"]), r"write Choice\(0.5, 'a'\)"),
    "bounds that are words": (lambda: aj.LogUniform("1", "2"), "low and high must be numbers"),
    "half a seed": (lambda: aj.draw(4, seed=1.5, b1=aj.Uniform(0, 1)), "seed=1.5 must be"),
    "no axis to draw": (
        lambda: aj.sweep(train, learning_rate=0.1, seeds=2).plot(),
        "no axis has several numbers to draw the objective against: there is one setting",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_refused_before_anything_runs(what):
    call, message = BAD[what]
    if message is None:
        with pytest.raises(TypeError, match="learning_rates"):
            call()
        return
    with pytest.raises((ValueError, TypeError), match=message):
        call()


def test_distributions():
    drawn = aj.draw(
        4096,
        seed=1,
        rate=aj.LogUniform(1e-4, 1.0),
        decay=aj.Uniform(0.5, 0.9),
        kind=aj.Choice("a", "b", "c"),
    )
    assert stats.kstest(np.log10(drawn["rate"]), stats.uniform(-4, 4).cdf).pvalue > 0.01
    assert stats.kstest(drawn["decay"], stats.uniform(0.5, 0.4).cdf).pvalue > 0.01
    counts = [drawn["kind"].count(kind) for kind in "abc"]
    assert max(counts) - min(counts) <= 2  # a Sobol sequence is even
    again = aj.draw(4096, seed=1, rate=aj.LogUniform(1e-4, 1.0), decay=aj.Uniform(0.5, 0.9))
    other = aj.draw(4096, seed=2, rate=aj.LogUniform(1e-4, 1.0))
    assert not np.array_equal(again["rate"], other["rate"])
    random = aj.draw(4096, method="random", rate=aj.LogUniform(1e-4, 1.0))["rate"]
    assert stats.kstest(np.log10(random), stats.uniform(-4, 4).cdf).pvalue > 0.01
    assert aj.draw(5, b1=aj.Uniform(0, 1))["b1"].shape == (5,)


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


def test_complex_parameters_of_a_train_state_descend():
    target = jnp.array([1 + 2j, 3 - 1j])

    def train(learning_rate):
        return aj.TrainState.create(jnp.zeros(2, jnp.complex64), aj.sgd(learning_rate))

    step = aj.train_step(lambda z, batch: jnp.sum(jnp.square(jnp.abs(z - target))) * batch)
    result = aj.sweep(train, step=step, batches=[np.float32(1)] * 100, learning_rate=[0.1, 0.2])
    assert np.all(result.objective < 1e-10)
