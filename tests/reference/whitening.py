"""References of rules/whitening.py."""

from __future__ import annotations

import zlib

import numpy as np
from scipy.linalg import solve_triangular
from scipy.special import erfinv

from .averages import at


def psgd_kron(
    gradients,
    params,
    learning_rate,
    b1=0.9,
    preconditioner_update_probability=None,
    max_size=8192,
    memory_save_mode=None,
    momentum_into_precond_update=True,
    preconditioner_lr=0.1,
    *,
    weight_decay=0.0,
    probes=None,
):
    """Li (2019), gradients whitened by one factor Q for each axis, as in psgd_jax, kron.py.

    For all axes i, with Qᵢ along it:  A = Q G,  B = Q⁻ᵀV;
    Qᵢ ← Qᵢ - ρ·triu(AAᵀ - BBᵀ)Qᵢ/‖AAᵀ + BBᵀ‖, products over all other axes.

    No Q is ever balanced: neither A nor B nor QᵀQ changes with that. Not fitted to zeros.

    probes: V of each step, of the shape of the gradients; None for those that the library draws.
    """
    probes = drawn(gradients.shape) if probes is None else probes
    shape = np.shape(params) or (1,)  # A single number is a vector of one.
    axes = range(len(shape))
    diagonal = [is_diagonal(shape, axis, max_size, memory_save_mode) for axis in axes]
    factors = [np.ones(n) if d else np.eye(n) for n, d in zip(shape, diagonal, strict=True)]
    mu, weight, counter, updates = np.zeros(shape), 0.0, 0, []
    for step, (g, v) in enumerate(zip(gradients, probes, strict=True), start=1):
        g, v, b = g.reshape(shape), v.reshape(shape), at(b1, step)
        mu, weight = b * mu + (1 - b) * g, b * weight + 1 - b
        momentum = mu / weight
        counter += 1
        if counter >= 1 / probability(preconditioner_update_probability, step):
            counter = 0
            seen = momentum if momentum_into_precond_update else g
            if np.any(seen):
                noise = np.sqrt(float(np.finfo(np.float32).eps)) * np.abs(seen).mean()
                factors = fitted(factors, seen + noise * v, v, at(preconditioner_lr, step))
        p = momentum
        for axis in axes:
            q = factors[axis]
            p = along(p, axis, q * q if q.ndim == 1 else q.T @ q)
        direction = p.reshape(np.shape(params)) / max(1.0, np.sqrt(np.mean(p**2)) / 1.1)
        update = -at(learning_rate, step) * (direction + at(weight_decay, step) * params)
        params = params + update
        updates.append(update)
    return np.stack(updates)


def probability(given, step):
    """1 for 500 steps, then down to 0.03."""
    return max(min(np.exp(-(step - 500) / 1000), 1.0), 0.03) if given is None else at(given, step)


def is_diagonal(shape, axis, max_size, memory_save_mode):
    longest = len(shape) - 1 - int(np.argmax(shape[::-1]))
    return (
        len(shape) < 2
        or shape[axis] == 1
        or shape[axis] > max_size
        or memory_save_mode == "all_diag"
        or (memory_save_mode == "one_diag" and axis == longest)
    )


def along(x, axis, q):
    """Q along an axis of x."""
    moved = np.moveaxis(x, axis, 0)
    result = np.einsum("i,i...->i...", q, moved) if q.ndim == 1 else np.tensordot(q, moved, 1)
    return np.moveaxis(result, 0, axis)


def fitted(factors, g, v, rho):
    a, b = g, v
    for axis, q in enumerate(factors):
        a = along(a, axis, q)
        inverse = 1 / q if q.ndim == 1 else solve_triangular(q, np.eye(len(q))).T
        b = along(b, axis, inverse)
    new = []
    for axis, q in enumerate(factors):
        flat_a, flat_b = (np.moveaxis(x, axis, 0).reshape(len(q), -1) for x in (a, b))
        if q.ndim == 1:
            aa, bb = (flat_a**2).sum(1), (flat_b**2).sum(1)
            new.append(q - rho * (aa - bb) * q / np.abs(aa + bb).max())
        else:
            aa, bb = flat_a @ flat_a.T, flat_b @ flat_b.T
            new.append(q - rho * np.triu(aa - bb) @ q / spectral_norm_bound(aa + bb))
    return new


def spectral_norm_bound(x):
    """‖xᵀcx‖/‖cx‖ for its longest column c: a lower bound of the spectral norm."""
    column = x[:, np.argmax((x**2).sum(0))]
    row = column @ x
    return np.linalg.norm(row / np.linalg.norm(row) @ x.T)


def drawn(shape, index=0):
    """The probes of the library in all steps: normal numbers of a hash.

    index: the place of the array in its tree.
    """
    with np.errstate(over="ignore"):
        place = np.arange(np.prod(shape[1:], dtype=int), dtype=np.uint32)
        salt = np.uint32(zlib.crc32(b"PsgdKron.False"))  # The rule, and whether it is `advance`.
        probes = []
        for step in range(1, shape[0] + 1):
            key = np.uint32(step) * np.uint32(0x85EBCA6B) + salt
            key += np.uint32(index) * np.uint32(0xC2B2AE35)
            key = (key ^ (key >> np.uint32(16))) * np.uint32(0x85EBCA6B)
            key = (key ^ (key >> np.uint32(13))) * np.uint32(0xC2B2AE35)
            key = key ^ (key >> np.uint32(16))
            bits = (place + key) * np.uint32(0x9E3779B9)
            bits = (bits ^ (bits >> np.uint32(15))) * np.uint32(0x85EBCA6B)
            uniform = ((bits >> np.uint32(16)) + 0.5) / 2**16
            probes.append(np.sqrt(2) * erfinv(2 * uniform - 1))
    return np.reshape(probes, shape)
