"""The published systems, one module each; `PAPERS` is the one table."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from gossamer.errors import unknown

if TYPE_CHECKING:
    from gossamer.claims.protocol import Paper

# slug -> module that holds `PAPER`; a paper is in the table when its module is written
PAPERS: dict[str, str] = {
    "choice-saes": "gossamer.papers.choice_saes",
    "clip-moe": "gossamer.papers.clip_moe",
    "dass": "gossamer.papers.dass",
    "fast-sparse-convnets": "gossamer.papers.fast_sparse_convnets",
    "g2gnet": "gossamer.papers.g2gnet",
    "granet": "gossamer.papers.granet",
    "iterative-soft-shrinkage": "gossamer.papers.iterative_soft_shrinkage",
    "masksparsity": "gossamer.papers.masksparsity",
    "op-gfn": "gossamer.papers.op_gfn",
    "progressive-gradient-flow": "gossamer.papers.progressive_gradient_flow",
    "prosper": "gossamer.papers.prosper",
    "random-pruning": "gossamer.papers.random_pruning",
    "random-search-sparse-nas": "gossamer.papers.random_search_sparse_nas",
    "sparse-branch-prediction": "gossamer.papers.sparse_branch_prediction",
    "reprogram-lt": "gossamer.papers.reprogram_lt",
    "sparse-ift": "gossamer.papers.sparse_ift",
    "sparse-model-soups": "gossamer.papers.sparse_model_soups",
    "sparse-neural-dynamics": "gossamer.papers.sparse_neural_dynamics",
    "sparsebytenn": "gossamer.papers.sparsebytenn",
    "sparsity-constrained-ot": "gossamer.papers.sparsity_constrained_ot",
    "sphnet": "gossamer.papers.sphnet",
    "sr-ste": "gossamer.papers.sr_ste",
    "teddy": "gossamer.papers.teddy",
    "ten-lessons-sparseland": "gossamer.papers.ten_lessons_sparseland",
    "unified-multimodal-sparsity": "gossamer.papers.unified_multimodal_sparsity",
    "unlearn-sparse": "gossamer.papers.unlearn_sparse",
}


def load(slug: str) -> Paper:
    """The paper of that slug. Raises ConfigError with the nearest known slugs."""
    if slug not in PAPERS:
        raise unknown("paper", slug, PAPERS)
    paper: Paper = import_module(PAPERS[slug]).PAPER
    return paper
