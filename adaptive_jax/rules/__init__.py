"""The rules: the maths of one array. One family a file, from the simplest to the richest."""

# <catalogue> written by tests/write_catalogue.py
from .adagrad import AdaGrad as AdaGrad
from .adam import Adam as Adam
from .adam import NAdam as NAdam
from .adam import RAdam as RAdam
from .adamax import AdaMax as AdaMax
from .adamax import AMSGrad as AMSGrad
from .adopt import ADOPT as ADOPT
from .belief import AdaBelief as AdaBelief
from .belief import Yogi as Yogi
from .cautious import Cautious as Cautious
from .cautious import Grams as Grams
from .clipping import Clip as Clip
from .clipping import ClipByGlobalNorm as ClipByGlobalNorm
from .clipping import ClipByNorm as ClipByNorm
from .cover import SM3 as SM3
from .curvature import AdaHessian as AdaHessian
from .curvature import Sophia as Sophia
from .differences import Adan as Adan
from .differences import Mars as Mars
from .differences import OptimisticGradient as OptimisticGradient
from .mixtures import AdEMAMix as AdEMAMix
from .mixtures import SimplifiedAdEMAMix as SimplifiedAdEMAMix
from .momentum import Trace as Trace
from .normalized import Fromage as Fromage
from .normalized import NovoGrad as NovoGrad
from .resilient import Rprop as Rprop
from .rms import AdaDelta as AdaDelta
from .rms import Rms as Rms
from .rms import StdDev as StdDev
from .scaling import Identity as Identity
from .scaling import LearningRate as LearningRate
from .scaling import Maximize as Maximize
from .scaling import WeightDecay as WeightDecay
from .sign import Lion as Lion
from .sign import Sign as Sign
from .sign import Signum as Signum

# </catalogue>
