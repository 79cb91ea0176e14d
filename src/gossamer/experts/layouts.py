"""Expert layers of transformers' own mixtures: read into ours, and an upcycled Llama or Mistral written as Mixtral."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from gossamer.errors import CheckpointError, ConfigError, MissingExtra
from gossamer.experts.layer import Experts, MoE, moe_layers
from gossamer.experts.routers import TopK
from gossamer.experts.upcycling import put

DENSE = ("LlamaForCausalLM", "MistralForCausalLM")
_TAKEN = ("model_type", "architectures", "gossamer_experts", "num_local_experts", "num_experts_per_tok")


def is_block(module: nn.Module) -> bool:
    """Whether a module is a mixture of the form of Mixtral, Qwen3-MoE and OLMoE: a gate and stacked gated experts."""
    weight = getattr(getattr(module, "gate", None), "weight", None)
    experts = getattr(module, "experts", None)
    stacked = all(getattr(getattr(experts, name, None), "dim", int)() == 3 for name in ("gate_up_proj", "down_proj"))
    alone = {name for name, _ in module.named_children()} == {"gate", "experts"}
    return isinstance(weight, nn.Parameter) and weight.dim() == 2 and stacked and alone


def adopt(model: nn.Module) -> nn.Module:
    """Put our layers, with the same weights, in the place of a model's own expert blocks; in place.

    So its routers can be looked at (`moe_report`), balanced and dispatched as those of an upcycled model.

    Raises:
        ConfigError: no block of a known form. CheckpointError: a block that computes something else than ours.
    """
    names = [name for name, module in model.named_modules() if name and is_block(module)]
    if not names:
        raise ConfigError(f"{type(model).__name__} has no expert blocks of the form of Mixtral, Qwen3-MoE or OLMoE")
    for name in names:
        block: Any = model.get_submodule(name)
        layer = put(model, name, _experts(block.experts), _router(block))
        with torch.no_grad():
            layer.gate.weight.copy_(block.gate.weight)
        _same(block, layer, name)
    return model


def _experts(theirs: Any) -> Experts:
    n, width, hidden = theirs.down_proj.shape
    made = Experts(n, width, hidden, theirs.act_fn, gated=True, bias=False).to(theirs.down_proj)
    with torch.no_grad():
        made.up.copy_(theirs.gate_up_proj)
        made.down.copy_(theirs.down_proj)
    return made


def _router(block: Any) -> TopK:
    k = getattr(block.gate, "top_k", None) or getattr(block, "top_k", None)
    return TopK(int(k or 0), renormalise=bool(getattr(block.gate, "norm_topk_prob", True)))


@torch.no_grad()
def _same(block: nn.Module, layer: MoE, name: str) -> None:
    x = torch.linspace(-1, 1, 3 * layer.gate.in_features).view(1, 3, -1).to(layer.gate.weight)
    one, two = block.eval()(x), layer.eval()(x)
    one = one[0] if isinstance(one, tuple) else one
    layer.train(block.training)
    tolerance = 1e-4 if one.dtype in (torch.float32, torch.float64) else 5e-2
    if not torch.allclose(one, two, atol=tolerance * float(one.abs().max().clamp(min=1)), rtol=tolerance):
        raise CheckpointError(
            f"{name} ({type(block).__name__}) computes something else than gated experts under a softmax gate: they "
            f"differ by {float((one - two).abs().max()):.3g}"
        )


def to_mixtral(model: Any) -> Any:
    """An upcycled Llama or Mistral as a `MixtralForCausalLM` that computes the same, for every runtime that knows it.

    Its `save_pretrained` writes the published layout of Mixtral. Weights are copied.

    Raises:
        ConfigError: another class, layers that stayed dense, a router that is not TopK(k) with weights that sum to 1
            and no capacity, experts with biases, or the model computes something else afterwards.
    """
    try:
        from transformers import MixtralConfig, MixtralForCausalLM
    except ImportError:
        raise MissingExtra("transformers", "hf") from None
    kind = type(model).__name__
    if kind not in DENSE:
        raise ConfigError(f"only {' and '.join(DENSE)} have the layers of Mixtral, not {kind}")
    layers = moe_layers(model)
    _check(model, layers)
    first = next(iter(layers.values()))
    settings = {name: value for name, value in model.config.to_dict().items() if name not in _TAKEN}
    settings |= {
        "intermediate_size": first.experts.down.shape[2],
        "num_local_experts": len(first.experts.up),
        "num_experts_per_tok": first.router.k,  # type: ignore[attr-defined]
    }
    made = MixtralForCausalLM(MixtralConfig(**settings)).to(model.dtype).eval()
    names = {"mlp.experts.up": "mlp.experts.gate_up_proj", "mlp.experts.down": "mlp.experts.down_proj"}
    state = {}
    for name, value in model.state_dict().items():
        ending = next((old for old in names if name.endswith(old)), None)
        state[name if ending is None else name.removesuffix(ending) + names[ending]] = value
    made.load_state_dict(state)
    _equal(model, made)
    return made


def _check(model: Any, layers: dict[str, MoE]) -> None:
    wanted = {f"model.layers.{n}.mlp" for n in range(model.config.num_hidden_layers)}
    if wanted != set(layers):
        raise ConfigError(
            f"Mixtral has experts in every layer, but {', '.join(sorted(wanted - set(layers))[:3])} is dense"
        )
    first = next(iter(layers.values()))
    for name, layer in layers.items():
        router, experts = layer.router, layer.experts
        fits = isinstance(router, TopK) and router.renormalise and router.capacity_factor is None
        if not fits or layer.selection_bias is not None or router != first.router:
            raise ConfigError(f"{name} has the router {router}: Mixtral has one TopK(k), dropless, without biases")
        if not experts.gated or experts.up_bias is not None or experts.up.shape != first.experts.up.shape:
            raise ConfigError(f"{name} has experts {experts}: Mixtral's are gated, without biases, all of one shape")


@torch.no_grad()
def _equal(model: Any, made: Any) -> None:
    ids = torch.arange(8).unsqueeze(0) % model.config.vocab_size
    training = model.training
    one, two = model.eval()(ids).logits.float(), made(ids).logits.float()
    model.train(training)
    tolerance = 1e-4 if model.dtype in (torch.float32, torch.float64) else 5e-2
    if not torch.allclose(one, two, atol=tolerance * float(one.abs().max().clamp(min=1)), rtol=tolerance):
        gap = float((one - two).abs().max())
        raise ConfigError(
            f"as Mixtral the model computes something else (by {gap:.3g}): its attention has biases or other norms"
        )
