"""Cautious and Grams directions, and every kind of weight decay: against the papers, in chains."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from rules.test_reference import (
    TOLERANCE,
    assert_close,
    in_one_program,
    problem,
    trajectory,
    warmup_and_decay,
)

import adaptive_jax as aj
from adaptive_jax.testing import check_rule
from tests.reference import cautious as reference

RATE = 0.1


def updates_of(tx, gradients, params, dtype):
    """The updates in all steps, computed in dtype."""
    return in_one_program(tx, *(jnp.asarray(x, dtype) for x in (gradients, params)))


def masked(mask, directions, gradients):
    return np.stack([mask(u, g) for u, g in zip(directions, gradients, strict=True)])


PAPER, CODE = reference.masked_as_in_the_paper, reference.masked_as_in_the_code
PIECES = {
    "cautious": (aj.cautious(), PAPER),
    "cautious of all arrays": (aj.cautious(layerwise=False), PAPER),
    "cautious as in the code": (aj.cautious("code"), CODE),
    "cautious alone": (aj.cautious("none"), lambda u, g: u * (u * g >= 0)),
    "grams": (aj.grams(), reference.signed_by_the_gradient),
}
DIRECTIONS = {
    "adam": (aj.scale_by_adam(), reference.adam_directions),
    "lion": (aj.scale_by_lion(), reference.lion_directions),
}


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("piece", PIECES)
@pytest.mark.parametrize("direction", ["adam", pytest.param("lion", marks=pytest.mark.slow)])
def test_around_a_direction(direction, piece, dtype):
    """In 200 steps. Where rounding turns a sign round, the direction there is as good as zero."""
    gradients, first = problem(dtype)
    (scale_by, directions), (around, mask) = DIRECTIONS[direction], PIECES[piece]
    tx = aj.chain(scale_by, around, aj.add_decayed_weights(0.3), aj.sgd(RATE))
    found = masked(mask, directions(gradients), gradients)
    expected = reference.descended(found, first, RATE, 0.3)
    params = trajectory(first, expected).astype(dtype).astype(np.float64)
    # The mask takes less than two thirds of each step.
    size = RATE * (3 * np.abs(directions(np.abs(gradients))) + 0.3 * np.abs(params))
    with jax.enable_x64(dtype == "float64"):
        actual = updates_of(tx, gradients, params, dtype)
    assert_close(actual, expected, size, TOLERANCE[dtype])


def test_behind_the_learning_rate_the_sign_is_turned_round():
    """Behind a whole optimizer, which decays weights too, what is masked is the step."""
    gradients, _ = problem("float64")
    gradients, params = gradients[:20], np.zeros_like(gradients[:20])
    step = -RATE * reference.adam_directions(gradients)
    for piece, mask in (
        (aj.cautious(flip_sign=True), PAPER),
        (aj.cautious("code", flip_sign=True), CODE),
        (aj.grams(flip_sign=True), reference.signed_by_the_gradient),
    ):
        with jax.enable_x64(True):
            actual = updates_of(aj.chain(aj.adam(RATE), piece), gradients, params, "float64")
        np.testing.assert_allclose(actual, masked(mask, step, -gradients), rtol=1e-9, atol=1e-18)


def test_counted_in_each_array_or_in_all():
    """The paper's parameters are one vector; its code has one of them for each array."""
    up, down = jnp.array([1.0, 1.0, 1.0]), jnp.array([1.0, -1.0, -1.0])
    for layerwise, factors in ((True, [3 / 4, 3 / 2]), (False, [6 / 5, 6 / 5])):
        tx = aj.chain(aj.trace(1.0), aj.cautious(layerwise=layerwise))
        params = {"a": up, "b": up}
        _, state = tx.update({"a": up, "b": 4 * up}, tx.init(params), params)
        updates, _ = tx.update({"a": up, "b": down}, state, params)
        np.testing.assert_allclose(updates["a"], factors[0] * 2 * up, rtol=1e-6)
        np.testing.assert_allclose(updates["b"], factors[1] * jnp.array([5.0, 0, 0]), rtol=1e-6)


def test_the_gradient_is_the_one_that_came_to_the_outermost_chain():
    """Through clipping, accumulation, and a chain of optax that hands it on."""
    gradients = [jnp.array([3.0, -4.0]), jnp.array([-3.0, -4.0])]
    params = jnp.ones(2)
    pieces = (optax.clip(1.0), optax.trace(0.9), aj.cautious("none"))
    ours, theirs = aj.chain(*pieces), optax.chain(*pieces)
    found = []
    for tx in (ours, theirs):
        state = tx.init(params)
        for gradient in gradients:
            extra = {"grad": gradient} if tx is theirs else {}
            updates, state = tx.update(gradient, state, params, **extra)
        found.append(updates)
    np.testing.assert_allclose(found[0], [-0.1, -1.9], rtol=1e-6)
    np.testing.assert_array_equal(*found)
    with pytest.raises(ValueError, match=r"Use aj.chain, or call.*grad=gradients"):
        theirs.update(gradients[0], theirs.init(params), params)


DECAYS = {
    "decoupled": (aj.scale_by_adam(), aj.add_decayed_weights(0.3), aj.scale_by_learning_rate(RATE)),
    "decoupled behind": (aj.adam(RATE), aj.add_decayed_weights(0.3, learning_rate=RATE)),
    "cautious": (
        aj.scale_by_adam(), aj.add_decayed_weights(0.3, kind="cautious"), aj.sgd(RATE),
    ),
    "cautious behind": (
        aj.adam(RATE), aj.add_decayed_weights(0.3, kind="cautious", learning_rate=RATE),
    ),
    "independent": (aj.adam(RATE), aj.add_decayed_weights(0.3, kind="independent")),
    "proximal": (aj.adam(RATE), aj.add_decayed_weights(0.3, learning_rate=RATE, kind="proximal")),
    "proximal scheduled": (
        aj.adam(warmup_and_decay),
        aj.add_decayed_weights(0.3, learning_rate=warmup_and_decay, kind="proximal"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", DECAYS)
def test_a_kind_of_weight_decay(name, dtype):
    gradients, first = problem(dtype)
    kind = name.split(" ")[0]
    kind = None if kind == "decoupled" else kind
    rate = warmup_and_decay.values if name.endswith("scheduled") else RATE
    directions = reference.adam_directions(gradients)
    expected = reference.descended(directions, first, rate, 0.3, kind)
    params = trajectory(first, expected).astype(dtype).astype(np.float64)
    rates = np.broadcast_to(rate, len(gradients))[:, None]
    decay = 0.3 if kind == "independent" else 0.3 * rates
    size = rates * np.abs(reference.adam_directions(np.abs(gradients))) + decay * np.abs(params)
    with jax.enable_x64(dtype == "float64"):
        actual = updates_of(aj.chain(*DECAYS[name]), gradients, params, dtype)
    assert_close(actual, expected, size, TOLERANCE[dtype])


def test_where_it_stands_decides_what_a_decay_is():
    """In the moments it is an L2 penalty, and inside a norm it is normalised with the rest."""
    gradients, params = jnp.array([1.0, -2.0]), jnp.array([0.5, 3.0])
    decay, rate = aj.add_decayed_weights(0.5), aj.scale_by_learning_rate(1.0)
    for before, after in (
        (aj.scale_by_adam(), lambda g: np.sign(g)),
        (aj.clip_by_norm(1.0), lambda g: g / np.linalg.norm(g)),
    ):
        tx = aj.chain(decay, before, rate)
        updates, _ = tx.update(gradients, tx.init(params), params)
        np.testing.assert_allclose(updates, -after(gradients + 0.5 * params), rtol=1e-5)


def test_a_proximal_decay_never_crosses_zero_and_a_cautious_one_never_works_against_the_step():
    params = jnp.array([1.0, -1.0, 1.0, 0.0])
    huge = aj.add_decayed_weights(jnp.float32(1e6), learning_rate=1.0, kind="proximal")
    updates, _ = huge.update(jnp.zeros(4), huge.init(params), params)
    left = params + updates
    assert np.all(np.abs(left) < 1e-5)
    assert np.all(left * params >= 0)
    tx = aj.add_decayed_weights(0.5, kind="cautious")
    directions = jnp.array([1.0, 1.0, -1.0, -1.0])
    updates, _ = tx.update(directions, tx.init(params), params)
    np.testing.assert_array_equal(updates - directions, [0.5, 0.0, 0.0, 0.0])


def test_masks_trees_and_sweeps_go_through_every_kind():
    params = {"w": jnp.array([2.0]), "b": jnp.array([2.0])}
    zeros = jax.tree.map(jnp.zeros_like, params)

    def update(decay, kind):
        rate = 0.5 if kind == "proximal" else None
        mask = {"w": True, "b": False}
        tx = aj.add_decayed_weights(decay, mask, learning_rate=rate, kind=kind)
        return tx.update(zeros, tx.init(params), params)[0]

    for kind, expected in (("cautious", 0.5), ("independent", -0.5), ("proximal", -0.5 / 2.25)):
        updates = update({"w": 0.25, "b": 1.0}, kind)
        np.testing.assert_allclose(updates["w"], expected, rtol=1e-6)
        np.testing.assert_array_equal(updates["b"], 0.0)
        many = jax.vmap(lambda x, kind=kind: update(x, kind))(jnp.array([0.25, 0.0]))
        np.testing.assert_allclose(many["w"][:, 0], [expected, 0.0], rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: aj.add_decayed_weights(0.1, kind="l2"), ValueError, "kind='l2' is not known"),
        (
            lambda: aj.add_decayed_weights(0.1, kind="proximal"),
            ValueError,
            r"needs the learning rate of the steps.*learning_rate=η, kind=\"proximal\"",
        ),
        (
            lambda: aj.add_decayed_weights(0.1, learning_rate=0.1, kind="independent"),
            ValueError,
            "leave learning_rate out",
        ),
        (lambda: aj.cautious("mean"), ValueError, "normalization='mean' is not known"),
        (lambda: aj.cautious().init(jnp.ones(2, jnp.complex64)), TypeError, "complex"),
        (lambda: aj.grams().init(jnp.ones(2, jnp.complex64)), TypeError, "complex"),
    ],
    ids=range(6),
)
def test_what_does_not_fit_is_said(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.slow
@pytest.mark.parametrize("piece", [*PIECES, "decays"])
def test_promises_of_a_chain(piece):
    """As of one optimizer: with the mask at work, which it is not on a gradient alone."""
    cautious = aj.add_decayed_weights(0.1, kind="cautious")
    around = cautious if piece == "decays" else PIECES[piece][0]
    check_rule(aj.chain(aj.scale_by_adam(), around, aj.scale_by_learning_rate(0.1)))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cautious", "grams"])
def test_sharded_parameters_get_the_same_steps(name, make_mesh):
    sharding = jax.sharding.NamedSharding(make_mesh(4), jax.sharding.PartitionSpec("x"))
    tx = aj.chain(aj.scale_by_adam(), PIECES[name][0], aj.scale_by_learning_rate(0.1))
    gradients = np.random.default_rng(0).normal(size=(3, 8, 2)).astype(np.float32)
    found = []
    for place in (lambda x: jnp.asarray(x), lambda x: jax.device_put(x, sharding)):
        params = place(np.ones((8, 2), np.float32))
        state, update = tx.init(params), jax.jit(tx.update)
        for gradient in gradients:
            updates, state = update(place(gradient), state, params)
        found.append(np.asarray(updates))
    np.testing.assert_allclose(*found, rtol=1e-6)
