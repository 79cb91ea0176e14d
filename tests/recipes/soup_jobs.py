"""What the processes of test_soups and test_slimming do."""

from pathlib import Path

import torch
from torch import nn

from gossamer.data import Batches
from gossamer.data.dataset import Dataset
from gossamer.errors import ConfigError
from gossamer.recipes import mask_sparsity, sms
from gossamer.runs.checkpoint import save_state
from gossamer.sparsify.channels import Choice, Ratio
from gossamer.training import Classification, OptimConfig, TrainConfig, run_stages

TRAIN = TrainConfig(steps=6, device="cpu", optim=OptimConfig(name="nesterov"))


def everything(rank: int, folder: str) -> None:
    """A soup and a slimmed network, each process from other weights; keep what comes out."""
    x = torch.randn(128, 16, generator=torch.Generator().manual_seed(0))
    batches = Batches([x, x[:, :4].argmax(1)], 64, shuffle=True)
    data = Dataset(batches, batches, batches, 4, (16,))
    example = torch.zeros(1, 16)
    half = Choice(rule=Ratio(0.5))
    for name, stages in {
        "soup": sms(0.8, 1, TRAIN, m=2, merge="greedy", recalibrate=data.train),
        "slim": mask_sparsity(TRAIN, example, finetune=TRAIN, lam=0.01, choice=half),
    }.items():
        torch.manual_seed(0 if rank == 0 else 7)  # process 0 decides
        task = Classification(nn.Sequential(nn.Linear(16, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 4)))
        run_stages(stages, task, data, Path(folder) / name)
        save_state(Path(folder) / f"{name}-{rank}", {"model": dict(task.model.state_dict()), "masks": task.masks})
    try:
        run_stages(sms(0.8, 1, TRAIN, m=2, recalibrate=data.train, workers=2), task, data)
    except ConfigError as error:
        (Path(folder) / f"refused-{rank}").write_text(str(error))
