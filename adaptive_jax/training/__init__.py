"""One run, and many."""

from .callbacks import Callback as Callback
from .callbacks import EarlyStopping as EarlyStopping
from .callbacks import KeepBest as KeepBest
from .checkpoint import Checkpoints as Checkpoints
from .checkpoint import restore_checkpoint as restore_checkpoint
from .checkpoint import save_checkpoint as save_checkpoint
from .evaluation import Evaluation as Evaluation
from .history import History as History
from .loop import fit as fit
from .loss_scale import LossScale as LossScale
from .metrics import METRICS as METRICS
from .state import TrainState as TrainState
from .step import train_step as train_step
