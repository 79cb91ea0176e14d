"""Several processes: who am I, do we agree, and how to start some on one machine."""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from gossamer.errors import MaskError


def join(cpu: bool = False) -> None:
    """Enter the process group of a launcher (torchrun, accelerate launch), unless that was done already.

    Args:
        cpu: whether the group must work on CPU tensors though there are GPUs.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not (dist.is_available() and dist.is_initialized()):
        from accelerate import PartialState

        PartialState(cpu=cpu or not torch.cuda.is_available())


def active() -> bool:
    """Whether a process group of more than one process is running."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    """This process among `world()`; 0 where there is only one."""
    return dist.get_rank() if active() else 0


def world() -> int:
    """The number of processes."""
    return dist.get_world_size() if active() else 1


def largest(value: int, device: torch.device | str = "cpu") -> int:
    """The largest of the processes' values, so that all of them take the same turn."""
    if not active():
        return value
    tensor = torch.tensor(value, device=device)
    dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return int(tensor)


def gather(value: Any) -> list[Any]:
    """The JSON values or tensors of all processes, in the order of their ranks, on every process."""
    if not active():
        return [value]
    values: list[Any] = [None] * world()
    dist.all_gather_object(values, value)
    return values


def broadcast(tensors: Iterable[Tensor]) -> None:
    """Overwrite tensors with those of process 0: running statistics, of which each process has its own."""
    if active():
        for tensor in tensors:
            dist.broadcast(tensor.detach(), src=0)


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """A digest of names, shapes, types and bits."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def check_equal(tensors: Mapping[str, Tensor], what: str) -> None:
    """Check that all processes hold the same bits.

    Raises:
        MaskError: names the processes that differ from the first.
    """
    prints = gather(fingerprint(tensors)) if active() else []
    odd = [str(number) for number, value in enumerate(prints) if value != prints[0]]
    if odd:
        raise MaskError(f"the {what} of process {', '.join(odd)} differ from those of process 0")


def launch(work: Callable[..., None], processes: int, *arguments: Any) -> None:
    """Run `work(rank, *arguments)` in so many fresh processes that form a gloo group on this machine.

    If one dies, the others are ended and its error is raised.

    Args:
        work: a function at the top of a module, since the processes import it.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(_member, (work, processes, port, arguments), nprocs=processes)


def _member(number: int, work: Callable[..., None], processes: int, port: int, arguments: tuple) -> None:
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    values = (number, number, processes, processes, "127.0.0.1", port)
    os.environ.update({name: str(value) for name, value in zip(names, values, strict=True)})
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // processes))
    dist.init_process_group("gloo")
    try:
        work(number, *arguments)
    finally:
        dist.destroy_process_group()
