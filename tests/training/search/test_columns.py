"""The arguments of a sweep."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from swept_run import RATES, diverging, train

import adaptive_jax as aj


def test_a_table_is_settings_side_by_side():
    table = {"learning_rate": RATES, "nesterov": [True, False, True, False]}
    result = aj.sweep(train, table=table, b1=[0.5, 0.9])
    assert len(result.objective) == 8
    np.testing.assert_array_equal(result.settings["learning_rate"], np.repeat(RATES, 2))
    assert result.settings["nesterov"] == [True, True, False, False] * 2
    np.testing.assert_allclose(result.outputs[5, 0], train(RATES[2], 0.9, nesterov=True), rtol=2e-5)


def test_values_of_different_lengths_are_plain_as_others_are():
    result = aj.sweep(lambda kind: 0.0, kind=[np.str_("a"), (1, 2)], progress=False)
    assert [type(each) for each in result.settings["kind"]] == [str, tuple]


def test_an_axis_that_chooses_a_shape_is_static():
    def wide(width, learning_rate):
        return learning_rate * jnp.sum(jnp.ones(width))

    with pytest.raises(ValueError, match=r"the value of 'width' .*static=\('width',\)"):
        aj.sweep(wide, width=[2, 3], learning_rate=[0.5, 1.0])
    result = aj.sweep(wide, width=[2, 3], learning_rate=[0.5, 1.0], static=["width"])
    np.testing.assert_allclose(result.objective[:, 0], [1.0, 2.0, 1.5, 3.0])
    assert result.best() == {"width": 2, "learning_rate": 0.5}
    assert type(result.best()["width"]) is int


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
