"""What the two processes of test_distributed_recipes do."""

from pathlib import Path

import torch
from torch import nn

from gossamer.data import Batches
from gossamer.data.dataset import Dataset
from gossamer.errors import ConfigError
from gossamer.recipes import RECIPES, mask_sparsity, sms
from gossamer.runs.checkpoint import save_state
from gossamer.sparsify.channels import Choice, Ratio
from gossamer.training import Classification, OptimConfig, TrainConfig, fit, run_stages

TRAIN = TrainConfig(steps=6, device="cpu", optim=OptimConfig(name="nesterov"))
SINGLE = {
    "ste": {"n": 1, "m": 4},
    "sr_ste": {"n": 1, "m": 4, "lam": 0.1},
    "asp": {"n": 1, "m": 4},
    "mdgf_linear": {"n": 1, "m": 8},
    "mdgf_exponential": {"n": 1, "m": 8},
    "sdgf_stepwise": {"n": 1, "m": 8},
    "sdgf_geometric": {"n": 1, "m": 2},
    "iss_p": {"alpha": 0.8},
    "iss_h": {},
    "iss_r": {},
    "scratch": {},
}


def samples() -> Dataset:
    """Four classes of 16 numbers."""
    x = torch.randn(128, 16, generator=torch.Generator().manual_seed(0))
    batches = Batches([x, x[:, :4].argmax(1)], 64, shuffle=True)
    return Dataset(batches, batches, batches, 4, (16,))


def network(rank: int) -> nn.Module:
    """Other weights in each process; process 0 decides."""
    torch.manual_seed(0 if rank == 0 else 7)
    return nn.Sequential(nn.Linear(16, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 4))


def single(rank: int, folder: str) -> None:
    """Every method that is one training; keep weights and masks."""
    for name, options in SINGLE.items():
        task = Classification(network(rank))
        fit(task, samples(), RECIPES[name](**options), TRAIN)
        save_state(Path(folder) / f"{name}-{rank}", {"model": dict(task.model.state_dict()), "masks": task.masks})


def everything(rank: int, folder: str) -> None:
    single(rank, folder)
    staged(rank, folder)


def staged(rank: int, folder: str) -> None:
    """A soup and a slimmed network, each process from other weights; keep what comes out."""
    data = samples()
    example = torch.zeros(1, 16)
    half = Choice(rule=Ratio(0.5))
    for name, stages in {
        "soup": sms(0.8, 1, TRAIN, m=2, merge="greedy", recalibrate=data.train),
        "slim": mask_sparsity(TRAIN, example, finetune=TRAIN, lam=0.01, choice=half),
    }.items():
        task = Classification(network(rank))
        run_stages(stages, task, data, Path(folder) / name)
        save_state(Path(folder) / f"{name}-{rank}", {"model": dict(task.model.state_dict()), "masks": task.masks})
    try:
        run_stages(sms(0.8, 1, TRAIN, m=2, recalibrate=data.train, workers=2), task, data)
    except ConfigError as error:
        (Path(folder) / f"refused-{rank}").write_text(str(error))
