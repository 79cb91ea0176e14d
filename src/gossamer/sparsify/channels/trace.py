"""Following channels through a network: one run of the model, in which every tensor carries labels of its channels.

A label tensor broadcasts to its tensor: a convolution's output has labels (1, C, 1, 1). Operators that move data
move labels in the same way; operators that combine tensors unite labels; what is not known freezes them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .labels import FIXED, Labels, compress, fixed, is_fixed

aten = torch.ops.aten


class Trace(TorchDispatchMode):
    """Runs under a forward pass and fills `dims`, `roles`, `followed`.

    Args:
        names: id of a parameter or buffer -> its name.

    dims: (name, dim) -> labels of the positions along this dimension.
    roles: (name, dim) -> "out", "in", "depthwise", "scale", "shift", "statistic" or "factor".
    followed: weight of a convolution or linear layer -> running mean of the normalisation that alone reads its output.
    """

    def __init__(self, names: Mapping[int, str]) -> None:
        super().__init__()
        self.names = dict(names)
        self.sets = Labels()
        self.dims: dict[tuple[str, int], Tensor] = {}
        self.roles: dict[tuple[str, int], str] = {}
        self.labels: dict[int, Tensor] = {}
        self.turned: dict[int, str] = {}
        self.alive: list[Any] = []
        self.uses: Counter[int] = Counter()
        self.sources: dict[int, str] = {}
        self._followed: dict[str, tuple[int, str]] = {}

    @property
    def followed(self) -> dict[str, str]:
        return {weight: mean for weight, (output, mean) in self._followed.items() if self.uses[output] == 1}

    # ------------------------------------------------------------------ labels of tensors and parameters

    def along(self, name: str, dim: int, size: int, role: str) -> Tensor:
        """Labels of one dimension of a parameter."""
        key = (name, dim)
        if key not in self.dims:
            self.dims[key] = self.sets.fresh(size)
        self.roles.setdefault(key, role)
        return self.dims[key]

    def get(self, x: Tensor) -> Tensor:
        """The label tensor of `x`."""
        if id(x) in self.labels:
            return self.labels[id(x)]
        wide = [d for d, n in enumerate(x.shape) if n > 1]
        if id(x) in self.names and len(wide) == 1:
            labels = self.along(self.names[id(x)], wide[0], x.shape[wide[0]], "factor")
            return labels.view([-1 if d == wide[0] else 1 for d in range(x.ndim)])
        return fixed(x.ndim)

    def put(self, x: Tensor, label: Tensor) -> None:
        self.labels[id(x)] = compress(label)
        self.alive.append(x)

    def channels(self, x: Tensor, dim: int) -> Tensor:
        """Labels along `dim`; where labels vary along others too, all are frozen."""
        label, dim = self.get(x), dim % x.ndim
        if any(n > 1 for d, n in enumerate(label.shape) if d != dim):
            self.sets.freeze(label, "a layer reads it in an order that mixes channels with positions")
            return torch.full((x.shape[dim],), FIXED)
        return label.flatten().expand(x.shape[dim]) if label.shape[dim] == 1 else label.flatten()

    def on(self, x: Tensor, dim: int, labels: Tensor) -> None:
        """Let `x` carry 1-d `labels` along `dim`."""
        self.put(x, labels.view([-1 if d == dim % x.ndim else 1 for d in range(x.ndim)]))

    # ------------------------------------------------------------------ running

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.split("::")[1]
        rule = RULES.get(name) or RULES.get(name.removesuffix("_"))
        if rule is None:
            with self:
                whole = func.decompose(*args, **kwargs)
            if whole is not NotImplemented:
                return whole
        out = func(*args, **kwargs)
        inputs = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        self.uses.update(id(x) for x in inputs)
        self.alive.append((inputs, out))
        (rule or _opaque)(self, func, args, kwargs, out)
        return out


Rule = Callable[[Trace, Any, tuple[Any, ...], dict[str, Any], Any], None]


def _opaque(t: Trace, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """An operator that is not known: nothing that enters may shrink."""
    for x in tree_leaves((args, kwargs)):
        if isinstance(x, Tensor):
            t.sets.freeze(t.get(x), f"the operator {func._schema.name} is not understood")
    for x in tree_leaves(out):
        if isinstance(x, Tensor):
            t.put(x, fixed(x.ndim))


def _nothing(t: Trace, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """An operator that makes a constant."""


def _pointwise(t: Trace, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    result = first = tree_leaves(out)[0]
    t.put(result, _meet(t, tensors, first.ndim))


def _meet(t: Trace, tensors: list[Tensor], ndim: int) -> Tensor:
    """Unite the labels of tensors that broadcast against each other."""

    def wide(shape: Any) -> list[int]:
        return [1] * (ndim - len(shape)) + list(shape)

    found = [(t.get(x), x) for x in tensors]
    labelled = [label.reshape(wide(label.shape)) for label, _ in found if not is_fixed(label)]
    if not labelled:
        return fixed(ndim)
    total = labelled[0]
    for label in labelled[1:]:
        t.sets.unite(total, label)
        total = torch.maximum(*torch.broadcast_tensors(total, label))
    for label, x in found:
        if is_fixed(label):
            _beside_constant(t, total, wide(x.shape))
    return total


def _beside_constant(t: Trace, label: Tensor, shape: list[int]) -> None:
    """A tensor without channels spans some dimensions: along these, labels must stay together."""
    varying = [d for d, n in enumerate(label.shape) if n > 1]
    spanned = [d for d in varying if shape[d] > 1]
    if varying and spanned == varying:
        t.sets.freeze(label, "it meets a constant or an activation that cannot shrink")
    for d in spanned:
        t.sets.unite(label, label.narrow(d, 0, 1))


def _convolution(t: Trace, func: Any, args: Any, kwargs: Any, out: Tensor) -> None:
    x, weight, bias, transposed, groups = args[0], args[1], args[2], args[6], args[8]
    name = t.names.get(id(weight))
    if name is None:
        return _opaque(t, func, args, kwargs, out)
    labels = t.channels(x, 1)
    if groups == 1:
        taken, given = (0, 1) if transposed else (1, 0)
        t.sets.unite(t.along(name, taken, weight.shape[taken], "in"), labels, "it reads the network's input")
        made = t.along(name, given, weight.shape[given], "out")
    elif weight.shape[1] == 1 and groups == x.shape[1] and not transposed:
        made = t.along(name, 0, len(weight), "depthwise")
        t.sets.unite(made, labels.repeat_interleave(len(weight) // groups), "it reads the network's input")
    else:
        made = t.along(name, 0, len(weight), "out") if not transposed else torch.full((out.shape[1],), FIXED)
        for touched in (labels, made):
            t.sets.freeze(touched, f"{name} is a convolution in {groups} groups")
    return _finish(t, name, bias, made, 1, out)


def _finish(t: Trace, name: str, bias: Tensor | None, made: Tensor, dim: int, out: Tensor) -> None:
    """Bias and output of a layer."""
    if bias is not None and id(bias) in t.names:
        t.sets.unite(t.along(t.names[id(bias)], 0, len(bias), "shift"), made)
    t.on(out, dim, made)
    t.sources[id(out)] = name


def _matmul(t: Trace, func: Any, args: Any, kwargs: Any, out: Tensor) -> None:
    """x (rows, in) times a weight (in, out) or the transpose of one, with or without bias."""
    bias, x, weight = (None, *args) if len(args) == 2 else args
    plain, turned = t.names.get(id(weight)), t.turned.get(id(weight))
    name = turned or plain
    if name is None or (bias is not None and id(bias) not in t.names):
        return _opaque(t, func, args, kwargs, out)
    taken, given = (1, 0) if turned else (0, 1)
    t.sets.unite(t.along(name, taken, weight.shape[0], "in"), t.channels(x, -1), "it reads the network's input")
    return _finish(t, name, bias, t.along(name, given, weight.shape[1], "out"), -1, out)


def _batch_norm(t: Trace, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    x = args[0]
    labels = t.channels(x, 1)
    for tensor, role in zip(args[1:5], ("scale", "shift", "statistic", "statistic"), strict=True):
        if tensor is None:
            continue
        if id(tensor) not in t.names:
            return _opaque(t, func, args, kwargs, out)
        t.sets.unite(t.along(t.names[id(tensor)], 0, len(tensor), role), labels)
    if id(x) in t.sources and args[3] is not None:
        t._followed[t.sources[id(x)]] = (id(x), t.names[id(args[3])])
    return t.on(out[0], 1, labels)


def _group_norm(t: Trace, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """Channels of one normalisation group stay together."""
    x, weight, bias, groups = args[0], args[1], args[2], args[6]
    labels = t.channels(x, 1)
    if weight is None or is_fixed(labels):
        t.sets.freeze(labels, "a group normalisation without scale cannot be resized")
    blocks = labels.view(groups, -1)
    t.sets.unite(blocks, blocks[:, :1])
    for tensor, role in ((weight, "scale"), (bias, "shift")):
        if tensor is not None:
            t.sets.unite(t.along(t.names[id(tensor)], 0, len(tensor), role), labels)
    t.on(out[0], 1, labels)


def _layer_norm(t: Trace, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    x, shape = args[:2]
    label = t.get(x)
    if any(n > 1 for n in label.shape[x.ndim - len(shape) :]):
        t.sets.freeze(label, "layer normalisation mixes all channels")
    t.put(out[0], label if not is_fixed(label) else fixed(x.ndim))


def _reduce(t: Trace, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """Mean, sum, ...: no reduction over channels."""
    x, out = args[0], tree_leaves(out)[0]
    label = t.get(x)
    dims = args[1] if len(args) > 1 and isinstance(args[1], (int, list, tuple)) else kwargs.get("dim")
    dims = [dims] if isinstance(dims, int) else list(dims or range(x.ndim))
    dims = sorted({d % x.ndim for d in dims}, reverse=True) if x.ndim else []
    if any(label.shape[d] > 1 for d in dims):
        t.sets.freeze(label, f"{func._schema.name} reduces over channels")
    for d in dims:
        label = label.narrow(d, 0, 1) if out.ndim == x.ndim else label.select(d, 0)
    t.put(out, label)


def _softmax(t: Trace, func: Any, args: Any, kwargs: Any, out: Tensor) -> None:
    label = t.get(args[0])
    if label.ndim and label.shape[args[1]] > 1:
        t.sets.freeze(label, f"{func._schema.name} mixes channels")
    t.put(out, label)


def _pool(t: Trace, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """Windows over positions, channel by channel (dimension 1, or 0 without batch)."""
    x, out = args[0], tree_leaves(out)[0]
    label = t.get(x)
    moved = [d for d in range(x.ndim) if x.shape[d] != out.shape[d] or d >= 2]
    if any(label.shape[d] > 1 for d in moved):
        t.sets.freeze(label, f"{func._schema.name} runs over channels")
        label = fixed(x.ndim)
    t.put(out, label)


def _pad(t: Trace, func: Any, args: Any, kwargs: Any, out: Tensor) -> None:
    x, label = args[0], t.get(args[0])
    if any(label.shape[d] > 1 and x.shape[d] != out.shape[d] for d in range(x.ndim)):
        t.sets.freeze(label, "zeros are added beside its channels")
        label = fixed(x.ndim)
    t.put(out, label)


def _cat(t: Trace, func: Any, args: Any, kwargs: Any, out: Tensor) -> None:
    tensors = [x for x in args[0] if x.numel() or x.ndim == out.ndim]
    dim = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % out.ndim
    labels = [t.get(x) for x in tensors]
    beside = any(n > 1 for label in labels for d, n in enumerate(label.shape) if d != dim)
    if not beside:
        pieces = [
            label.expand([x.shape[dim] if d == dim else 1 for d in range(out.ndim)])
            for label, x in zip(labels, tensors, strict=True)
        ]
        return t.put(out, torch.cat(pieces, dim))
    # Channels run along other dimensions (heads, say): what is joined along `dim` stays together.
    whole = next(label for label in labels if not is_fixed(label)).narrow(dim, 0, 1)
    for label in labels:
        t.sets.unite(label, whole)
    return t.put(out, whole)


def _cut(func: Any, args: Any, kwargs: Any, label: Tensor, x: Tensor) -> bool:
    """Whether a data movement cuts channels at places that surgery would shift."""
    name = func._schema.name.split("::")[1]
    if name not in ("slice", "select", "split", "split_with_sizes", "unbind", "index_select"):
        return False
    place = 2 if name.startswith("split") else 1
    dim = args[place] if len(args) > place else kwargs.get("dim", 0)
    size = x.shape[dim]
    if label.shape[dim] == 1:
        return False
    if name == "slice":
        start, end, step = [*args[2:], None, None, None][:3]
        return bool(start) or (end is not None and end < size) or (step or 1) != 1
    return not (name == "split" and size % args[1] == 0)


def _move(t: Trace, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """Views, permutations, slices: labels move as data do."""
    x = args[0]
    if id(x) in t.names and x.ndim == 2 and func in (aten.t.default, aten.transpose.int, aten.permute.default):
        t.turned[id(out)] = t.names[id(x)]
        return
    if id(x) in t.turned and func is aten.t.default:
        t.names[id(out)] = t.turned[id(x)]
        return
    label, outs = t.get(x), [y for y in tree_leaves(out) if isinstance(y, Tensor)]
    if is_fixed(label) or _cut(func, args, kwargs, label, x):
        t.sets.freeze(label, f"{func._schema.name} cuts its channels at fixed places")
        for y in outs:
            t.put(y, fixed(y.ndim))
        return
    whole = label.expand(x.shape)
    reshaping = func in (aten.view.default, aten._unsafe_view.default)
    moved = whole.reshape(outs[0].shape) if reshaping else func(whole, *args[1:], **kwargs)
    for y, lab in zip(outs, tree_leaves(moved), strict=True):
        t.put(y, lab)


def _attention(t: Trace, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """Scaled dot products (B, heads, length, width): a head is removed as a whole, queries, keys and values."""
    mask = kwargs.get("attn_mask")
    labels = [t.get(x) for x in args[:3]]
    if any(n > 1 for label in labels for n in (label.shape[0], label.shape[2])) or (
        mask is not None and mask.ndim == 4 and mask.shape[1] > 1
    ):
        return _opaque(t, func, args, kwargs, out)
    # Each key head may serve several query heads in a row; they go together.
    labels = [label.expand(-1, x.shape[1], -1, -1) for label, x in zip(labels, args[:3], strict=True)]
    labels = [label.repeat_interleave(args[0].shape[1] // label.shape[1], 1) for label in labels]
    heads = labels[1].narrow(3, 0, 1)
    for label in labels:
        t.sets.unite(label, heads, "its attention head has parts that cannot shrink")
    return t.put(tree_leaves(out)[0], labels[2])


def _embedding(t: Trace, func: Any, args: Any, kwargs: Any, out: Tensor) -> None:
    weight = args[0]
    if id(weight) not in t.names:
        return _opaque(t, func, args, kwargs, out)
    return t.on(out, -1, t.along(t.names[id(weight)], 1, weight.shape[1], "out"))


def _table(rule: Rule, names: str) -> dict[str, Rule]:
    return dict.fromkeys(names.split(), rule)


# Operator (without the underscore of in-place forms) -> what it does to labels.
RULES: dict[str, Rule] = {
    **_table(_pointwise, "relu hardtanh silu gelu sigmoid tanh leaky_relu elu softplus hardswish hardsigmoid mish neg"),
    **_table(_pointwise, "exp log abs sqrt rsqrt pow square reciprocal clamp clamp_min clamp_max sin cos erf sign"),
    **_table(_pointwise, "add sub mul div rsub maximum minimum where addcmul lerp native_dropout threshold"),
    **_table(_pointwise, "clone detach alias lift_fresh _to_copy masked_fill _prelu_kernel log_sigmoid_forward"),
    **_table(
        _nothing, "empty arange zeros ones full scalar_tensor empty_like zeros_like ones_like full_like rand randn"
    ),
    **_table(_convolution, "convolution"),
    **_table(_matmul, "mm addmm"),
    **_table(_batch_norm, "native_batch_norm _native_batch_norm_legit_no_training cudnn_batch_norm"),
    **_table(_group_norm, "native_group_norm"),
    **_table(_layer_norm, "native_layer_norm"),
    **_table(_reduce, "mean sum amax amin var std max min prod linalg_vector_norm norm"),
    **_table(_softmax, "_softmax _log_softmax cumsum"),
    **_table(_pool, "max_pool2d_with_indices max_pool3d_with_indices avg_pool2d avg_pool3d _adaptive_avg_pool2d"),
    **_table(_pool, "_adaptive_avg_pool3d adaptive_max_pool2d upsample_nearest1d upsample_nearest2d"),
    **_table(_pool, "upsample_bilinear2d upsample_bicubic2d reflection_pad2d replication_pad2d"),
    **_table(_pad, "constant_pad_nd"),
    **_table(_cat, "cat"),
    **_table(_move, "view _unsafe_view transpose permute t unsqueeze squeeze expand slice select split flip"),
    **_table(_move, "split_with_sizes unbind index_select repeat"),
    **_table(_attention, "_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_flash_attention"),
    **_table(_attention, "_scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention"),
    **_table(_embedding, "embedding"),
}
