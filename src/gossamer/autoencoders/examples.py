"""The tokens that activate each feature most, with the text around them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gossamer.autoencoders.hooks import activations
from gossamer.autoencoders.language import LanguageModel
from gossamer.autoencoders.metrics import density_histogram
from gossamer.autoencoders.model import SparseAutoencoder
from gossamer.errors import ConfigError, DataError


@dataclass(frozen=True)
class Example:
    """A piece of text: its tokens as text, the feature's activation at each, and which one was the top."""

    pieces: tuple[str, ...]
    values: tuple[float, ...]
    peak: int


@dataclass(frozen=True)
class Feature:
    """What is shown of a feature.

    Attributes:
        density: share of tokens that use it. largest: its largest activation.
        examples: of the most active blocks, the most active first. heights: histogram of its positive activations,
            from 0 to `largest`. promotes, demotes: tokens whose logits its direction raises and lowers most.
    """

    index: int
    density: float
    largest: float
    examples: tuple[Example, ...]
    heights: tuple[int, ...]
    promotes: tuple[str, ...] = ()
    demotes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Survey:
    """Features over a text: how dense all of them are, and the chosen ones in detail."""

    density: Tensor
    edges: list[float]
    counts: list[int]
    tokens: int
    features: tuple[Feature, ...]


@torch.no_grad()
def survey(
    model: LanguageModel,
    module: str,
    sae: SparseAutoencoder,
    blocks: Iterable[Tensor],
    *,
    features: Sequence[int] | int = 50,
    examples: int = 8,
    around: int = 40,
) -> Survey:
    """Find the top examples of features over blocks of tokens.

    Args:
        module: whose output the autoencoder codes. blocks: (B, length) int64.
        features: which, or how many: those alive whose ranks by density are evenly spread.
        examples: of a feature, from different blocks. around: tokens shown on either side of the peak.
    Raises:
        DataError: no text, or no feature active on it. ConfigError: a feature that does not exist.
    """
    held: list[Tensor] = []
    best = torch.zeros(examples, sae.features)
    place = torch.zeros(examples, sae.features, dtype=torch.int64)  # number of the block
    active, total, number = torch.zeros(sae.features, dtype=torch.float64), 0, 0
    for tokens in blocks:
        z = sae.encode(activations(model.module, tokens, module)[0], batch=False)
        held.append(tokens)
        active += (z > 0).sum((0, 1)).double()
        total += tokens.numel()
        numbers = torch.arange(number, number + len(tokens))[:, None].expand(-1, sae.features)
        best, keep = torch.cat([best, z.amax(1)]).topk(examples, dim=0)
        place = torch.cat([place, numbers]).gather(0, keep)
        number += len(tokens)
    if not total:
        raise DataError("there is no text to find examples in")
    density = (active / total).float()
    chosen = _chosen(density, features)
    shown = _details(model, module, sae, torch.cat(held), chosen, best, place, around)
    edges, counts = density_histogram(density)
    return Survey(density, edges, counts, total, tuple(shown(f, float(density[f])) for f in chosen))


def _chosen(density: Tensor, features: Sequence[int] | int) -> list[int]:
    if not isinstance(features, int):
        wrong = [f for f in features if not 0 <= f < len(density)]
        if wrong or not features:
            raise ConfigError(f"features {wrong or 'none'} chosen: the autoencoder has 0 ... {len(density) - 1}")
        return list(features)
    alive = density.argsort(descending=True)[: int((density > 0).sum())]
    if not len(alive) or features < 1:
        raise DataError("no feature is active on this text; check that model, module and autoencoder belong together")
    spread = torch.linspace(0, len(alive) - 1, min(features, len(alive))).round().long()
    return alive[spread].tolist()


class _details:  # noqa: N801 - a function with memory: each needed block is coded once
    """Examples, activation histogram and logits of one feature after another."""

    def __init__(
        self,
        model: LanguageModel,
        module: str,
        sae: SparseAutoencoder,
        tokens: Tensor,
        chosen: Sequence[int],
        best: Tensor,
        place: Tensor,
        around: int,
    ) -> None:
        self.model, self.sae, self.tokens, self.best, self.place, self.around = model, sae, tokens, best, place, around
        needed = sorted({int(place[i, f]) for f in chosen for i in range(len(best)) if best[i, f] > 0})
        self.row = {block: row for row, block in enumerate(needed)}
        self.column = {feature: column for column, feature in enumerate(chosen)}
        parts = [tokens[needed[start : start + 16]] for start in range(0, len(needed), 16)]
        coded = [sae.encode(activations(model.module, p, module)[0], batch=False)[..., list(chosen)] for p in parts]
        self.z = torch.cat(coded) if coded else torch.zeros(0, tokens.shape[1], len(chosen))

    def __call__(self, feature: int, density: float) -> Feature:
        z = self.z[..., self.column[feature]]
        rows = [i for i in range(len(self.best)) if self.best[i, feature] > 0]
        shown = tuple(self._example(z, int(self.place[i, feature])) for i in rows)
        largest = float(self.best[:, feature].max())
        positive = z[z > 0]
        heights = torch.histc(positive, 20, 0.0, max(largest, 1e-9)).long().tolist() if len(positive) else [0] * 20
        up, down = self._logits(feature)
        return Feature(feature, density, largest, shown, tuple(heights), up, down)

    def _example(self, z: Tensor, block: int) -> Example:
        values = z[self.row[block]]
        peak = int(values.argmax())
        start, end = max(0, peak - self.around), min(len(values), peak + self.around + 1)
        pieces = tuple(_text_of(self.model, int(t)) for t in self.tokens[block, start:end])
        return Example(pieces, tuple(values[start:end].tolist()), peak - start)

    def _logits(self, feature: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Tokens that the feature's direction promotes and demotes, straight through the output layer."""
        head = getattr(self.model.module, "head", None) or getattr(self.model.module, "lm_head", None)
        weight = getattr(head, "weight", None)
        if weight is None or weight.shape[1] != self.sae.d_out:
            return (), ()
        effect = weight.float() @ self.sae.decoder[feature]
        names = [[_text_of(self.model, int(t)) for t in (s * effect).topk(6).indices] for s in (1, -1)]
        return tuple(names[0]), tuple(names[1])


def _text_of(model: LanguageModel, token: int) -> str:
    """A token as text; its number in angle brackets where it is part of a letter or not printable."""
    text = model.tokenizer.decode([token])
    plain = text.replace("\n", "").replace("\t", "")
    return text if "\ufffd" not in text and (not plain or plain.isprintable()) else f"<{token}>"
