"""Keras's optimizers under Keras's names, exact to `keras.optimizers`; its saved runs go on here.

    keras.optimizers.Adam(learning_rate=1e-3, epsilon=1e-6, clipnorm=1.0)
    tx = aj.interop.keras.adam(learning_rate=1e-3, epsilon=1e-6, clipnorm=1.0)

`learning_rate` may be a schedule, a function of the number of steps taken; so may one of Keras's. A
function without arguments, which Keras calls in every step, is refused.
Weight decay is decoupled and multiplied by the learning rate; `mask` does what Keras's method
`exclude_from_weight_decay` does. What is not the optimizer's own arithmetic is refused by name:
`use_ema`, `loss_scale_factor` and `gradient_accumulation_steps`.

`import_state` takes over an optimizer's state, `export_state` hands it back. Neither needs Keras.
"""

from .optimizers import adadelta as adadelta
from .optimizers import adafactor as adafactor
from .optimizers import adagrad as adagrad
from .optimizers import adam as adam
from .optimizers import adamax as adamax
from .optimizers import adamw as adamw
from .optimizers import ftrl as ftrl
from .optimizers import lamb as lamb
from .optimizers import lion as lion
from .optimizers import muon as muon
from .optimizers import nadam as nadam
from .optimizers import rmsprop as rmsprop
from .optimizers import schedule_free_adamw as schedule_free_adamw
from .optimizers import sgd as sgd
from .runs import export_state as export_state
from .runs import import_state as import_state
