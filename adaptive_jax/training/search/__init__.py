"""Many runs: sweeps, comparisons, and the settings to try."""

from .compared import Comparison as Comparison
from .comparison import compare as compare
from .confirmation import Confirmed as Confirmed
from .differences import Difference as Difference
from .differences import Differences as Differences
from .distributions import Choice as Choice
from .distributions import Distribution as Distribution
from .distributions import LogUniform as LogUniform
from .distributions import Uniform as Uniform
from .distributions import draw as draw
from .finalists import Finalist as Finalist
from .finder import LearningRates as LearningRates
from .finder import find_learning_rate as find_learning_rate
from .result import Sweep as Sweep
from .sweeps import sweep as sweep
from .tuning import Tuned as Tuned
from .tuning import tune as tune
