"""What the processes of test_distributed do."""

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

import torch
from training_toys import Stopping, recipe_of, toy_config, toy_data, toy_model

from gossamer.errors import GossamerError
from gossamer.runs.checkpoint import save_state
from gossamer.runs.signals import Interrupted
from gossamer.training import Classification, fit
from gossamer.training.distributed import check_equal, fingerprint, gather, largest, world
from gossamer.training.loop import open_run


def doubles(norm: bool = False, seed: int = 0):
    """Model and data in float64, so that only the order of sums differs."""
    data = toy_data()
    for part in (data.train, data.val, data.test):
        part.source.tensors = tuple(t.double() if t.is_floating_point() else t for t in part.source.tensors)
    return toy_model(norm=norm, dropout=0.0, seed=seed).double(), data


def compare(rank: int, folder: str) -> None:
    """Train several recipes, each process from other weights; keep weights and masks of each."""
    for recipe, norm in (("rigl", False), ("granet", True), ("set", False), ("sr_ste", False), ("snip", False)):
        model, data = doubles(norm, seed=0 if rank == 0 else 7)  # process 0 decides
        task, masks = Classification(model), {}
        config = toy_config(clip=0.5, accumulate=2, precision="no", device="cpu")
        result = fit(
            task,
            data,
            recipe_of(recipe),
            config,
            run=Path(folder) / recipe,
            on_start=lambda sparsifier, masks=masks: masks.update(sparsifier.entry_masks),
        )
        tree = {"model": dict(task.model.state_dict()), "masks": masks, "accuracy": result["test"]["accuracy"]}
        save_state(Path(folder) / f"{recipe}-{rank}", tree)


def helpers(rank: int, folder: str) -> None:
    """Small answers that both processes must agree on."""
    assert world() == 2
    assert largest(rank * 5) == 5
    assert gather({"rank": rank}) == [{"rank": 0}, {"rank": 1}]
    check_equal({"m": torch.ones(3, dtype=torch.bool)}, "masks")
    odd = {"m": torch.full((3,), bool(rank))}
    for name, attempt in (
        ("masks", lambda: check_equal(odd, "masks")),
        ("folder", lambda: open_run(Path(folder) / "rigl", {})),
    ):
        try:
            attempt()
        except GossamerError as error:
            (Path(folder) / f"{name}-{rank}").write_text(str(error))


def stop_and_resume(rank: int, folder: str) -> None:
    """A signal reaches the second process only; both stop, and both go on to the same bits."""
    whole = Classification(toy_model())
    fit(whole, toy_data(), recipe_of("rigl"), toy_config(device="cpu"))
    for resume in (False, True):
        task = Stopping(toy_model(), at=0 if resume or rank == 0 else 17, signum=signal.SIGTERM)
        with suppress(Interrupted):
            fit(task, toy_data(), recipe_of("rigl"), toy_config(device="cpu"), run=Path(folder) / "cut", resume=resume)
            assert resume, "no process was stopped"
    assert fingerprint(task.model.state_dict()) == fingerprint(whole.model.state_dict())


def everything(rank: int, folder: str) -> None:
    compare(rank, folder)
    helpers(rank, folder)
    stop_and_resume(rank, folder)


def die(rank: int, folder: str) -> None:
    if rank == 1:
        os._exit(3)
    time.sleep(100)
