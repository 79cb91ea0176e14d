"""Training steps of a BatchTopK autoencoder: Gossamer against dictionary_learning and SAELens, in turns.

All three train the same autoencoder on the same batches with Adam, clipping and an auxiliary loss that has no dead
feature to revive. Printed: tokens per second relative to Gossamer's, and each one's loss at the end.

    python benchmarks/autoencoders/training.py [--d 256 --features 4096 --k 32 --batch 2048 --steps 20]

The rivals are imported where they are installed (`pip install --no-deps dictionary-learning sae-lens` and what they
import). dictionary_learning 0.1 imports nnsight and SAELens imports wandb on the way without using it here; empty
modules answer where these are absent.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import types
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from importlib.util import find_spec

import torch
from torch import Tensor

from gossamer.autoencoders import AuxK, MutualChoice, Plan, SparseAutoencoder
from gossamer.autoencoders.start import start_from
from gossamer.autoencoders.training import Autoencoding, _Data
from gossamer.data import Batches
from gossamer.sparsify.recipe import Recipe
from gossamer.training.config import OptimConfig, TrainConfig
from gossamer.training.loop import Loop

LR = 3e-4


def _stand_in(name: str, **names: object) -> None:
    if find_spec(name) is None:
        module = types.ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        vars(module).update(names)
        sys.modules[name] = module


def ours(x: Tensor, args: argparse.Namespace) -> Callable[[int], float]:
    sae = SparseAutoencoder(args.d, args.features, MutualChoice(args.k))
    data = Batches([x], args.batch)
    start_from(sae, data.batch(0), "median", normalise=False)
    optim = OptimConfig(name="adam", lr=LR, weight_decay=0.0, schedule="constant")
    config = TrainConfig(steps=10**6, optim=optim, clip=1.0, device="cpu")
    loop = Loop(Autoencoding(sae, Plan(AuxK()), config), _Data(data), Recipe(), config)
    return lambda step: loop.advance()


def dictionary_learning(x: Tensor, args: argparse.Namespace) -> Callable[[int], float]:
    _stand_in("nnsight", LanguageModel=object)
    from dictionary_learning.trainers import BatchTopKTrainer

    options = {"layer": 0, "lm_name": "none", "lr": LR, "warmup_steps": 0, "device": "cpu"}
    trainer = BatchTopKTrainer(10**6, args.d, args.features, args.k, threshold_start_step=0, **options)
    data = Batches([x], args.batch)
    return lambda step: trainer.update(step, data.batch(step)[0])


def sae_lens(x: Tensor, args: argparse.Namespace) -> Callable[[int], float]:
    _stand_in("wandb")
    from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    data = Batches([x], args.batch)
    sae = BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(d_in=args.d, d_sae=args.features, k=args.k))
    config = SAETrainerConfig(total_training_samples=10**9, train_batch_size_samples=args.batch, lr=LR, lr_end=LR)
    trainer = SAETrainer(config, sae, iter(()))

    def advance(step: int) -> float:
        out = trainer._train_step(sae, data.batch(step)[0])
        trainer.n_training_steps += 1
        return float(out.losses["mse_loss"].detach())

    return advance


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("d", 256), ("features", 4096), ("k", 32), ("batch", 2048), ("steps", 20)):
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    truth = torch.nn.functional.normalize(torch.randn(2 * args.d, args.d, generator=generator), dim=1)
    active = torch.rand(8 * args.batch, 2 * args.d, generator=generator) < 0.05
    x = active.float() @ truth
    runs: dict[str, Callable[[int], float]] = {}
    for make in (ours, dictionary_learning, sae_lens):
        try:
            runs[make.__name__] = make(x, args)
        except ImportError as error:
            print(f"{make.__name__}: not installed ({error})")
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    losses = dict.fromkeys(runs, 0.0)
    for step in range(args.steps + 2):
        for name, run in runs.items():
            started = time.process_time()
            losses[name] = run(step)
            seconds[name].append(time.process_time() - started)
    own = seconds["ours"][2:]
    for name, values in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(own, values[2:], strict=True))
        print(f"{name:20} tokens/s relative to ours {ratio:.2f}   loss {losses[name]:.4f}")


if __name__ == "__main__":
    main()
