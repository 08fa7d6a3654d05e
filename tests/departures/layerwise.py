"""Rows of rules/layerwise.py and rules/clipping.py."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import optax

import adaptive_jax as aj

from .factored import GRADIENTS, PARAMS, in_keras, keras_on_jax
from .row import AGREES, Departure, apart, updates_of


def lamb_of_optax():
    ours, theirs = (
        updates_of(x.lamb(0.1, weight_decay=0.1), GRADIENTS, PARAMS) for x in (aj, optax)
    )
    assert apart(ours, theirs) < 3e-5, "1 - 0.999 in float32"


def lamb_of_keras():
    keras = keras_on_jax()

    plain, _ = in_keras(keras.optimizers.Lamb(0.1), GRADIENTS, PARAMS)
    assert apart(updates_of(aj.lamb(0.1, eps=1e-7), GRADIENTS, PARAMS), plain) < 5e-6
    theirs, _ = in_keras(keras.optimizers.Lamb(0.1, weight_decay=0.5), GRADIENTS, PARAMS)
    first = updates_of(aj.lamb(0.1, eps=1e-7), GRADIENTS[:1], 0.95 * PARAMS)[0] - 0.05 * PARAMS
    np.testing.assert_allclose(theirs[0], first, rtol=1e-4, atol=1e-6)
    ours = updates_of(aj.lamb(0.1, eps=1e-7, weight_decay=0.5), GRADIENTS, PARAMS)
    assert apart(ours, theirs) > 0.05


def lars_of_optax():
    settings = {"weight_decay": 0.5, "trust_coefficient": 0.1}
    theirs = updates_of(optax.lars(0.1, **settings), GRADIENTS, PARAMS)
    ours = updates_of(aj.lars(0.1, **settings), GRADIENTS, PARAMS)
    assert apart(ours, theirs) > 0.05
    same = updates_of(aj.lars(0.1, **settings, sum_of_norms=False), GRADIENTS, PARAMS)
    assert apart(same, theirs) < 2e-6


def trust_ratio_of_optax():
    for settings in ({}, {"min_norm": 3.0, "trust_coefficient": 0.1, "eps": 0.1}):
        ours, theirs = (
            updates_of(x.scale_by_trust_ratio(**settings), 1e-2 * GRADIENTS, PARAMS)
            for x in (aj, optax)
        )
        assert apart(ours, theirs) < 2e-6


def centralize_of_optax():
    """A kernel of Flax is (inputs, outputs): each output is to have no mean over the inputs."""
    theirs, ours = (x.centralize().update(GRADIENTS[0], (), None)[0] for x in (optax, aj))
    assert np.abs(theirs.mean(0)).max() > 0.1
    np.testing.assert_allclose(ours.mean(0), 0, atol=1e-6)
    torch = aj.centralize(axes=aj.MatrixAxes(rows=-1, columns=-2))
    np.testing.assert_allclose(torch.update(GRADIENTS[0], (), None)[0], theirs, atol=1e-6)


def adaptive_grad_clip_of_optax():
    """A kernel of a convolution in one dimension is (width, inputs, outputs)."""
    rng = np.random.default_rng(0)
    for shape in ((8, 6), (6,), (3, 3, 4, 6)):
        params, grads = (jnp.asarray(rng.normal(size=shape), jnp.float32) for _ in range(2))
        ours, theirs = (x.adaptive_grad_clip(0.1).update(grads, (), params)[0] for x in (aj, optax))
        assert apart([ours], [theirs]) < 2e-6
    params, grads = (jnp.asarray(rng.normal(size=(3, 4, 6)), jnp.float32) for _ in range(2))
    ours, theirs = (x.adaptive_grad_clip(0.1).update(grads, (), params)[0] for x in (aj, optax))
    units = np.linalg.norm(params, axis=(0, 1))
    np.testing.assert_allclose(np.linalg.norm(ours, axis=(0, 1)), 0.1 * units, rtol=1e-5)
    assert apart([ours], [theirs]) > 0.05
    given = aj.adaptive_grad_clip(0.1, axis=0).update(grads, (), params)[0]
    assert apart([given], [theirs]) < 2e-6


def block_rms_of_optax():
    for name, argument in (("clip_by_block_rms", 0.5), ("scale_by_param_block_rms", 1e-3)):
        ours, theirs = (
            updates_of(getattr(x, name)(argument), GRADIENTS, PARAMS) for x in (aj, optax)
        )
        assert apart(ours, theirs) < 2e-6


DEPARTURES = [
    Departure("lamb", "optax", AGREES, lamb_of_optax),
    Departure("lamb", "keras", "the weight decay is outside the norm; ε is 10⁻⁷", lamb_of_keras, slow=True),
    Departure("lars", "optax", "‖g + λθ‖ in the denominator in place of ‖g‖ + λ‖θ‖", lars_of_optax),
    Departure("scale_by_trust_ratio", "optax", AGREES, trust_ratio_of_optax),
    Departure(
        "centralize", "optax", "takes kernels for those of PyTorch: of Flax's, the mean over outputs",
        centralize_of_optax,
    ),
    Departure(
        "adaptive_grad_clip", "optax", "takes the kernel of a convolution in one dimension for heads",
        adaptive_grad_clip_of_optax,
    ),
    Departure("clip_by_block_rms", "optax", AGREES, block_rms_of_optax),
]  # fmt: skip
