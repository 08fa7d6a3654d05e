"""The rules: the maths of one array. One family a file, from the simplest to the richest."""

# <catalogue> written by tests/write_catalogue.py
from .adagrad import AdaGrad as AdaGrad
from .adam import Adam as Adam
from .adam import NAdam as NAdam
from .adam import RAdam as RAdam
from .adamax import AdaMax as AdaMax
from .adamax import AMSGrad as AMSGrad
from .averaging import Average as Average
from .averaging import Averaging as Averaging
from .averaging import LatestAverage as LatestAverage
from .averaging import Lookahead as Lookahead
from .averaging import PolynomialAverage as PolynomialAverage
from .averaging import TailAverage as TailAverage
from .betting import COCOB as COCOB
from .betting import Mechanic as Mechanic
from .clipping import Clip as Clip
from .clipping import ClipByGlobalNorm as ClipByGlobalNorm
from .clipping import ClipByNorm as ClipByNorm
from .distance import DoG as DoG
from .distance import DoWG as DoWG
from .momentum import Trace as Trace
from .parameter_free import DAdaptAdamW as DAdaptAdamW
from .parameter_free import Prodigy as Prodigy
from .polyak import MoMo as MoMo
from .polyak import MoMoAdam as MoMoAdam
from .polyak import Polyak as Polyak
from .polyak import StochasticPolyak as StochasticPolyak
from .rms import AdaDelta as AdaDelta
from .rms import Rms as Rms
from .rms import StdDev as StdDev
from .scaling import Identity as Identity
from .scaling import LearningRate as LearningRate
from .scaling import Maximize as Maximize
from .scaling import WeightDecay as WeightDecay
from .schedule_free import ScheduleFree as ScheduleFree
from .schedule_free import ScheduleFreeAdamW as ScheduleFreeAdamW
from .schedule_free import ScheduleFreeSteps as ScheduleFreeSteps
from .sign import Lion as Lion
from .sign import Sign as Sign
from .sign import Signum as Signum

# </catalogue>
