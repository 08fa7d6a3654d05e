"""One run, and many."""

from .checkpoint import restore_checkpoint as restore_checkpoint
from .checkpoint import save_checkpoint as save_checkpoint
from .run import METRICS as METRICS
from .run import History as History
from .run import LossScale as LossScale
from .run import TrainState as TrainState
from .run import fit as fit
from .run import train_step as train_step
