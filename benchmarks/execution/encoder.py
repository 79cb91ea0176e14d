"""A sentence encoder of the shape of all-MiniLM-L6 (BERT, 6 layers of 384), pruned, in module mode.

    python benchmarks/execution/encoder.py [--sparsity 70 80 90] [--tokens 128] [--threads 1] [--out encoder.md]

Random weights (the shape decides the time, not the training); the linear layers are pruned by magnitude,
unstructured or (b4) in blocks of 4 outputs. torch runs the model before the swap, ONNX Runtime and OpenVINO its export.
Every output is compared with torch's before it counts. Needs the extras `hf` and `export`.
"""

from __future__ import annotations

import argparse
import copy
import io
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

import gossamer
from gossamer.claims.dense_peers import Run, check, runtimes
from gossamer.engine import tune
from gossamer.kernels import native


class Encoder(nn.Module):
    """Token states averaged to a sentence vector of length 1."""

    def __init__(self) -> None:
        from transformers import BertConfig, BertModel

        super().__init__()
        config = BertConfig(
            hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536, vocab_size=30522
        )
        self.bert = BertModel(config, add_pooling_layer=False)

    def forward(self, ids: Tensor) -> Tensor:
        return nn.functional.normalize(self.bert(ids).last_hidden_state.mean(1), dim=-1)


def prune(model: nn.Module, sparsity: int, block: int) -> nn.Module:
    """A copy with the smallest blocks x 1 of every linear layer zeroed."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            scores = module.weight.data.unflatten(0, (-1, block)).abs().sum(1)
            limit = scores.flatten().kthvalue(round(sparsity / 100 * scores.numel())).values
            module.weight.data *= (scores > limit).repeat_interleave(block, 0)
    return model


def to_onnx(model: nn.Module, ids: Tensor) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model, (ids,), buffer, dynamo=False, input_names=["ids"], output_names=["y"], opset_version=17
        )
    return buffer.getvalue()


def peers(model: nn.Module, ids: Tensor, threads: int) -> dict[str, Run]:
    """The runtimes at hand on one model."""
    runs: dict[str, Run] = {"torch": lambda: model(ids)}
    half = copy.deepcopy(model).bfloat16()
    runs["torch bf16"] = lambda: half(ids)
    full, low = runtimes(to_onnx(model, ids), ids, threads, low=True)
    return runs | full | low


def compare(sparsity: int, block: int, tokens: int, threads: int) -> tuple[str, str]:
    """The head of the table, and a row."""
    torch.manual_seed(0)
    ids = torch.randint(0, 30000, (1, tokens))
    model = prune(Encoder().eval(), sparsity, block)
    runs, wanted = peers(model, ids, threads), model(ids)
    swapped = gossamer.compile(copy.deepcopy(model), ids, mode="modules")
    rounded = gossamer.compile(copy.deepcopy(model), ids, mode="modules", precision="bfloat16")
    runs |= {"ours bf16": lambda: rounded(ids), "ours": lambda: swapped(ids)}
    for name, run in runs.items():
        check(run, wanted.double(), name, 1e-1 if "bf16" in name else 1e-4)
    layers = [layer for layer in swapped.gossamer_report.layers if layer.runs != "torch"]
    kinds = sorted({layer.runs for layer in layers})
    times = tune.race(runs, threads, least=15)
    names = [name for name in runs if name != "ours"]
    head = f"| sparsity | {' | '.join(names)} | layers swapped |\n{'|---' * (2 + len(names))}|"
    ratios = " | ".join(f"{times[name] / times['ours']:.2f}" for name in names)
    label = f"{sparsity} %" + (" b4" if block > 1 else "")
    return head, f"| {label} | {ratios} | {len(layers)} of {len(swapped.gossamer_report.layers)}: {', '.join(kinds)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sparsity", type=int, nargs="+", default=[70, 80, 90, 95])
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    tune.RACE_SECONDS = 1.0
    lines = [
        f"Speed of the swapped model over each peer, {options.tokens} tokens, {options.threads} thread(s), "
        f"level `{native.level()}`.",
        "",
    ]
    print(lines[0])
    with torch.no_grad():
        for sparsity in options.sparsity:
            for block in (1, 4):
                head, row = compare(sparsity, block, options.tokens, options.threads)
                lines += [row] if len(lines) > 2 else [head, row]
                print(row, flush=True)
    if options.out:
        options.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
