"""The table of everything exported is complete, and everything in it keeps every promise."""

from __future__ import annotations

import inspect

import jax
import optax
import pytest
import write_catalogue
from catalogue import (
    CASES,
    CATALOGUE,
    FIRST,
    OF_ALL_ARRAYS,
    PORTED,
    SETTINGS,
    WHOLE_OPTIMIZERS,
    WRAPPERS,
    exported_factories,
    exported_ports,
)

import adaptive_jax as aj
from adaptive_jax.testing import PROMISES
from adaptive_jax.testing.promises import check_promises

WRITE = "run `python tests/write_catalogue.py`; a layout that has changed breaks saved runs"


def test_every_export_is_in_the_table():
    assert set(SETTINGS) <= set(CATALOGUE), "tests/catalogue.py names what is not there"
    assert exported_factories() == set(CATALOGUE) | set(WRAPPERS), WRITE
    assert exported_ports() == {case.partition("(")[0] for case in PORTED}


@pytest.mark.parametrize("path", write_catalogue.files(), ids=lambda path: path.parent.name)
def test_what_is_derived_from_the_catalogue_is_written_down(path):
    assert path.read_text() == write_catalogue.files()[path], WRITE


# Every rule in each run; its further settings and the ports, which are made of the same rules, in the
# slow one.
@pytest.mark.parametrize("promise", PROMISES)
@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=[] if case in FIRST else [pytest.mark.slow])
        for case in CASES | PORTED
    ],
)
def test_promise(case, promise):
    factory, settings = (CASES | PORTED)[case]
    PROMISES[promise](factory(**settings))


@pytest.mark.slow
@pytest.mark.parametrize("promise", PROMISES)
@pytest.mark.parametrize("name", WRAPPERS)
def test_promise_of_a_wrapper(name, promise):
    tx, not_meant = WRAPPERS[name]
    assert set(not_meant) <= set(PROMISES)
    expected = {promise: not_meant[promise]} if promise in not_meant else {}
    check_promises(tx, {promise: PROMISES[promise]}, tx, expected)


THEIRS = {"weight_decay_mask": "mask", "weight_decay_rate": "weight_decay"}
"""From names of optax's to those that are the same for all here."""


@pytest.mark.parametrize("name", sorted(set(CATALOGUE) & set(dir(optax))))
def test_signature_is_that_of_optax_where_optax_has_one(name):
    theirs = inspect.signature(getattr(optax, name)).parameters
    ours = inspect.signature(getattr(aj, name)).parameters
    expected = list(theirs)
    # Names that are not the same on every optimizer of optax.
    expected = [THEIRS.get(argument, argument) for argument in expected]
    positional = [p.name for p in ours.values() if p.kind is not p.KEYWORD_ONLY]
    assert positional == [
        name
        for name, p in zip(expected, theirs.values(), strict=True)
        if p.kind is not p.KEYWORD_ONLY
    ]
    for argument, parameter in zip(expected, theirs.values(), strict=True):
        if parameter.kind is parameter.KEYWORD_ONLY and argument not in ours:
            continue  # What optax adds to the paper may be left out, such as other signs for Lion's.
        if (name, argument) == ("scale_by_learning_rate", "learning_rate"):
            continue  # optax leaves out the sign with its default None, and ascends.
        if argument in ("dtype_momentum", "decay_rate_fn"):
            continue  # float32 also of float64 parameters; a function that is private there.
        assert ours[argument].default == parameter.default, argument


@pytest.mark.parametrize("name", [x for x in WHOLE_OPTIMIZERS if x not in OF_ALL_ARRAYS])
def test_every_whole_optimizer_decays_weights_under_the_same_names(name):
    parameters = inspect.signature(getattr(aj, name)).parameters
    assert {"weight_decay", "mask", "storage"} <= set(parameters)
    params = {"w": jax.numpy.ones((2, 2)), "b": jax.numpy.ones(2)}
    tx = getattr(aj, name)(0.5, weight_decay=0.1, mask={"w": True, "b": False})
    zeros = jax.tree.map(jax.numpy.zeros_like, params)
    updates, _ = tx.update(zeros, tx.init(params), params)
    assert updates["w"] == pytest.approx(-0.5 * 0.1)
    assert updates["b"] == pytest.approx(0.0)
