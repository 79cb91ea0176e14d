"""Components of a transformer by the names of their modules: layers x -> r = x + attention -> y = r + feed-forward."""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import Tensor, nn

from ...errors import ConfigError, unknown


@dataclass(frozen=True)
class Component:
    """One stream of a model; each pattern is matched against whole module names and has one group, the layer's number.

    Args:
        name: of the component. norm: the module that reads the layer's input x. attention: the linear layer
            whose output attention adds to x. mlp: the feed-forward whose output is added after it.
        heads: attention heads, for cuts of heads; None where they are not cut.
        post: the norms come after the additions, as in BERT: `mlp` then matches the whole layer, and the modules around
            `attention` and around the feed-forward's last linear layer take (h, residual) and give norm(h + residual).
    """

    name: str
    norm: str
    attention: str
    mlp: str
    heads: int | None = None
    post: bool = False


@dataclass(frozen=True)
class Layer:
    """The modules of one layer of a component, by name."""

    number: int
    norm: str
    attention: str
    mlp: str


def _numbered(
    name: str, layers: str, norm: str, attention: str, mlp: str = "mlp", heads: int | None = None
) -> Component:
    """A pre-norm component whose modules lie in numbered layers."""
    first, second, third = (layers + r"\.(\d+)\." + part.replace(".", r"\.") for part in (norm, attention, mlp))
    return Component(name, first, second, third, heads)


# Ready patterns by the form of the layers. Those of BAGEL follow the module names of its released code; it was not run
# here.
PRESETS: dict[str, tuple[Component, ...]] = {
    "llama": (_numbered("all", r".*layers", "input_layernorm", "self_attn.o_proj"),),  # Mistral, Qwen, Gemma 1, ...
    "gpt2": (_numbered("all", r"(?:.*\.)?h", "ln_1", "attn.c_proj"),),
    "neox": (_numbered("all", r".*layers", "input_layernorm", "attention.dense"),),  # Pythia
    "gptj": (_numbered("all", r"(?:.*\.)?h", "ln_1", "attn.out_proj"),),
    "falcon": (_numbered("all", r"(?:.*\.)?h", "input_layernorm", "self_attention.dense"),),
    "opt": (_numbered("all", r".*layers", "self_attn_layer_norm", "self_attn.out_proj", "fc1"),),  # once gathered
    "vit": (_numbered("all", r".*layers", "layernorm_before", "attention.o_proj"),),
    "bert": (  # RoBERTa, too
        Component(
            "all",
            r".*encoder\.layer\.(\d+)\.attention\.self",
            r".*encoder\.layer\.(\d+)\.attention\.output\.dense",
            r".*encoder\.layer\.(\d+)",
            post=True,
        ),
    ),
    "clip": tuple(  # SigLIP, too
        _numbered(tower, rf"(?:.*\.)?{tower}_model\.encoder\.layers", "layer_norm1", "self_attn.out_proj")
        for tower in ("vision", "text")
    ),
    "gossamer": (_numbered("all", "blocks", "norm1", "attention.out"),),  # models.language.Llama
    "bagel": (
        _numbered("und", r".*layers", "input_layernorm", "self_attn.o_proj", "mlp", 28),
        _numbered("gen", r".*layers", "input_layernorm_moe_gen", "self_attn.o_proj_moe_gen", "mlp_moe_gen", 28),
    ),
}


def find_layers(model: nn.Module, component: Component) -> list[Layer]:
    """The layers of a component in order.

    Raises:
        ConfigError: a pattern matches nothing, or layers whose numbers differ between the patterns.
    """
    found: dict[str, dict[int, str]] = {}
    for part in ("norm", "attention", "mlp"):
        pattern = re.compile(getattr(component, part))
        if pattern.groups != 1:
            raise ConfigError(f"{part} of component {component.name!r} needs one group, the layer: {pattern.pattern!r}")
        hits = {int(m[1]): name for name, _ in model.named_modules() if (m := pattern.fullmatch(name))}
        if not hits:
            names = [re.sub(r"(?<=\.)\d+(?=\.)", "0", name) for name, _ in model.named_modules() if name]
            raise unknown(f"{part} of component {component.name!r}", pattern.pattern, dict.fromkeys(names))
        found[part] = hits
    numbers = {part: sorted(hits) for part, hits in found.items()}
    if len({tuple(n) for n in numbers.values()}) > 1:
        raise ConfigError(f"component {component.name!r}: the patterns find different layers: {numbers}")
    return [Layer(n, found["norm"][n], found["attention"][n], found["mlp"][n]) for n in numbers["norm"]]


def fits(model: nn.Module, component: Component) -> bool:
    """Whether a model has the layers of a component, with feed-forwards of a known form."""
    try:
        layers = find_layers(model, component)
        ffn_parts(model.get_submodule(layers[0].mlp))
    except ConfigError:
        return False
    return is_linear(model.get_submodule(layers[0].attention))


def check_disjoint(model: nn.Module, components: tuple[Component, ...]) -> None:
    """Raise ConfigError where a module belongs to two components."""
    owner: dict[str, str] = {}
    for component in components:
        for layer in find_layers(model, component):
            for name in (layer.norm, layer.attention, layer.mlp):
                if owner.setdefault(name, component.name) != component.name:
                    raise ConfigError(f"{name} belongs to the components {owner[name]!r} and {component.name!r}")


_GATED = (("gate_proj", "up_proj", "down_proj"), ("gate", "up", "down"), ("w1", "w3", "w2"))
_PLAIN = (
    ("fc1", "fc2"),
    ("c_fc", "c_proj"),
    ("up_proj", "down_proj"),
    ("up", "down"),
    ("lin1", "lin2"),
    ("fc_in", "fc_out"),
    ("dense_h_to_4h", "dense_4h_to_h"),
    ("intermediate.dense", "output.dense"),
)


def ffn_parts(mlp: nn.Module, name: str = "feed-forward") -> tuple[str | None, str, str]:
    """Names of (gate or None, up, down) inside a feed-forward.

    Raises:
        ConfigError: none of the known pairs of linear layers is there.
    """
    modules = dict(mlp.named_modules())
    for gate, up, down in _GATED:
        if all(is_linear(modules.get(part)) for part in (gate, up, down)):
            return gate, up, down
    for up, down in _PLAIN:
        if all(is_linear(modules.get(part)) for part in (up, down)):
            return None, up, down
    have = [child for child, _ in mlp.named_children()]
    raise ConfigError(f"{name} has {have}; a feed-forward needs gate/up/down or fc1/fc2 linear layers")


def is_linear(module: nn.Module | None) -> bool:
    """`Linear`, or transformers' `Conv1D` of GPT-2, which is one with its weight transposed."""
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def weight_of(layer: nn.Module) -> Tensor:
    """(out, in), a view of a linear layer's weight."""
    weight: Tensor = layer.weight  # type: ignore[assignment]
    return weight if isinstance(layer, nn.Linear) else weight.T
