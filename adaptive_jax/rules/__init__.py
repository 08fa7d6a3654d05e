"""The rules: the maths of one array. One family a file, from the simplest to the richest."""

# <catalogue> written by tests/write_catalogue.py
from .adagrad import AdaGrad as AdaGrad
from .adam import Adam as Adam
from .adam import AdaMax as AdaMax
from .adam import AMSGrad as AMSGrad
from .adam import NAdam as NAdam
from .adam import RAdam as RAdam
from .clipping import Clip as Clip
from .clipping import ClipByGlobalNorm as ClipByGlobalNorm
from .clipping import ClipByNorm as ClipByNorm
from .kronecker import Shampoo as Shampoo
from .kronecker import Soap as Soap
from .momentum import Trace as Trace
from .orthogonal import Muon as Muon
from .orthogonal import NorMuon as NorMuon
from .rms import AdaDelta as AdaDelta
from .rms import Rms as Rms
from .rms import StdDev as StdDev
from .scaling import Identity as Identity
from .scaling import LearningRate as LearningRate
from .scaling import Maximize as Maximize
from .scaling import WeightDecay as WeightDecay
from .sign import Lion as Lion
from .whitening import PsgdKron as PsgdKron

# </catalogue>
