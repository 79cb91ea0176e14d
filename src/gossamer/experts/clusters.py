"""Clusters of a paired data set, and batches that each come out of one cluster."""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.errors import ConfigError, DataError


def cluster(first: Tensor, second: Tensor, clusters: int = 3, seed: int = 0) -> Tensor:
    """Cluster numbers (n,) in 0 .. clusters^2 - 1: second * clusters + first, by mini-batch k-means on each side.

    Args:
        first: images, second: texts; embeddings (n, d).
    Raises:
        ConfigError: more clusters than samples, or less than one.
    """
    from sklearn.cluster import MiniBatchKMeans

    if not 1 <= clusters <= len(first):
        raise ConfigError(f"{clusters} clusters of {len(first)} samples: take from 1 to the number of samples")

    def labels(side: Tensor) -> Tensor:
        means = MiniBatchKMeans(
            clusters, batch_size=min(len(side), 1_000_000), max_iter=500, tol=1e-5, n_init="auto", random_state=seed
        )
        return torch.from_numpy(means.fit_predict(side.numpy())).long()

    return labels(second) * clusters + labels(first)


def accumulate(labels: Tensor, stage: Tensor, kinds: int = 9) -> Tensor:
    """labels * kinds + stage: pairs are in one cluster only if they were in every stage. Injective."""
    return labels * kinds + stage


def cluster_batches(labels: Tensor, size: int, *, seed: int = 0, drop_small: bool = True) -> list[Tensor]:
    """Index batches of one epoch, each out of one cluster, taking turns between clusters.

    Args:
        labels: (n,) cluster of each sample. size: samples of a batch.
        drop_small: leave out what does not fill a batch, as the authors do; else the rest of every cluster is a
            smaller batch, and every sample appears once.
    Raises:
        DataError: no cluster fills a batch.
    """
    generator = torch.Generator().manual_seed(seed)
    queues = []
    sizes = []
    for value in labels.unique():
        index = (labels == value).nonzero().squeeze(-1)
        index = index[torch.randperm(len(index), generator=generator)]
        sizes.append(len(index))
        batches = list(index.split(size))
        queues.append([part for part in batches if len(part) == size] if drop_small else batches)
    longest = max(map(len, queues))
    if longest == 0:
        raise DataError(
            f"no cluster has {size} samples; largest has {max(sizes)}: take a smaller batch, fewer clusters or "
            "stages, or drop_small=False"
        )
    return [queue[turn] for turn in range(longest) for queue in queues if turn < len(queue)]
