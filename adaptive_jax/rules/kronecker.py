"""Second moments of a matrix over its rows and over its columns: Shampoo and SOAP."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax import lax

from .._core.arguments import one_of, whole
from .._core.hyper import Decay, Hyper, NonNegative
from .._core.rule import Rule, Slot
from .._core.transformation import Transformation
from ..maths import (
    abs_squared,
    bias_correction,
    bounded,
    clamped,
    denominator,
    ema,
    norm,
    power_complement,
    product,
    quotient,
    saturated,
    scaled,
    second_moment,
)
from ._descent import optimizer
from ._factors import (
    SIDES,
    Blocks,
    between,
    eigenvectors,
    gram,
    is_rounding,
    iterated,
    length,
    power,
    raised,
    transposed,
    whitened,
)
from ._factory import Paper, preconditioner


@dataclass(frozen=True)
class Shampoo(Rule):
    """A momentum between roots of the second moments of a matrix, over its rows and over its columns.

        L ← β₂L + (1-β₂)ggᵀ,   R ← β₂R + (1-β₂)gᵀg,   μ ← β₁μ + (1-β₁)g
        P = (L̂ + εI)^(-1/4)·μ̂·(R̂ + εI)^(-1/4),   d = P·‖a‖/‖P‖ for a of Adam

    A matrix longer or wider than max_size is cut into equal blocks, each with factors of its own. What is
    no matrix, a vector say, moves by the method of graft; without one, by the diagonal of what the paper
    has for vectors: as Adam does or, of sums, AdaGrad. The paper has b1=0, average=False, graft=None,
    eps_relative=False, refresh_every=1, and no blocks.

    b1: the decay rate β₁ of the momentum, in [0, 1).
    b2: the decay rate β₂ of the factors, and of the second moment of graft, in [0, 1).
    eps: ε >= 0, added to the eigenvalues of the factors; no less than rounding errors of the largest.
    exponent: the power of each factor; None for -1/4, and for -1/2 with one_sided or with kl.
    average: False for L ← L + ggᵀ and R ← R + gᵀg: the paper's sums.
    graft: "adam", "adagrad", "rmsprop" or "sgd": whose step gives each block its length, of the same
      momentum; None for d = P.
    graft_eps: ε >= 0 of that method.
    eps_relative: False for ε as it is, in units of squared gradients; True for ε times the largest
      eigenvalue, so that the direction has no units.
    kl: True for L ← β₂L + (1-β₂)·gR̂^(-1)gᵀ/n, and so on: each factor sees what the other one has whitened:
      KL-Shampoo, Lin et al. 2025, https://arxiv.org/abs/2509.03378. At first, L and R are the root mean
      square of g times I.
    max_size: how long and wide a block may be, 1 or more.
    refresh_every: after how many steps the roots are computed again, 1 or more.
    spread_refresh: True for different arrays in different steps.
    one_sided: True for the factor of the shorter side alone.
    axes: which axes of an array are rows and columns: `aj.MatrixAxes(…)`, None for the last two, or a
      dict from regular expressions for paths to some.
    """

    paper = (
        Paper("Gupta, Koren & Singer 2018", "https://arxiv.org/abs/1802.09568"),
        Paper("Anil et al. 2020", "https://arxiv.org/abs/2002.09018"),
    )

    b1: Decay = 0.9
    b2: Decay = 0.999
    eps: NonNegative = 1e-6
    exponent: Hyper = None
    average: bool = True
    graft: str | None = "adam"
    graft_eps: NonNegative = 1e-8
    eps_relative: bool = True
    kl: bool = False
    max_size: int = 1024
    refresh_every: int = 10
    spread_refresh: bool = False
    one_sided: bool = False
    axes: Any = None
    matrix = takes_vectors = True
    takes_complex = False

    def __post_init__(self):
        super().__post_init__()
        _check_sizes(self)
        one_of("graft", self.graft, ("adam", "adagrad", "rmsprop", "sgd", None))
        if self.kl and not self.average:
            raise ValueError(
                "kl=True with average=False: the factors of KL-Shampoo are averages, for each is in the "
                "units of the other one. Leave average=False out."
            )

    @property
    def slots(self):
        nu = Slot(nonnegative=True)
        if self.graft is None:  # Of what has no factors alone.
            nu = Slot(nonnegative=True, shape=functools.partial(_without_factors, self))
        own = {"mu": Slot()} if self.graft == "sgd" else {"mu": Slot(), "nu": nu}
        return own | _factors(functools.partial(_factor_of_blocks, self), "root")

    def update(self, grad, slots, param, ctx):
        mu = ctx.store("mu", ema(bounded(grad), slots["mu"], self.b1))
        like, new = self.grafted(grad, mu, slots, ctx)
        if all(slots[side] is None for side in SIDES):
            return like, {"mu": mu, **new, **{name: slots[name] for name in _names("", "_root")}}
        cut = Blocks.of(grad.shape, self.max_size)
        seen = self.seen(cut.blocks(bounded(grad)), slots, ctx)
        factors = [
            self.factor(side, each, slots, ctx) for side, each in zip(SIDES, seen, strict=True)
        ]
        weight = bias_correction(self.b2, ctx.step) if self.average else 1.0
        roots = ctx.refresh(
            self.refresh_every, self.roots, [slots[f"{side}_root"] for side in SIDES], factors, weight,
            spread=self.spread_refresh,
        )  # fmt: skip
        roots = [ctx.store(f"{side}_root", x) for side, x in zip(SIDES, roots, strict=True)]
        direction = between(
            roots[0], cut.blocks(quotient(mu, bias_correction(self.b1, ctx.step))), roots[1]
        )
        if self.graft is not None:
            size = norm(cut.blocks(like), (-2, -1))
            direction = direction * (size / length(direction))
        new |= dict(zip(_names("", "_root"), [*factors, *roots], strict=True))
        return cut.whole(direction), {"mu": mu, **new}

    def grafted(self, grad, mu, slots, ctx):
        """What the method of graft makes of the momentum, and the slot that it has."""
        method = self.graft or ("adam" if self.average else "adagrad")
        correction = bias_correction(self.b1, ctx.step)
        if method == "sgd" or slots["nu"] is None:
            return quotient(mu, correction), {name: None for name in slots if name == "nu"}
        if method == "adagrad":
            nu = ctx.store("nu", saturated(slots["nu"]) + abs_squared(clamped(grad)))
        else:
            nu = ctx.store("nu", second_moment(grad, slots["nu"], self.b2))
        weight = bias_correction(self.b2, ctx.step) if method == "adam" else 1.0
        root = denominator(quotient(nu, weight), self.graft_eps)
        return quotient(mu, scaled(root, correction)), {"nu": nu}

    def seen(self, grad, slots, ctx):
        """What each factor sees of the gradient."""
        halves = [slots[f"{side}_root"] for side in SIDES]
        return whitened(grad, halves, ctx.step == 1) if self.kl else (grad, grad)

    def factor(self, side, seen, slots, ctx):
        if slots[side] is None:
            return None
        square = gram(seen, side)
        if self.average:
            return ctx.store(side, ema(square, slots[side], self.b2))
        most = square.dtype.type(jnp.finfo(square.dtype).max / 2)
        return ctx.store(side, lax.clamp(-most, slots[side], most) + square)

    def roots(self, old, factors, weight):
        """The powers of both factors."""
        exponent = self.exponent
        if exponent is None:
            exponent = -0.5 if self.kl or self.one_sided else -0.25
        return [
            None if x is None else power(x / weight, exponent, self.eps, self.eps_relative)
            for x in factors
        ]


@dataclass(frozen=True)
class Soap(Rule):
    """Adam in the eigenvectors of Shampoo's factors, which follow these every k steps.

        L ← β₃L + (1-β₃)ggᵀ,   R ← β₃R + (1-β₃)gᵀg;   every k steps U ← qr(LU), V ← qr(RV)
        μ ← β₁μ + (1-β₁)UᵀgV,   ν ← β₂ν + (1-β₂)(UᵀgV)²
        d = U·[√(1-β₂ᵗ)/(1-β₁ᵗ)·μ/(√ν + ε)]·Vᵀ

    U and V are at first the eigenvectors of the first gradient's factors; later on they are of factors that
    have not seen the gradient at hand. When they change, μ is turned with them, so that it is always
    that of all gradients. For qr the columns are sorted by their eigenvalues, and then put back: so ν stays
    the second moment of what it was. (The authors' code sorts ν too, which is the same.)

    A side longer than max_size has no factor, and I in place of its eigenvectors. What is no matrix, a
    vector say, has none, and moves as Adam does. `aj.MatrixAxes(heads=…)` cuts what is large into blocks.

    b1: the decay rate β₁ of the first moment, in [0, 1).
    b2: the decay rate β₂ of the second moment, in [0, 1).
    eps: ε >= 0, against division by zero.
    b3: the decay rate β₃ of the factors, in [0, 1); None for that of the second moment.
    bias_correction: False for d = U·[μ/(√ν + ε)]·Vᵀ.
    skip_first: True for a first step that makes factors and eigenvectors alone, as the authors' code does:
      nothing moves but by weight decay, and the step is not counted. (Where b1 or b2 has a schedule, its
      correction is that of the number that it is at.) False for one in the eigenvectors of its own
      gradient. Either way, what rounding makes of zeros does not count in the first step that does.
    kl: True for L ← β₃L + (1-β₃)·gR̂^(-1)gᵀ/n, and so on: each factor sees what the other one has whitened:
      KL-SOAP, Lin et al. 2025, https://arxiv.org/abs/2509.03378. At first, L and R are the root mean square
      of g times I.
    kl_eps: with kl, what is added to eigenvalues before they are inverted, >= 0, times the largest.
    max_size: up to which length a side has a factor, 1 or more.
    refresh_every: k, after how many steps the eigenvectors follow, 1 or more.
    spread_refresh: True for different arrays in different steps.
    one_sided: True for the factor of the shorter side alone.
    axes: which axes of an array are rows and columns: `aj.MatrixAxes(…)`, None for the last two, or a
      dict from regular expressions for paths to some.
    """

    paper = Paper("Vyas et al. 2024", "https://arxiv.org/abs/2409.11321", "algorithm 3")

    b1: Decay = 0.95
    b2: Decay = 0.95
    eps: NonNegative = 1e-8
    b3: Decay = None
    bias_correction: bool = True
    skip_first: bool = False
    kl: bool = False
    kl_eps: NonNegative = 1e-6
    max_size: int = 10_000
    refresh_every: int = 10
    spread_refresh: bool = False
    one_sided: bool = False
    axes: Any = None
    matrix = takes_vectors = True
    takes_complex = False

    def __post_init__(self):
        super().__post_init__()
        _check_sizes(self)

    @property
    def only_initialises(self):
        """Whether the first update moves nothing."""
        return self.skip_first

    @property
    def slots(self):
        own = {"mu": Slot(), "nu": Slot(nonnegative=True)}
        return own | _factors(functools.partial(_factor_of_side, self), "basis")

    def update(self, grad, slots, param, ctx):
        seen, is_first = bounded(grad), ctx.step == 1
        step = jnp.maximum(ctx.step - 1, 1) if self.skip_first else ctx.step
        before, bases = ([slots[f"{side}{end}"] for side in SIDES] for end in ("", "_basis"))
        mu, squared = slots["mu"], seen
        if not self.skip_first:
            bases, mu, before, squared = self.followed(bases, mu, before, seen, ctx)
        factors = self.factors(before, bases, squared, ctx)
        left, right = bases
        turned = between(transposed(left), seen, right)
        mu, nu = ema(turned, mu, self.b1), second_moment(turned, slots["nu"], self.b2)
        if self.skip_first:
            mu, nu = (jnp.where(is_first, slots[k], x) for k, x in {"mu": mu, "nu": nu}.items())
        mu, nu = ctx.store("mu", mu), ctx.store("nu", nu)
        direction = self.adam(mu, nu, step)
        if any(x is not None for x in bases):
            direction = jnp.where((step == 1) & is_rounding(turned), 0 * direction, direction)
        if self.skip_first:
            direction = jnp.where(is_first, 0 * seen, direction)
            bases, mu, *_ = self.followed(bases, mu, factors, seen, ctx)
        new = dict(zip(_names("", "_basis"), [*factors, *bases], strict=True))
        return between(left, direction, transposed(right)), {"mu": mu, "nu": nu, **new}

    def adam(self, mu, nu, step):
        """√(1-β₂ᵗ)/(1-β₁ᵗ)·μ/(√ν + ε)."""
        root = denominator(nu, self.eps)
        if not self.bias_correction:
            return mu / root
        if self.skip_first:
            weights = [power_complement(b, step) for b in (self.b1, self.b2)]
        else:
            weights = [bias_correction(b, step) for b in (self.b1, self.b2)]
        return quotient(scaled(mu, jnp.sqrt(weights[1])), scaled(root, weights[0]))

    def factors(self, before, bases, grad, ctx):
        """L and R; None for one that there is not."""
        decay = self.b2 if self.b3 is None else self.b3
        seen = (grad, grad)
        if self.kl:
            weight = power_complement(decay, jnp.maximum(ctx.step - 1, 1))
            halves = [self.half(x, y, weight) for x, y in zip(before, bases, strict=True)]
            seen = whitened(grad, halves, ctx.step == 1)
        return [
            None if old is None else ctx.store(side, ema(gram(x, side), old, decay))
            for side, old, x in zip(SIDES, before, seen, strict=True)
        ]

    def half(self, factor, basis, weight):
        """H with HHᵀ = L̂^(-1), by the eigenvalues diag(UᵀLU) that it has in the basis."""
        if factor is None:
            return None
        values = jnp.sum(basis * product(factor, basis), -2) / weight
        return basis * lax.rsqrt(raised(values, self.kl_eps, True))[..., None, :]

    def followed(self, bases, mu, factors, grad, ctx):
        """The bases, which follow the factors when they are due, and μ in them; at first the gradient's.

        Factors and gradient are handed on, so that what is made of these comes after the bases: new
        factors are written over the old ones, of which there would be copies.
        """
        known = bases, mu, factors, grad
        if all(x is None for x in bases):
            return known
        return ctx.refresh(
            self.refresh_every, _iterated, known, first=_eigenvectors, spread=self.spread_refresh
        )


def _iterated(known: Any) -> Any:
    bases, mu, factors, grad = known
    new = [x if x is None else iterated(x, y) for x, y in zip(bases, factors, strict=True)]
    mu = between(bases[0], mu, transposed(bases[1]))
    return new, between(transposed(new[0]), mu, new[1]), factors, grad


def _eigenvectors(known: Any) -> Any:
    bases, mu, factors, grad = known
    sides = zip(bases, SIDES, strict=True)
    new = [x if x is None else eigenvectors(gram(grad, side)) for x, side in sides]
    return new, mu, factors, grad


def _check_sizes(rule: Any) -> None:
    for name in ("max_size", "refresh_every"):
        object.__setattr__(rule, name, whole(name, getattr(rule, name), 1))


def _names(*endings: str) -> list[str]:
    return [f"{side}{ending}" for ending in endings for side in SIDES]


def _factor(side: str, rows: int, columns: int, one_sided: bool) -> int | None:
    """How long and wide a factor is; None for no such factor."""
    if one_sided and side != ("left" if rows <= columns else "right"):
        return None
    return rows if side == "left" else columns


def _factor_of_side(rule: Soap, side: str, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    if len(shape) < 2 or 0 in shape:
        return None
    size = _factor(side, shape[-2], shape[-1], rule.one_sided)
    return None if size is None or size > rule.max_size else (*shape[:-2], size, size)


def _factor_of_blocks(rule: Shampoo, side: str, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    if len(shape) < 2 or 0 in shape:
        return None
    cut = Blocks.of(shape, rule.max_size)
    size = _factor(side, *cut.block, rule.one_sided)
    return None if size is None else (*cut.batch, size, size)


def _without_factors(rule: Shampoo, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    return shape if all(_factor_of_blocks(rule, side, shape) is None for side in SIDES) else None


def _factors(shape_of: Any, kept: str) -> dict[str, Slot]:
    """The slots of the factors, and of what is kept of each: at first 0 and I.

    shape_of: the shape of the one of a side, for that of the matrices.
    """

    def identity(shape: Any) -> Any:
        return lambda param: jnp.eye(shape(param.shape)[-1], dtype=param.dtype)

    shapes = {side: functools.partial(shape_of, side) for side in SIDES}
    factors = {side: Slot(shape=shape) for side, shape in shapes.items()}
    of_each = {f"{side}_{kept}": Slot(identity(x), shape=x) for side, x in shapes.items()}
    return factors | of_each


@optimizer(Shampoo)
def shampoo(
    learning_rate: Any,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-6,
    *,
    exponent: Any = None,
    average: bool = True,
    graft: str | None = "adam",
    graft_eps: Any = 1e-8,
    eps_relative: bool = True,
    kl: bool = False,
    max_size: int = 1024,
    refresh_every: int = 10,
    spread_refresh: bool = False,
    one_sided: bool = False,
    axes: Any = None,
    weight_decay: Any = None,
    mask: Any = None,
    storage: Any = None,
) -> Transformation:
    """Shampoo, with the learning rate of the method whose step lengths it takes: by default Adam's."""
    ...


@preconditioner(Shampoo)
def scale_by_shampoo(
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-6,
    *,
    exponent: Any = None,
    average: bool = True,
    graft: str | None = "adam",
    graft_eps: Any = 1e-8,
    eps_relative: bool = True,
    kl: bool = False,
    max_size: int = 1024,
    refresh_every: int = 10,
    spread_refresh: bool = False,
    one_sided: bool = False,
    axes: Any = None,
    storage: Any = None,
) -> Transformation:
    """Shampoo's direction for a chain. See `shampoo`."""
    ...


@optimizer(Soap)
def soap(
    learning_rate: Any,
    b1: Any = 0.95,
    b2: Any = 0.95,
    eps: Any = 1e-8,
    *,
    b3: Any = None,
    bias_correction: bool = True,
    skip_first: bool = False,
    kl: bool = False,
    kl_eps: Any = 1e-6,
    max_size: int = 10_000,
    refresh_every: int = 10,
    spread_refresh: bool = False,
    one_sided: bool = False,
    axes: Any = None,
    weight_decay: Any = 0.01,
    mask: Any = None,
    storage: Any = None,
) -> Transformation:
    """SOAP: Adam in the eigenvectors of Shampoo's factors. The paper's learning rate is 3e-3."""
    ...


@preconditioner(Soap)
def scale_by_soap(
    b1: Any = 0.95,
    b2: Any = 0.95,
    eps: Any = 1e-8,
    *,
    b3: Any = None,
    bias_correction: bool = True,
    skip_first: bool = False,
    kl: bool = False,
    kl_eps: Any = 1e-6,
    max_size: int = 10_000,
    refresh_every: int = 10,
    spread_refresh: bool = False,
    one_sided: bool = False,
    axes: Any = None,
    storage: Any = None,
) -> Transformation:
    """SOAP's direction for a chain. See `soap`."""
    ...
