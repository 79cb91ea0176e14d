"""Components of a transformer by the names of their modules: pre-norm layers x -> x + attention -> + feed-forward."""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import nn

from ...errors import ConfigError, unknown


@dataclass(frozen=True)
class Component:
    """One stream of a model; each pattern is matched against whole module names and has one group, the layer's number.

    Args:
        name: of the component. norm: the normalisation that reads the layer's input x. attention: the linear layer
            whose output attention adds to x. mlp: the feed-forward whose output is added after it.
        heads: attention heads, for cuts of heads; None where they are not cut.
    """

    name: str
    norm: str
    attention: str
    mlp: str
    heads: int | None = None


@dataclass(frozen=True)
class Layer:
    """The modules of one layer of a component, by name."""

    number: int
    norm: str
    attention: str
    mlp: str


# Ready patterns. Those of BAGEL follow the module names of its released code; the model itself was not run here.
PRESETS: dict[str, tuple[Component, ...]] = {
    "llama": (
        Component(
            "all",
            r".*layers\.(\d+)\.input_layernorm",
            r".*layers\.(\d+)\.self_attn\.o_proj",
            r".*layers\.(\d+)\.mlp",
        ),
    ),
    "gossamer": (  # models.language.Llama
        Component("all", r"blocks\.(\d+)\.norm1", r"blocks\.(\d+)\.attention\.out", r"blocks\.(\d+)\.mlp"),
    ),
    "bagel": (
        Component(
            "und",
            r".*layers\.(\d+)\.input_layernorm",
            r".*layers\.(\d+)\.self_attn\.o_proj",
            r".*layers\.(\d+)\.mlp",
            28,
        ),
        Component(
            "gen",
            r".*layers\.(\d+)\.input_layernorm_moe_gen",
            r".*layers\.(\d+)\.self_attn\.o_proj_moe_gen",
            r".*layers\.(\d+)\.mlp_moe_gen",
            28,
        ),
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


def check_disjoint(model: nn.Module, components: tuple[Component, ...]) -> None:
    """Raise ConfigError where a module belongs to two components."""
    owner: dict[str, str] = {}
    for component in components:
        for layer in find_layers(model, component):
            for name in (layer.norm, layer.attention, layer.mlp):
                if owner.setdefault(name, component.name) != component.name:
                    raise ConfigError(f"{name} belongs to the components {owner[name]!r} and {component.name!r}")


_PAIRS = (("gate_proj", "up_proj", "down_proj"), ("gate", "up", "down"), ("w1", "w3", "w2"))
_PLAIN = (("fc1", "fc2"), ("c_fc", "c_proj"), ("up_proj", "down_proj"), ("up", "down"), ("lin1", "lin2"))


def ffn_parts(mlp: nn.Module, name: str = "feed-forward") -> tuple[str | None, str, str]:
    """Names of (gate or None, up, down) inside a feed-forward.

    Raises:
        ConfigError: none of the known pairs of linear layers is there.
    """
    for gate, up, down in _PAIRS:
        if all(isinstance(getattr(mlp, part, None), nn.Linear) for part in (gate, up, down)):
            return gate, up, down
    for up, down in _PLAIN:
        if all(isinstance(getattr(mlp, part, None), nn.Linear) for part in (up, down)):
            return None, up, down
    have = [child for child, _ in mlp.named_children()]
    raise ConfigError(f"{name} has {have}; a feed-forward needs gate/up/down or fc1/fc2 linear layers")
