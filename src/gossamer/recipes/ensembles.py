"""G2GNet: groups of units that listen to a few groups of the layer before, and edges that move by Hebb's rule."""

from __future__ import annotations

from ..errors import unknown
from ..maths.schedules import Cosine, Every, Steps
from ..sparsify.ensembles import GroupToGroup, WithinGroups, fan_in
from ..sparsify.groups import Select
from ..sparsify.patterns import Unstructured
from ..sparsify.recipe import Recipe
from ..sparsify.scores import Gradient, Hebbian, Magnitude, Random, Score
from ..sparsify.updates import PruneGrow, SetTo

GROWTH: dict[str, Score] = {"hebbian": Hebbian(), "random": Random(), "gradient": Gradient()}


def g2gnet(
    sparsity: float = 0.75,
    groups: int = 8,
    growth: str | None = "hebbian",
    *,
    within: bool = False,
    p_in: float = 1.0,
    p_out: float = 0.0,
    every: int | float = 100,
    rate: float = 0.3,
    stop: float = 0.75,
    identity: bool = False,
    select: Select = Select(last_dense=True),
) -> Recipe:
    """Group-to-group masks at the start; then the smallest weights go and correlated units connect.

    Args:
        sparsity: share of zeros of a masked layer; 0.75 is the paper's highest. groups: 8 is inferred.
        growth: "hebbian", "random" (SET), "gradient" (RigL), or None: the mask stays.
        within: grow between connected groups only; that needs room, so give p_in < 1.
        p_in, p_out: shares of edges inside and outside connected pairs; then sparsity is that of the group graph.
        every, rate, stop: of the moves, as in SET and RigL. identity: group i always listens to group i.
        select: the classifier stays dense.
    Source: Konstantaropoulos et al. 2025; the numbers are reconstructions (see sparsify/ensembles.py).
    """
    shape = GroupToGroup(groups, fan_in(1 - sparsity, groups), p_in=p_in, p_out=p_out, identity=identity)
    start = SetTo(Random())
    if growth is None:
        return Recipe("g2gnet-static", select, shape, updates=(start,), scale_init=True)
    if growth not in GROWTH:
        raise unknown("growth", growth, GROWTH)
    score = GROWTH[growth]
    grow = WithinGroups(score, groups) if within else score
    move = PruneGrow(Cosine(rate, end=stop), Magnitude(), grow, Every(every, stop=stop))  # type: ignore[arg-type]
    loose = Steps(((0.0, shape), (1e-6, Unstructured())))  # groups at the start, single edges from then on
    return Recipe(f"g2gnet-{growth}", select, loose, updates=(start, move), scale_init=True)
