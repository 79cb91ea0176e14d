"""Machine unlearning: take the influence of some training samples out of a trained, sparse or dense network."""

from .api import unlearn
from .audit import Audit, audit
from .backdoor import Trigger, attack_success, poison
from .descent import FineTune, GradientAscent, L1Sparse, RandomLabels, Retrain
from .fisher import FisherForgetting
from .influence import Influence
from .membership import membership_share, privacy_attack
from .methods import METHODS, Method, make_method
from .pruned import PruneFirst
from .split import ForgetSplit
from .transfer import Transferred, transfer

__all__ = [
    "METHODS",
    "Audit",
    "FineTune",
    "FisherForgetting",
    "ForgetSplit",
    "GradientAscent",
    "Influence",
    "L1Sparse",
    "Method",
    "PruneFirst",
    "RandomLabels",
    "Retrain",
    "Transferred",
    "Trigger",
    "attack_success",
    "audit",
    "make_method",
    "membership_share",
    "poison",
    "privacy_attack",
    "transfer",
    "unlearn",
]
