"""The authors' own numbers, and their packages live: pip install -e ".[authors]"."""

from __future__ import annotations

import importlib
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adaptive_jax as aj

CURVATURE = np.array([[1, 2, 3], [4, 5, 6]], np.float32)
PARAMS = np.array([[1, -2, 0.5], [0.3, 1, -1]], np.float32)


def loss(params):
    return 0.5 * np.sum(CURVATURE * params**2)


def run(tx):
    """The parameters after each of ten steps on ½ΣA∘W²."""
    params, state, found, update = PARAMS, tx.init(jnp.asarray(PARAMS)), [], jax.jit(tx.update)
    for _ in range(10):
        updates, state = update(CURVATURE * params, state, params, value=np.float32(loss(params)))
        found.append(params := params + np.asarray(updates))
    return np.stack(found)


LOSSES = {
    "prodigy": (
        lambda: aj.prodigy(),
        "10.55494 10.554861 10.554716 10.554294 10.553161 "
        "10.550265 10.542827 10.523711 10.474641 10.349058",
    ),
    "dadapt_adamw": (
        lambda: aj.dadapt_adamw(),
        "10.55494 10.554861 10.554262 10.552568 10.544851 "
        "10.519216 10.424519 10.111036 9.107478 6.405274",
    ),
    "schedule_free_adamw": (
        lambda: aj.schedule_free_adamw(0.1),
        "8.789999 7.958 7.192432 6.491226 5.850688 5.266585 4.734619 4.250696 3.811031 3.41219",
    ),
    "momo": (
        lambda: aj.momo(),
        "3.226335 3.094707 2.965712 2.839688 2.716912 2.597598 2.481896 2.3699 2.261644 2.157109",
    ),
    "momo_adam": (
        lambda: aj.momo_adam(),
        "10.36905 10.185258 10.003658 9.824286 9.647175 "
        "9.472351 9.299846 9.129682 8.961882 8.796467",
    ),
    "dog": (
        lambda: aj.dog(),
        "10.554966 10.554943 10.554911 10.554865 10.554804 "
        "10.554724 10.554619 10.554483 10.554312 10.554095",
    ),
    "mechanize": (
        lambda: aj.mechanize(aj.sgd(1.0), weight_decay=0.0),
        "10.55492 10.554838 10.554673 10.554392 10.553925 "
        "10.553176 10.552004 10.550204 10.547489 10.543449",
    ),
}
"""Of the authors' PyTorch, in float32."""


@pytest.mark.parametrize("name", LOSSES)
def test_losses_of_the_authors(name):
    make, losses = LOSSES[name]
    found = [loss(params) for params in run(make())]
    np.testing.assert_allclose(found, np.array(losses.split(), float), rtol=5e-7)


def _made(package, name, *, of=None, **options):
    """From parameters of torch to the authors' optimizer."""

    def make(params):
        module = importlib.import_module(package)
        cls = getattr(module, name)
        if of is not None:
            cls = cls(
                getattr(importlib.import_module("torch").optim, of), s_decay=0.0, store_delta=True
            )
        return cls(params, **options)

    return package, make


LIVE = {
    "prodigy": (_made("prodigyopt", "Prodigy"), lambda: aj.prodigy()),
    "prodigy with its options": (
        _made(
            "prodigyopt", "Prodigy", d0=1e-3, use_bias_correction=True, growth_rate=1.5,
            weight_decay=0.1, safeguard_warmup=True, d_coef=2.0,
        ),
        lambda: aj.prodigy(
            estim_lr0=1e-3, bias_correction=True, growth_rate=1.5, weight_decay=0.1,
            safeguard_warmup=True, estim_lr_coef=2.0,
        ),
    ),
    "dadapt_adamw": (_made("dadaptation", "DAdaptAdam"), lambda: aj.dadapt_adamw()),
    "dadapt_adamw with its options": (
        _made(
            "dadaptation", "DAdaptAdam", d0=1e-3, use_bias_correction=True, growth_rate=1.5,
            weight_decay=0.1, decouple=True,
        ),
        lambda: aj.dadapt_adamw(
            estim_lr0=1e-3, bias_correction=True, growth_rate=1.5, weight_decay=0.1
        ),
    ),
    "schedule_free_adamw": (
        _made(
            "schedulefree", "AdamWScheduleFree", lr=0.1, warmup_steps=4, r=0.75, weight_decay=0.1,
            betas=(0.95, 0.9), foreach=False,
        ),
        lambda: aj.schedule_free_adamw(0.1, 4, 0.95, 0.9, weight_decay=0.1, r=0.75),
    ),
    "schedule_free_sgd": (
        _made("schedulefree", "SGDScheduleFree", lr=0.1, warmup_steps=4, weight_decay=0.1, foreach=False),
        lambda: aj.schedule_free_sgd(0.1, 4, weight_decay=0.1),
    ),
    "dog": (_made("dog", "DoG"), lambda: aj.dog()),
    "dog with its options": (
        _made("dog", "DoG", init_eta=0.01, weight_decay=0.1),
        lambda: aj.dog(init_step=("learning_rate", 0.01), weight_decay=0.1),
    ),
    "l_dog": (_made("dog", "LDoG", reps_rel=1e-2), lambda: aj.l_dog(init_step=("heuristic", 1e-2))),
    "momo": (_made("momo", "Momo"), lambda: aj.momo()),
    "momo with its options": (
        _made("momo", "Momo", lr=1.0, weight_decay=0.1, use_fstar=True, lb=-1),
        lambda: aj.momo(weight_decay=0.1, adapt_lower_bound=True, lower_bound=-1.0),
    ),
    "momo_adam": (
        _made("momo", "MomoAdam", lr=1.0, weight_decay=0.1, use_fstar=True, lb=-1),
        lambda: aj.momo_adam(1.0, weight_decay=0.1, adapt_lower_bound=True, lower_bound=-1.0),
    ),
    "mechanize": (
        _made("mechanic_pytorch", "mechanize", of="SGD", lr=1.0),
        lambda: aj.mechanize(aj.sgd(1.0), weight_decay=0.0),
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", LIVE)
def test_goes_where_the_authors_own_goes(name):
    (package, make), ours = LIVE[name]
    if not (importlib.util.find_spec("torch") and importlib.util.find_spec(package)):
        pytest.skip(f"{package} and torch: pip install -e '.[authors]'")
    torch = importlib.import_module("torch")
    weight = torch.nn.Parameter(torch.tensor(PARAMS))
    optimizer, theirs = make([weight]), []
    if package == "schedulefree":
        optimizer.train()
    for _ in range(10):
        optimizer.zero_grad()
        value = 0.5 * (torch.tensor(CURVATURE) * weight**2).sum()
        value.backward()
        optimizer.step(loss=value) if package == "momo" else optimizer.step()
        theirs.append(weight.detach().numpy().copy())
    np.testing.assert_allclose(run(ours()), np.stack(theirs), rtol=5e-7, atol=5e-7)
    if package == "schedulefree":
        optimizer.eval()
        tx, params = ours(), jnp.asarray(PARAMS)
        state = tx.init(params)
        for _ in range(10):
            updates, state = tx.update(CURVATURE * params, state, params)
            params = params + updates
        found = aj.eval_params(tx, params, state)
        np.testing.assert_allclose(found, weight.detach().numpy(), rtol=2e-6, atol=5e-7)
