"""Problems to compare optimizers on: functions of two variables, quadratics, models of real data."""

from .data import digits as digits
from .data import logistic_regression as logistic_regression
from .functions import TEST_FUNCTIONS as TEST_FUNCTIONS
from .functions import TestFunction as TestFunction
from .functions import ackley as ackley
from .functions import beale as beale
from .functions import booth as booth
from .functions import branin as branin
from .functions import himmelblau as himmelblau
from .functions import rastrigin as rastrigin
from .functions import rosenbrock as rosenbrock
from .functions import styblinski_tang as styblinski_tang
from .images import autoencoder as autoencoder
from .images import convolutional_network as convolutional_network
from .images import residual_network as residual_network
from .language import language_model as language_model
from .policies import PolicyGradient as PolicyGradient
from .policies import policy_gradient as policy_gradient
from .problem import Problem as Problem
from .quadratics import MatrixRegression as MatrixRegression
from .quadratics import QuadraticDeep as QuadraticDeep
from .quadratics import matrix_regression as matrix_regression
from .quadratics import quadratic as quadratic
from .quadratics import quadratic_deep as quadratic_deep
