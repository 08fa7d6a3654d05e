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
    OF_WHOLE_ARRAYS,
    PORTED,
    REPRESENTATIVES,
    SETTINGS,
    WHOLE_OPTIMIZERS,
    WRAPPERS,
    bare,
    exported_factories,
    exported_ports,
    extra_args_of,
    how_often,
    kinds_of,
)

import adaptive_jax as aj
from adaptive_jax.testing import PROMISES, check_rule
from adaptive_jax.testing.promises import check_promises
from adaptive_jax.testing.trials import Trial

WRITE = "run `python tests/write_catalogue.py`; a layout that has changed breaks saved runs"


def test_every_export_is_in_the_table():
    assert set(SETTINGS) <= set(CATALOGUE), "tests/catalogue.py names what is not there"
    assert exported_factories() == set(CATALOGUE) | set(WRAPPERS), WRITE
    assert exported_ports() == {case.partition("(")[0] for case in PORTED}


@pytest.mark.parametrize("path", write_catalogue.files(), ids=lambda path: path.parent.name)
def test_what_is_derived_from_the_catalogue_is_written_down(path):
    assert path.read_text() == write_catalogue.files()[path], WRITE


OF_THE_LIFT = (
    "it works in a scan",
    "it works under vmap",
    "it works under cond and eval_shape",
    "None, empty trees, zero-size and scalar arrays just work",
    "it works inside the wrappers of optax",
    "a tree of equal hyperparameters does what the one number does, or is refused by name",
)
"""Promises that depend on what a rule declares more than on its maths."""


def test_each_kind_of_rule_is_represented():
    assert set(OF_THE_LIFT) < set(PROMISES)
    assert len(REPRESENTATIVES) < len(CASES)
    all_kinds, represented = (
        set.union(*(kinds_of(factory(**settings)) for factory, settings in map(CASES.get, cases)))
        for cases in (CASES, REPRESENTATIVES)
    )
    assert all_kinds == represented


EXPECTED = {
    "keep_params_in_box(low=-0.5,high=0.5)": {
        "a gradient that is not finite stays visible": "The parameter goes to the wall.",
    },
    "sgd_hd(learning_rate=0.01,multiplicative=False,hypergradient_rate=0.0001)": {
        "finite gradients give finite updates": "Its rate grows as the square of a gradient.",
    },
    "shampoo(learning_rate=0.1,kl=True,graft=sgd,refresh_every=1)": {
        "it works under jit and without": "The inverse of a factor without rank multiplies rounding.",
    },
}
"""Promises that are not meant for some settings, with the reasons."""


# Each is one test: what more than one promise looks at is compiled once.
@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=how_often(case, REPRESENTATIVES)) for case in CASES]
)
def test_promises(case):
    factory, settings = CASES[case]
    left_out = () if case in REPRESENTATIVES else OF_THE_LIFT
    promises = {name: check for name, check in PROMISES.items() if name not in left_out}
    tx = bare(factory(**settings))
    check_promises(tx, promises, Trial(tx), EXPECTED.get(case))


@pytest.mark.seldom
@pytest.mark.parametrize("case", [case for case in FIRST if case not in REPRESENTATIVES])
def test_promises_of_the_lift(case):
    factory, settings = CASES[case]
    tx = bare(factory(**settings))
    check_promises(tx, {name: PROMISES[name] for name in OF_THE_LIFT}, Trial(tx))


@pytest.mark.slow
@pytest.mark.parametrize("case", PORTED)
def test_promises_of_a_port(case):
    factory, settings = PORTED[case]
    tx = factory(**settings)
    promises = {name: check for name, check in PROMISES.items() if name not in OF_THE_LIFT}
    check_promises(tx, promises, Trial(tx))


# PSGD-Kron alone would take as long as the others together.
@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in REPRESENTATIVES if "psgd_kron" not in case])
def test_every_promise_as_users_compile(case):
    factory, settings = CASES[case]
    check_rule(bare(factory(**settings)))


@pytest.mark.slow
@pytest.mark.parametrize("name", WRAPPERS)
def test_every_promise_of_a_wrapper(name):
    tx, not_meant = WRAPPERS[name]
    check_rule(tx, expected=not_meant)


OTHER_DEFAULTS = {
    (
        "adan",
        "eps_root",
    ): "neither the paper nor its code has one, and optax's scale_by_adan is 0 too",
    ("optimistic_adam", "nesterov"): "the paper has Adam's momentum",
    ("optimistic_adam_v2", "nesterov"): "the paper has Adam's momentum",
    ("scale_by_sm3", "eps"): "the paper has none: 0/0 is 0",
}
"""Defaults of optax that are not those of the paper."""


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
        is_other = (name, argument) in OTHER_DEFAULTS
        assert (ours[argument].default != parameter.default) == is_other, argument


@pytest.mark.parametrize(
    "name", [x for x in WHOLE_OPTIMIZERS if x not in OF_ALL_ARRAYS | OF_WHOLE_ARRAYS]
)
def test_every_whole_optimizer_decays_weights_under_the_same_names(name):
    parameters = inspect.signature(getattr(aj, name)).parameters
    assert {"weight_decay", "mask", "storage"} <= set(parameters)
    params = {"w": jax.numpy.ones((2, 2)), "b": jax.numpy.ones(2)}
    tx = getattr(aj, name)(0.5, weight_decay=0.1, mask={"w": True, "b": False})
    zeros = jax.tree.map(jax.numpy.zeros_like, params)
    updates, _ = tx.update(zeros, tx.init(params), params, **extra_args_of(tx, zeros))
    if name == "fromage":  # It shrinks parameters as it is.
        undecayed, _ = aj.fromage(0.5).update(zeros, optax.EmptyState(), params)
        updates = jax.tree.map(lambda x, y: x - y, updates, undecayed)
    proximal = 1 + 0.5 * 0.1 if name == "adan" else 1.0
    assert updates["w"] == pytest.approx(-0.5 * 0.1 / proximal)
    assert updates["b"] == pytest.approx(0.0)
