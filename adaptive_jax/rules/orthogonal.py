"""Steps of one length in every direction of a matrix: a momentum with all its singular values near 1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._core.arguments import is_number, one_of, whole
from .._core.hyper import Decay, Fraction, NonNegative
from .._core.rule import Rule, Slot
from .._core.storage import named
from .._core.transformation import Transformation
from .._core.views import MatrixAxes
from ..maths import at_least, bounded, decayed_sum, denominator, ema, norm, product, scaled
from ._factory import Paper, composed, preconditioner
from ._matrices import descend_matrices

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
    scale: by how much, "spectral": √max(1, out/in); "ratio": √(out/in), as of Scion; or "rms":
      0.2√max(in, out), with which each number of the update is about as large as Adam's, so that its
      learning rate and weight decay carry over (Liu et al. 2025, https://arxiv.org/abs/2502.16982).
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
        mu = ctx.store("mu", self.averaged(grad, slots))
        return self.factor(grad) * self.orthogonal(grad, mu), {"mu": mu}

    def averaged(self, grad, slots):
        return ema(bounded(grad), slots["mu"], self.b1)

    def orthogonal(self, grad, mu):
        return orthogonalized(self.ahead(grad, mu), self.polynomials, self.eps)

    def ahead(self, grad, mu):
        return ema(bounded(grad), mu, self.b1) if self.nesterov else mu

    def factor(self, grad):
        return SCALES[self.scale](*(max(1, size) for size in grad.shape[-2:]))

    @property
    def ns_coefficients(self):
        """(a, b, c) of the first step, which PyTorch takes for all."""
        return self.polynomials[0]

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
    try:
        found = np.atleast_2d(np.asarray(given, np.float64))
    except (TypeError, ValueError):  # A tracer, or triples of different lengths.
        found = np.zeros((0, 0))
    if found.ndim != 2 or found.shape[1] != 3 or len(found) == 0 or not np.isfinite(found).all():
        raise ValueError(
            f"ns_coeffs={given!r:.80} must be one of {', '.join(map(repr, COEFFICIENTS))}, or numbers "
            "known when the rule is made: (a, b, c), or a tuple of such triples, one for each step."
        )
    return tuple(map(tuple, found.tolist()))


def orthogonalized(x: jax.Array, polynomials: Any, eps: jax.Array) -> jax.Array:
    """About UVᵀ for each matrix UΣVᵀ: odd polynomials of X/(‖X‖ + ε), one after the other."""
    return through(x / at_least(norm(x, (-2, -1)) + eps), polynomials)


def through(x: jax.Array, polynomials: Any) -> jax.Array:
    """Odd polynomials of the singular values of each matrix, none above 1, one after the other."""
    is_tall = x.shape[-2] > x.shape[-1]
    short, long = sorted(x.shape[-2:])
    identity = jnp.broadcast_to(jnp.eye(short, dtype=x.dtype), (*x.shape[:-2], short, short))

    def times(factor: jax.Array, x: jax.Array) -> jax.Array:
        return product(x, factor) if is_tall else product(factor, x)

    def gram(x: jax.Array) -> jax.Array:
        return product(x.mT, x) if is_tall else product(x, x.mT)

    def value(square: jax.Array, a: float, b: float, c: float) -> jax.Array:
        return a * identity + b * square + c * product(square, square)

    if long < 1.5 * short:
        for abc in polynomials:
            x = times(value(gram(x), *abc), x)
        return x
    # All these factors commute, being polynomials of XXᵀ: they are multiplied first, and X, which is much
    # longer, once. Not more than five, for each makes what was rounded in XXᵀ a² times as large.
    for start in range(0, len(polynomials), 5):
        first, *others = polynomials[start : start + 5]
        square = gram(x)
        total = factor = value(square, *first)
        for abc in others:
            square = product(product(factor, square), factor)
            factor = value(square, *abc)
            total = product(factor, total)
        x = times(total, x)
    return x


@dataclass(frozen=True)
class NorMuon(Muon):
    """Muon, in which what goes into each output, a neuron, is divided by how long it has been of late.

        ν ← β₂ν + (1-β₂)·mean(o²) over in, for each out, where o is UVᵀ of Muon
        d = √max(1, out/in)·‖o‖·n/‖n‖   for n = o/(√ν + 1e-10)

    b2: the decay rate β₂ of the mean square of each output, in [0, 1).
    """

    paper = Paper("Li et al. 2025", "https://arxiv.org/abs/2510.05491", "algorithm 1")

    b2: Decay = 0.95
    slots = {
        "mu": Slot(),
        "nu": Slot(nonnegative=True, shape=lambda shape: (*shape[:-2], shape[-1])),
    }

    def update(self, grad, slots, param, ctx):
        mu = ctx.store("mu", self.averaged(grad, slots))
        o = self.orthogonal(grad, mu)
        mean_square = jnp.square(norm(o, (-2,))[..., 0, :]) / max(1, grad.shape[-2])
        nu = ctx.store("nu", ema(mean_square, slots["nu"], self.b2))
        n = o / denominator(nu, 1e-10)[..., None, :]
        rescaled = n * (norm(o, (-2, -1)) / at_least(norm(n, (-2, -1))))
        return self.factor(grad) * rescaled, {"mu": mu, "nu": nu}


@dataclass(frozen=True)
class MuonOfWeights(Muon):
    """The same as PyTorch has it: for weights, (out, in), and with ε as the least norm.

    μ ← β₁μ + (1-β₁)g,   X₀ = m/max(‖m‖, ε),   and on as in `Muon`
    """

    paper = Muon.paper
    usual_axes = MatrixAxes(rows=-1, columns=-2)

    def orthogonal(self, grad, mu):
        momentum = self.ahead(grad, mu)
        size = jnp.maximum(norm(momentum, (-2, -1)), self.eps)
        return through(momentum / at_least(size), self.polynomials)


@dataclass(frozen=True)
class MuonOfSums(Muon):
    """The same as Keras has it: with a sum of gradients for its momentum, and steps of any length.

        μ ← β₁μ + g,   m = β₁μ + g with nesterov, else μ,   and on as in `Muon`
        d = X₅·ρ√max(in, out)

    b1: β₁ in [0, 1].
    rms_rate: ρ >= 0, about the root mean square of d; None for d = X₅.
    """

    paper = Muon.paper

    b1: Fraction = 0.95
    rms_rate: NonNegative = None

    def update(self, grad, slots, param, ctx):
        mu = ctx.store("mu", decayed_sum(bounded(grad), slots["mu"], self.b1))
        direction = self.orthogonal(grad, mu)
        if self.rms_rate is not None:
            direction = scaled(direction, self.rms_rate * max(1, *grad.shape[-2:]) ** 0.5)
        return direction, {"mu": mu}

    def ahead(self, grad, mu):
        return decayed_sum(bounded(grad), mu, self.b1) if self.nesterov else mu


@composed(Muon, variants={"normuon=True": NorMuon})
def muon(
    learning_rate: Any,
    ns_coeffs: Any = "quintic",
    ns_steps: int = 5,
    b1: Any = 0.95,
    eps: Any = 1e-7,
    weight_decay: Any = 0.0,
    mask: Any = None,
    mu_dtype: Any = None,
    *,
    nesterov: bool = True,
    scale: str = "spectral",
    normuon: bool = False,
    b2: Any = 0.95,
    axes: Any = None,
    where: Any = None,
    rest: Any = None,
    adam_learning_rate: Any = None,
    storage: Any = None,
) -> Transformation:
    """Muon for the matrices inside of a model, and Adam for all else: embeddings, heads, norms, vectors.

    Which is which follows from shapes and paths, and `aj.describe(tx, params)` says it of each array, with
    the reason. For Adam are: arrays with one axis or none, complex ones, and those in whose path, a/b/c, a
    name has one of the words embed, embedding, emb, wte, wpe, vocab, norm, layernorm, rmsnorm, ln, bn; or
    ends with one of token, position, head (not of an attention), logits, classifier, unembed, bias, scale,
    gamma, beta; or where the last is "output". "LayerNorm_0" is two words, "ahead" is one.

    An array with more than two axes is many matrices, of its last two axes, such as the kernels of scanned
    layers; one whose path has the word conv is a convolution, and one matrix, (…·in, out). The kernels of
    an attention of Flax or Keras are one matrix too: query, key and value/kernel, (in, heads, d), as
    (in, heads·d), and out or attention_output/kernel, (heads, d, out), as (heads·d, out), where both are
    there and fit. `axes` says otherwise: fused queries, keys and values, or heads, are matrices of their
    own by {"qkv": aj.MatrixAxes(heads=3)} or {"query/kernel": aj.MatrixAxes(rows=0, columns=2)}.

    Differs from `optax.contrib.muon`: embeddings and heads are not orthogonalized, arrays with more axes
    are; Nesterov's momentum is Jordan's, without bias corrections; weight decay and Adam's
    defaults, b2=0.95 and eps=1e-10, are Jordan's too; polynomials are multiplied in float32 before they
    meet the matrix, which takes a third of the time and of the memory.

    eps: ε >= 0, beside the Frobenius norm ‖m‖: much smaller gradients give smaller steps.
    normuon: whether to take NorMuon, which keeps one number more for each output.
    b2: with normuon, the decay rate β₂ of the mean square of each output, in [0, 1).
    axes: which axes of an array are in and out: `aj.MatrixAxes(…)`, or a dict from regular expressions for
      paths to some; None for what is said above.
    where: which arrays are for Muon, in the place of what is said above: a tree of bools, a prefix of one,
      or a function of the parameters.
    rest: the optimizer of all else; None for Adam.
    adam_learning_rate: the learning rate of that Adam; None for learning_rate, which is right with
      scale="rms". With the other scales Muon's is some ten times as large as Adam's: give both.

    Example:
      >>> import adaptive_jax as aj, jax, jax.numpy as jnp
      >>> tx = aj.muon(0.02, weight_decay=0.01, adam_learning_rate=3e-4)
      >>> mlp = {"kernel": jnp.ones((32, 128)), "bias": jnp.ones(128)}
      >>> params = {"wte": jnp.ones((512, 32)), "mlp": mlp}
      >>> why = {row.path: row.why[0] for row in aj.describe(tx, params).rows}
      >>> for path, reason in why.items():
      ...     print(path, reason)
      ['mlp']['bias'] label 'rest': one axis
      ['mlp']['kernel'] label 'muon': a matrix inside of the model
      ['wte'] label 'rest': an embedding, by 'wte'
      >>> # With the learning rate and the weight decay of AdamW:
      >>> tx = aj.muon(3e-4, scale="rms", weight_decay=0.1, rest=aj.adamw(3e-4, weight_decay=0.1))
    """
    settings = {"b1": b1, "eps": eps, "ns_coeffs": ns_coeffs, "ns_steps": ns_steps}
    settings |= {"nesterov": nesterov, "scale": scale, "axes": axes}
    one_of("normuon", normuon, (True, False))
    if not (normuon or (is_number(b2) and b2 == 0.95)):
        raise ValueError(
            f"b2={b2!r:.80} is the decay rate of NorMuon's mean squares, which Muon has not: give "
            "normuon=True as well, or the one of Adam to rest=aj.adamw(learning_rate, b2=…)."
        )
    direction = NorMuon(**settings, b2=b2) if normuon else Muon(**settings)
    options = {"normuon": True} if normuon else {}
    return descend_matrices(
        muon, direction, learning_rate, weight_decay, mask, named.with_dtype(storage, "mu", mu_dtype),
        where=where, rest=rest, adam_learning_rate=adam_learning_rate, **options,
    )  # fmt: skip


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


@preconditioner(NorMuon)
def scale_by_normuon(
    ns_coeffs: Any = "quintic",
    ns_steps: int = 5,
    b1: Any = 0.95,
    b2: Any = 0.95,
    eps: Any = 1e-7,
    *,
    nesterov: bool = True,
    scale: str = "spectral",
    axes: Any = None,
    storage: Any = None,
) -> Transformation:
    """NorMuon's direction for a chain, of matrices alone. See `muon`."""
    ...
