"""Rows of rules/resilient.py."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import optax

import adaptive_jax as aj

from .row import AGREES, Departure, apart, updates_of

GRADIENTS = jnp.array(np.random.default_rng(0).normal(size=(20, 5)), jnp.float32)


def rprop_of_optax():
    """In each step it takes the one before, but where the sign turns: the first one moves nothing."""
    ours, theirs = (updates_of(x.rprop(0.1), GRADIENTS, jnp.ones(5)) for x in (aj, optax))
    assert np.all(theirs[0] == 0)
    np.testing.assert_allclose(np.abs(ours[0]), 0.1, rtol=1e-6)
    same_sign = [GRADIENTS[0]] * 4
    ours, theirs = (updates_of(x.rprop(0.1), same_sign, jnp.ones(5)) for x in (aj, optax))
    np.testing.assert_allclose(theirs[1:], ours[:-1], rtol=1e-6)


def rprop_of_torch():
    import torch

    parameter = torch.nn.Parameter(torch.ones(5))
    optimizer = torch.optim.Rprop([parameter], lr=0.1)
    trajectory = []
    for gradient in np.array(GRADIENTS):
        before = parameter.detach().numpy().copy()
        parameter.grad = torch.from_numpy(gradient.copy())
        optimizer.step()
        trajectory.append(parameter.detach().numpy() - before)
    ours = updates_of(aj.rprop(0.1), GRADIENTS, jnp.ones(5))
    assert apart(ours, trajectory) < 1e-5


DEPARTURES = [
    Departure("rprop", "optax", "one step late: the first update is 0", rprop_of_optax),
    Departure("rprop", "torch", AGREES, rprop_of_torch, slow=True),
]
