"""An exponential moving average of the parameters, to evaluate with."""

import jax
from small_model import batches, init, loss

import adaptive_jax as aj

params = init(jax.random.key(0))
state = aj.TrainState.create(params, aj.adam(1e-1), average=aj.average(0.95))
state, history = aj.fit(state, aj.train_step(loss), batches(200))

(held_out,) = batches(1, 1024)
last, losses = loss(state.params, held_out), loss(state.eval_params(), held_out)
print(f"held-out loss {last:.4f} at the last parameters, {losses:.4f} at their average")
