"""Variational inference with NumPyro: the optimizer goes where optax's would.

pip install -e ".[recipes]"
"""

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoNormal

import adaptive_jax as aj

x = jnp.linspace(-1.0, 1.0, 100)
y = 2.0 * x - 1.0 + 0.3 * jax.random.normal(jax.random.key(0), x.shape)


def model(x, y):
    slope = numpyro.sample("slope", dist.Normal(0.0, 10.0))
    intercept = numpyro.sample("intercept", dist.Normal(0.0, 10.0))
    noise = numpyro.sample("noise", dist.HalfNormal(1.0))
    numpyro.sample("y", dist.Normal(slope * x + intercept, noise), obs=y)


guide = AutoNormal(model)
tx = aj.adam(aj.schedules.cosine_decay_schedule(0.05, 1000))
found = SVI(model, guide, tx, Trace_ELBO()).run(jax.random.key(1), 1000, x, y, progress_bar=False)

losses = found.losses
medians = guide.median(found.params)
print(", ".join(f"{name} {value:.2f}" for name, value in sorted(medians.items())))
