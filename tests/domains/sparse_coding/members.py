"""What a process of a group does: learn from its share of the data, and write what came out."""

import numpy as np

from gossamer.domains.sparse_coding import models
from gossamer.training import distributed


def learn(rank, names, options, folder):
    for name in names:
        Y = np.load(f"{folder}/{name}.npy")
        cuts = [0, int(0.3 * len(Y)), len(Y)]  # uneven shares
        mine = Y[cuts[rank] : cuts[rank + 1]]
        coder = getattr(models, name)(**options, distributed=True).fit(mine)
        distributed.check_equal(coder.params_, "parameters")
        arrays = {key: value.numpy() for key, value in coder.params_.items()}
        arrays |= {"score": np.array(coder.score(mine)), "points": np.array(coder.history_["points"])}
        np.savez(f"{folder}/{name}-{rank}.npz", **arrays)
