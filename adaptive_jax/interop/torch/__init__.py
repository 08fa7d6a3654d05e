"""PyTorch's optimizers under PyTorch's names, exact to `torch.optim`; its saved runs go on here.

An optimizer takes what its class in `torch.optim` takes, without the parameters:

    torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    tx = aj.interop.torch.adamw(lr=1e-3, weight_decay=0.1)

and `lr` may be a schedule, a function of the number of steps taken. Tensors of one element are numbers.
`foreach`, `fused`, `capturable`
and `differentiable` choose among PyTorch's implementations: they are accepted and have no effect.

`import_params` and `import_state` take over a model's weights and an optimizer's state;
`export_params` and `export_state` hand them back. Nothing but the two exports needs PyTorch.

Complex parameters: PyTorch treats them as pairs of real numbers, this library squares |g|.
"""

from .optimizers import adadelta as adadelta
from .optimizers import adafactor as adafactor
from .optimizers import adagrad as adagrad
from .optimizers import adam as adam
from .optimizers import adamax as adamax
from .optimizers import adamw as adamw
from .optimizers import asgd as asgd
from .optimizers import muon as muon
from .optimizers import nadam as nadam
from .optimizers import radam as radam
from .optimizers import rmsprop as rmsprop
from .optimizers import rprop as rprop
from .optimizers import sgd as sgd
from .runs import export_state as export_state
from .runs import import_state as import_state
from .weights import export_params as export_params
from .weights import import_params as import_params
from .weights import match as match
