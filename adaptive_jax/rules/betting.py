"""Steps that are bets: of each coordinate, or of the scale of another optimizer's steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from .._core.arguments import whole
from .._core.hyper import NonNegative, Positive
from .._core.rule import Rule, Slot
from .._core.transform import build
from .._core.transformation import Transformation
from ..maths import (
    bounded,
    clamped,
    denominator,
    inner,
    norm,
    norm_in_one_pass,
    quotient,
    saturated,
    scaled,
)
from ._descent import decays_by
from ._factory import Paper, composed, preconditioner
from .scaling import LearningRate


@dataclass(frozen=True)
class COCOB(Rule):
    """Each coordinate bets on its next gradient, with what it has won: continuous coin betting.

        L ← max(L, |g|),   S ← S + |g|,   R ← max(R - g(θ-θ₀), 0),   C ← C - g
        θ ← θ₀ + C/(L·max(S + L, αL))·(L + R)

    What it returns is the step there. It is the same for gradients of any scale.

    alpha: α >= 0, how many times the largest gradient the first bets are for: 100 keeps them small.
    eps: the first L, > 0.
    """

    paper = Paper("Orabona & Tommasi 2017", "https://arxiv.org/abs/1705.07795", "algorithm 2")

    alpha: NonNegative = 100.0
    eps: Positive = 1e-8
    slots = {
        "largest": Slot("eps", nonnegative=True),
        "sizes": Slot(nonnegative=True),
        "reward": Slot(nonnegative=True),
        "total": Slot(),
        "start": Slot("param", constant=True),
    }
    counts_steps = False
    needs_params = True
    takes_complex = False

    def update(self, grad: Any, slots: Any, param: Any, ctx: Any) -> Any:
        grad, start = bounded(grad), slots["start"]
        largest = ctx.store("largest", jnp.maximum(slots["largest"], jnp.abs(grad)))
        sizes = ctx.store("sizes", slots["sizes"] + jnp.abs(grad))
        reward = ctx.store("reward", jnp.maximum(slots["reward"] - grad * (param - start), 0))
        total = ctx.store("total", slots["total"] - grad)
        share = quotient(total, jnp.maximum(sizes + largest, self.alpha * largest))
        bet = share * (1 + quotient(reward, largest))
        new = {"largest": largest, "sizes": sizes, "reward": reward, "total": total}
        return start + bet - param, new


@dataclass(frozen=True)
class Mechanic(Rule):
    """Tunes the scale of another optimizer's steps u, by betting on what they gain.

        h = ⟨g + λs‖g‖/‖θ‖·θ, Δ⟩,   Δ ← Δ + u
        mᵢ ← max(βᵢmᵢ, |h|),   vᵢ ← βᵢ²vᵢ + h²,   rᵢ ← max(βᵢrᵢ - sᵢh, 0)
        sᵢ ← (s_init·mᵢ/n + rᵢ)/(√vᵢ + ε),   s = Σsᵢ,   θ ← θ₀ + sΔ

    The n rates βᵢ are 0.9, 0.99, 0.999, …: each is a better of its own. h has the Δ and s from before, and
    all sums are of all arrays. It is the last of a chain: what comes to it is the step of the others.

    weight_decay: λ >= 0: how much it is bet on θ to be drawn to 0. It is not the other optimizer's decay.
    eps: ε > 0, against division by zero.
    s_init: > 0, the first scale, about.
    num_betas: n, a whole number, 1 or more.
    """

    paper = Paper(
        "Cutkosky, Defazio & Mehta 2023", "https://arxiv.org/abs/2306.00144", "algorithm 1"
    )

    weight_decay: NonNegative = 1e-2
    eps: Positive = 1e-8
    s_init: Positive = 1e-8
    num_betas: int = 6
    slots = {"delta": Slot(), "start": Slot("param", constant=True)}
    needs_params = True
    needs_gradient = True
    takes_complex = False
    owns_rate = True
    learning_rate_field = None
    counts_steps = False

    def __post_init__(self):
        super().__post_init__()
        count = whole("num_betas", self.num_betas, 1, f" in {type(self).__name__}")
        object.__setattr__(self, "num_betas", count)

    @property
    def scalars(self):
        zeros = (0.0,) * self.num_betas
        return {"s": zeros, "r": zeros, "m": (1e-6,) * self.num_betas, "v": zeros}

    def measure(self, grad, slots, param, ctx):
        first, delta = ctx.gradient, slots["delta"]
        sizes = {"grad": norm_in_one_pass(first), "param": norm_in_one_pass(param)}
        return {"inner": inner(first, delta), "decay": inner(param, delta), **sizes}

    def advance(self, scalars, measured, ctx):
        s, r, m, v = (scalars[name] for name in "srmv")
        betas = 1 - 0.1 ** jnp.arange(1.0, self.num_betas + 1, dtype=s.dtype)
        relative = norm(measured["grad"]) / (norm(measured["param"]) + self.eps)
        decay = self.weight_decay * s.sum() * relative * measured["decay"].sum()
        h = clamped(measured["inner"].sum() + decay)
        m = jnp.maximum(betas * m, jnp.abs(h))
        v = saturated(betas**2 * v + h**2)
        r = jnp.maximum(betas * r - s * h, 0)
        s = (self.s_init / self.num_betas * m + r) / denominator(v, self.eps)
        return {"s": s, "r": r, "m": m, "v": v, "scale": s.sum()}

    def update(self, grad: Any, slots: Any, param: Any, ctx: Any) -> Any:
        delta = ctx.store("delta", slots["delta"] + grad)
        return slots["start"] + scaled(delta, ctx.scalars["scale"]) - param, {"delta": delta}


@composed(COCOB)
def cocob(
    learning_rate: Any = 1.0,
    alpha: Any = 100.0,
    eps: Any = 1e-8,
    weight_decay: Any = 0.0,
    mask: Any = None,
    *,
    storage: Any = None,
) -> Transformation:
    """Coin betting in each coordinate, without a learning rate.

        L ← max(L, |g|),   S ← S + |g|,   R ← max(R - g(θ-θ₀), 0),   C ← C - g
        θ ← θ + η(θ₀ + C/(L·max(S + L, αL))·(L + R) - θ)

    Weight decay is an L2 penalty, g + λθ: the next bet does not start from θ. Other than
    `optax.contrib.cocob`, whose learning rate multiplies the gradient and so changes nothing, η is the
    share of the way to the next bet that is gone.

    learning_rate: η >= 0: leave it at 1, or give a schedule that ends at 0.

    Example:
      >>> import adaptive_jax as aj
      >>> aj.cocob()
      cocob(learning_rate=1.0, alpha=100.0, eps=1e-08)
    """
    decay = decays_by(cocob, weight_decay, mask)
    rules = (*decay, COCOB(alpha, eps), LearningRate(learning_rate, flip_sign=False))
    return build(cocob, *rules, storage=storage)


@preconditioner(COCOB)
def scale_by_cocob(alpha: Any = 100.0, eps: Any = 1e-8, *, storage: Any = None) -> Transformation:
    """COCOB's step for a chain, with its sign. See `cocob`."""
    ...
