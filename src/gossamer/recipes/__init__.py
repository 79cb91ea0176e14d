"""Published methods. A recipe is a value to hand to `Sparsifier`; procedures are lists of training stages.

RECIPES holds every name that a command line or a configuration may use.
"""

from collections.abc import Callable

from ..sparsify.recipe import Recipe
from .dynamic import itop, rigl, set_
from .ensembles import g2gnet
from .gradual import gmp, granet
from .nm import asp, sr_ste, ste
from .procedures import imp, train_prune_finetune
from .progressive import mdgf_exponential, mdgf_linear, sdgf_geometric, sdgf_stepwise
from .shrinkage import iss_h, iss_p, iss_r, scratch
from .slimming import mask_sparsity, network_slimming, prune_channels, slimming
from .soups import sms, soup_after
from .static import dense, grasp, magnitude, random, snip, synflow

RECIPES: dict[str, Callable[..., Recipe]] = {
    "dense": dense,
    "magnitude": magnitude,
    "random": random,
    "snip": snip,
    "grasp": grasp,
    "synflow": synflow,
    "gmp": gmp,
    "granet": granet,
    "set": set_,
    "rigl": rigl,
    "itop": itop,
    "g2gnet": g2gnet,
    "ste": ste,
    "sr_ste": sr_ste,
    "asp": asp,
    "mdgf_linear": mdgf_linear,
    "mdgf_exponential": mdgf_exponential,
    "sdgf_stepwise": sdgf_stepwise,
    "sdgf_geometric": sdgf_geometric,
    "iss_p": iss_p,
    "iss_h": iss_h,
    "iss_r": iss_r,
    "scratch": scratch,
}

__all__ = [
    "RECIPES",
    "asp",
    "dense",
    "g2gnet",
    "gmp",
    "granet",
    "grasp",
    "imp",
    "iss_h",
    "iss_p",
    "iss_r",
    "itop",
    "magnitude",
    "mask_sparsity",
    "mdgf_exponential",
    "mdgf_linear",
    "network_slimming",
    "prune_channels",
    "random",
    "rigl",
    "scratch",
    "sdgf_geometric",
    "sdgf_stepwise",
    "set_",
    "slimming",
    "sms",
    "snip",
    "soup_after",
    "sr_ste",
    "ste",
    "synflow",
    "train_prune_finetune",
]
