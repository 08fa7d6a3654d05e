"""Rows of rules/orthogonal.py."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

import adaptive_jax as aj
from tests import reference

from .factored import GRADIENTS, PARAMS, in_keras, keras_on_jax
from .row import Departure, apart, updates_of


def momentum_of_optax():
    """Without Nesterov's momentum both are the same; with it, all but the first step are others."""

    def steps(library, **options):
        tx = library.muon(0.1, **options)
        compiled = optax.GradientTransformation(tx.init, jax.jit(tx.update))
        return updates_of(compiled, GRADIENTS[:4], PARAMS)

    ours, theirs = (steps(x, nesterov=False, eps=1e-8) for x in (aj, contrib))
    assert apart(ours, theirs) < 2e-5
    ours, theirs = steps(aj), steps(contrib)
    assert apart(ours[:1], theirs[:1]) < 2e-5
    assert apart(ours[1:], theirs[1:]) > 0.05
    paper = reference.muon(np.float64(GRADIENTS[:4]), np.float64(PARAMS), 0.1)
    assert apart(ours, paper) < 2e-5


def matrices_of_optax():
    """Its momentum is of all arrays with two axes, embeddings too, and of none with more."""
    params = {"embedding": jnp.ones((4, 2)), "mlp": jnp.ones((2, 2)), "layers": jnp.ones((3, 2, 2))}

    def orthogonalized(tx):
        mu = tx.init(params).inner_states["muon"].inner_state[0].mu
        return {name for name, x in mu.items() if not isinstance(x, optax.MaskedNode)}

    assert orthogonalized(contrib.muon(0.1)) == {"embedding", "mlp"}
    assert orthogonalized(aj.muon(0.1)) == {"mlp", "layers"}


def polynomials_of_optax():
    """Of more polynomials than steps it takes none, and with less it takes fewer steps than asked for."""
    five = tuple((3.4445 - 0.1 * k, -4.775, 2.0315) for k in range(5))
    with pytest.raises(ValueError, match="Not enough coeffs"):
        contrib.scale_by_muon(five, ns_steps=3).init(PARAMS)
    few, many = (
        contrib.scale_by_muon(five[:2], ns_steps=n).update(
            GRADIENTS[0], contrib.scale_by_muon(five[:2], ns_steps=n).init(PARAMS)
        )[0]
        for n in (2, 5)
    )
    np.testing.assert_array_equal(few, many)
    three = aj.scale_by_muon(five, ns_steps=3)
    same = aj.scale_by_muon(five[:3], ns_steps=3)
    np.testing.assert_array_equal(
        *(x.update(GRADIENTS[0], x.init(PARAMS))[0] for x in (three, same))
    )


def buffer_of_torch():
    """In bfloat16 and without Nesterov's momentum, it divides the momentum that it keeps by its norm."""
    import torch

    weight = torch.nn.Parameter(torch.ones(4, 4, dtype=torch.bfloat16))
    optimizer = torch.optim.Muon([weight], lr=0.1, nesterov=False)
    weight.grad = torch.full((4, 4), 0.5, dtype=torch.bfloat16)
    optimizer.step()
    kept = float(optimizer.state[weight]["momentum_buffer"].norm())
    assert abs(kept - 1.0) < 0.02
    tx, gradient = aj.scale_by_muon(nesterov=False), jnp.full((4, 4), 0.5, jnp.bfloat16)
    _, state = tx.update(gradient, tx.init(gradient))
    np.testing.assert_allclose(jnp.linalg.norm(state.mu), 0.05 * 2.0, rtol=1e-2)


def scale_of_keras():
    keras = keras_on_jax()

    theirs, _ = in_keras(keras.optimizers.Muon(0.1, weight_decay=None), GRADIENTS, PARAMS)
    ours = updates_of(aj.muon(0.1, scale="rms"), GRADIENTS, PARAMS)
    assert apart(ours, theirs) < 5e-5
    ratio = np.abs(updates_of(aj.muon(0.1), GRADIENTS[:1], PARAMS)[0] / theirs[0])
    np.testing.assert_allclose(ratio, 1 / (0.2 * 8**0.5), rtol=1e-4)
    stack = jax.ShapeDtypeStruct((3, 8, 6), jnp.float32)
    assert aj.scale_by_muon().init(jnp.zeros(stack.shape)).mu.shape == stack.shape


DEPARTURES = [
    Departure(
        "muon",
        "optax",
        "Nesterov's momentum with bias corrections: another direction after the first step",
        momentum_of_optax,
        slow=True,
    ),
    Departure(
        "muon",
        "optax",
        "orthogonalizes embeddings and heads by default, and no stack of matrices",
        matrices_of_optax,
    ),
    Departure(
        "muon",
        "optax",
        "refuses more polynomials than steps, and with less takes fewer steps",
        polynomials_of_optax,
    ),
    Departure(
        "muon",
        "torch",
        "bfloat16 without Nesterov's momentum: the momentum kept is divided by its norm in each step",
        buffer_of_torch,
        slow=True,
    ),
    Departure(
        "muon",
        "keras",
        "by default 0.2√max(in, out) as scale; else agrees",
        scale_of_keras,
        slow=True,
    ),
]
