"""Steps of one length in every direction of a matrix: a momentum with all its singular values near 1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .._core.arguments import one_of, whole
from .._core.hyper import Decay, NonNegative
from .._core.rule import Rule, Slot
from .._core.transformation import Transformation
from ..maths import bounded, ema, least_denominator, norm, product
from ._factory import Paper, preconditioner

COEFFICIENTS = {
    # Jordan: all singular values above a hundredth of ‖X‖ to between 0.68 and 1.13.
    "quintic": ((3.4445, -4.7750, 2.0315),),
    # Amsel et al., algorithm 1, in which every polynomial but the last one sees 1/1.01 of what it is given,
    # and the first one another 1/1.01.
    "polar_express": tuple(
        (a / safety, b / safety**3, c / safety**5)
        for safety, (a, b, c) in (
            (1.01**2, (8.28721201814563, -23.595886519098837, 17.300387312530933)),
            (1.01, (4.107059111542203, -2.9478499167379106, 0.5448431082926601)),
            (1.01, (3.9486908534822946, -2.908902115962949, 0.5518191394370137)),
            (1.01, (3.3184196573706015, -2.488488024314874, 0.51004894012372)),
            (1.01, (2.300652019954817, -1.6689039845747493, 0.4188073119525673)),
            (1.01, (1.891301407787398, -1.2679958271945868, 0.37680408948524835)),
            (1.01, (1.8750014808534479, -1.2500016453999487, 0.3750001645474248)),
            (1.0, (1.875, -1.25, 0.375)),
        )
    ),
    # What modded-nanogpt and dion run of it: five steps, of X/1.02.
    "speedrun": tuple(
        (a / safety, b / safety**3, c / safety**5)
        for safety, (a, b, c) in (
            (1.02, (8.156554524902461, -22.48329292557795, 15.878769915207462)),
            (1.0, (4.042929935166739, -2.808917465908714, 0.5000178451051316)),
            (1.0, (3.8916678022926607, -2.772484153217685, 0.5060648178503393)),
            (1.0, (3.285753657755655, -2.3681294933425376, 0.46449024233003106)),
            (1.0, (2.3465413258596377, -1.7097828382687081, 0.42323551169305323)),
        )
    ),
}
"""Of an odd polynomial ax + bx³ + cx⁵ for each step, (a, b, c). Singular values go through them in turn."""

SCALES = {
    "spectral": lambda rows, columns: max(1, columns / rows) ** 0.5,
    "rms": lambda rows, columns: 0.2 * max(rows, columns) ** 0.5,
    "ratio": lambda rows, columns: (columns / rows) ** 0.5,
}
"""How long a step is, of a matrix with so many rows, its inputs, and columns."""


@dataclass(frozen=True)
class Muon(Rule):
    """Momentum, orthogonalized: about UVᵀ of UΣVᵀ, each singular value p(σ/‖μ‖) for polynomials p.

        μ ← β₁μ + (1-β₁)g,   X₀ = m/(‖m‖ + ε) for m = μ
        Xₖ = aₖXₖ₋₁ + bₖXₖ₋₁Xₖ₋₁ᵀXₖ₋₁ + cₖ(Xₖ₋₁Xₖ₋₁ᵀ)²Xₖ₋₁,   d = X₅·√max(1, out/in)

    b1: the decay rate β₁ of the momentum, in [0, 1).
    eps: ε >= 0, beside the Frobenius norm ‖m‖: much smaller gradients give smaller steps.
    ns_coeffs: the polynomials: "quintic" for Jordan's, which leaves singular values between 0.7 and 1.2;
      "polar_express", those of Amsel et al. 2025 (https://arxiv.org/abs/2505.16932), which come
      closer to 1; "speedrun", what modded-nanogpt runs of these; or (a, b, c) for every step, or a
      tuple of such triples. The last one is repeated where there are fewer than steps.
    ns_steps: how many polynomials are applied, 1 or more.
    nesterov: True for m = β₁μ + (1-β₁)g, one step ahead.
    scale: "spectral" for √max(1, out/in); "ratio" for √(out/in), as of Scion; "rms" for 0.2√max(in, out),
      with which each number of the update is about as large as Adam's, so that Adam's learning rate and
      weight decay carry over (Liu et al. 2025, https://arxiv.org/abs/2502.16982).
    axes: which axes of an array are in and out: `aj.MatrixAxes(…)`, None for the last two, or a dict from
      regular expressions for paths to some.
    """

    paper = Paper("Jordan et al. 2024", "https://kellerjordan.github.io/posts/muon/")

    b1: Decay = 0.95
    eps: NonNegative = 1e-7
    ns_coeffs: Any = "quintic"
    ns_steps: int = 5
    nesterov: bool = True
    scale: str = "spectral"
    axes: Any = None
    slots = {"mu": Slot()}
    counts_steps = False
    matrix = True
    takes_complex = False

    def __post_init__(self):
        super().__post_init__()
        one_of("scale", self.scale, SCALES)
        object.__setattr__(self, "ns_steps", whole("ns_steps", self.ns_steps, 1))
        object.__setattr__(self, "ns_coeffs", _coefficients(self.ns_coeffs))

    def update(self, grad, slots, param, ctx):
        mu = ctx.store("mu", ema(bounded(grad), slots["mu"], self.b1))
        momentum = ema(bounded(grad), mu, self.b1) if self.nesterov else mu
        direction = orthogonalized(momentum, self.polynomials, self.eps)
        return SCALES[self.scale](*grad.shape[-2:]) * direction, {"mu": mu}

    @property
    def polynomials(self):
        """(a, b, c) of each step."""
        known = COEFFICIENTS.get(self.ns_coeffs, self.ns_coeffs)
        return (*known, *[known[-1]] * self.ns_steps)[: self.ns_steps]


def _coefficients(given: Any) -> Any:
    """The name of a set, or the triples, of what a user gives: static, and so Python's numbers."""
    if isinstance(given, str):
        one_of("ns_coeffs", given, COEFFICIENTS)
        return given
    found = np.asarray(given, np.float64)
    found = found[None] if found.ndim == 1 else found
    return tuple(tuple(triple) for triple in found.tolist())


def orthogonalized(x: jax.Array, polynomials: Any, eps: jax.Array) -> jax.Array:
    """About UVᵀ for each matrix UΣVᵀ: odd polynomials of X/(‖X‖ + ε), one after the other."""
    is_tall = x.shape[-2] > x.shape[-1]
    x = x.mT if is_tall else x
    size = lax.max(norm(x, (-2, -1)) + eps, x.dtype.type(least_denominator(x.dtype)))
    x = x / size
    # Polynomials of one matrix commute: those of XXᵀ are multiplied first, X, which is longer, once.
    gram, total = product(x, x.mT), None
    identity = jnp.broadcast_to(jnp.eye(gram.shape[-1], dtype=x.dtype), gram.shape)
    for place, (a, b, c) in enumerate(polynomials, start=1):
        factor = a * identity + b * gram + c * product(gram, gram)
        total = factor if total is None else product(factor, total)
        if place < len(polynomials):
            gram = product(product(factor, gram), factor)
    x = product(total, x)
    return x.mT if is_tall else x


@preconditioner(Muon)
def scale_by_muon(
    ns_coeffs: Any = "quintic",
    ns_steps: int = 5,
    b1: Any = 0.95,
    eps: Any = 1e-7,
    mu_dtype: Any = None,
    *,
    nesterov: bool = True,
    scale: str = "spectral",
    axes: Any = None,
    storage: Any = None,
) -> Transformation:
    """Muon's direction for a chain, of matrices alone. See `muon`."""
    ...
