"""What compiling a trained network brings on this machine, as fields of its card."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

import gossamer
from gossamer.report.card import Executed, Latency, ReportCard
from gossamer.report.experiment import hardware


def compiled(
    card: ReportCard, model: nn.Module, example: Tensor, save: Path | None = None
) -> tuple[ReportCard, float | None]:
    """Compile `model` for one thread and add to its card the times of the plan, of its peers, and of every layer.

    Args:
        model: trained, in evaluation mode. example: one input, with its batch dimension.
        save: also write the plan there, a file that runs without torch.
    Returns:
        (card, speed-up over the fastest dense peer measured). Without compiled kernels there is neither a file nor a
        speed-up: the card as it was, and None.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        plan = gossamer.compile(model, example, threads=1)
        report = plan.report()
        if "plan" not in report.milliseconds:
            return card, None
        if save is not None:
            plan.save(save)
    finally:
        torch.set_num_threads(threads)
    latencies = [
        Latency(kernel=f"gossamer {name}" if name == "plan" else name, hardware=hardware(), milliseconds=time)
        for name, time in report.milliseconds.items()
    ]
    rows = [
        Executed(
            layer=row.layer,
            kind=row.kind,
            runs=row.runs,
            density=row.density,
            dense_us=row.dense_us,
            measured_us=row.measured_us,
            why=row.why,
        )
        for row in report.layers
    ]
    times = report.milliseconds
    peer = min(time for name, time in times.items() if name != "plan")
    return card.model_copy(update={"latencies": latencies, "execution": rows}), peer / times["plan"]
