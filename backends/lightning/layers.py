"""The layers as torch.nn modules. Between layers, images are [B, C, H, W]; a model's inputs and
outputs are canonical: [B, H, W, C]."""

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import reduce
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from runner.components import layers as spec
from runner.components.positions import encodings
from runner.random import MASK, layer_key, mix, threshold
from runner.spec import TrainState

_RECURRENT = {
    f"{prefix}{name}": f"{prefix}{name}"
    for prefix in ("", "backward_")
    for name in ("kernel", "recurrent_kernel", "bias")
}


def _products(*prefixes: str) -> dict[str, str]:
    """Map the variables of two dense layers within one to themselves."""
    return {f"{p}{name}": f"{p}{name}" for p in prefixes for name in ("kernel", "bias")}


# canonical variable -> torch's name for it
_NAMES = {
    "dense": {"kernel": "weight", "bias": "bias"},
    "conv2d": {"kernel": "weight", "bias": "bias"},
    "depthwise_conv2d": {"kernel": "weight", "bias": "bias"},
    "conv2d_transpose": {"kernel": "weight", "bias": "bias"},
    "conv1d": {"kernel": "weight", "bias": "bias"},
    "gru": _RECURRENT,
    "lstm": _RECURRENT,
    "batch_norm": {
        "scale": "weight",
        "offset": "bias",
        "mean": "running_mean",
        "variance": "running_var",
    },
    "layer_norm": {"scale": "weight", "offset": "bias"},
    "embedding": {"embedding": "weight"},
    "rms_norm": {"scale": "weight"},
    "group_norm": {"scale": "weight", "offset": "bias"},
    "position_embedding": {"embedding": "weight"},
    "attention": {name: name for name in ("query", "key", "value", "output")},
    "gated_dense": _products("gate_", ""),
    "squeeze_excite": _products("squeeze_", "excite_"),
}
_AXES = {4: (3, 2, 0, 1), 2: (1, 0)}  # number of axes -> permutation from canonical to torch's
_CANONICAL = {4: (2, 3, 1, 0), 2: (1, 0)}  # the inverse


class DropoutState:
    """Seed, step and micro-batch of the current forward pass. Together with the index of a layer
    they determine its dropout mask. A process that has a part of the micro-batch has `own_rows` of
    its `num_rows`, from `first_row` on. If it has none, the pass may have a row that does not
    count."""

    def __init__(self, seed: int) -> None:
        self.seed, self.step, self.micro_batch = seed, 0, 0
        self.first_row = self.own_rows = self.num_rows = 0


class Tensors(Protocol):
    """A network with tensors that have names, and with their layout in checkpoints."""

    def named(self) -> dict[str, Tensor]: ...

    def to_torch(self, value: np.ndarray) -> Tensor: ...

    def to_canonical(self, tensor: Tensor) -> np.ndarray: ...


class Network(nn.Module):
    """The whole model: nn.Modules in order, each under its canonical name."""

    is_divided = False  # True if hooks gather its parameters (sharded.py)

    def __init__(self, network: spec.Network, dropout_state: DropoutState | None = None) -> None:
        super().__init__()
        self.body = _sequence(network.nodes, dropout_state)
        modules = {name.rpartition(".")[2]: module for name, module in self.named_modules()}
        for node in network.walk():
            if node.tied:
                modules[node.name].embedding = modules[node.spec.tie].weight
        self.image_in, self.image_out = (
            len(network.input_shape) == 3,
            len(network.output_shape) == 3,
        )

    def forward(self, x: Tensor) -> Tensor:  # x  # [B, *input_shape] -> [B, *output_shape]
        return self.with_canonical_axes(self.body, x)

    def with_canonical_axes(self, body: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """Apply `body` to a canonical input; return a canonical output."""
        y = body(x.permute(0, 3, 1, 2) if self.image_in else x)
        return y.permute(0, 2, 3, 1) if self.image_out else y

    def to_torch(self, value: np.ndarray) -> Tensor:
        return from_canonical(value)

    def to_canonical(self, tensor: Tensor) -> np.ndarray:
        return to_canonical(tensor)

    def canonical(self, tensor: Tensor) -> Tensor:
        return canonical(tensor)

    def named(self) -> dict[str, Tensor]:
        """Canonical name -> the module's own tensor, parameters and buffers."""
        return {
            f"{name.rpartition('.')[2]}/{canonical}": getattr(module, native)
            for name, module in self.named_modules()
            for canonical, native in _NAMES.get(
                name.rpartition(".")[2].rpartition("_")[0], {}
            ).items()
            if getattr(module, native) is not None
        }


def direct(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return model.forward without nn.Module.__call__, which looks for hooks: this takes as long as
    a small layer. The modules of a user's own model keep their hooks."""
    if getattr(model, "is_divided", False):
        return model
    if not isinstance(model, Network):
        return model.forward
    if isinstance(model.body, _MaskedSequence):
        return lambda x: model.with_canonical_axes(model.body.forward, x)
    calls = [_call(module) for module in model.body]

    def body(x: Tensor) -> Tensor:
        for call in calls:
            x = call(x)
        return x

    return lambda x: model.with_canonical_axes(body, x)


def _call(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return module.forward; for the layers of an MLP, the function that it calls, because looking
    for the module's parameters takes half as long as a small layer."""
    if type(module) is nn.Linear:
        weight, bias = module.weight, module.bias
        return lambda x: F.linear(x, weight, bias)
    return torch.relu if type(module) is nn.ReLU else module.forward


def recompute(model: Network) -> None:
    """Let the backward pass compute the inside of each residual and parallel layer again, by
    torch.utils.checkpoint. Running statistics of batch norms are those of the first pass."""
    norms: list[Any] = [
        m for m in model.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)
    ]

    @contextmanager
    def again() -> Iterator[None]:
        kept = [(norm.running_mean, norm.running_var) for norm in norms]
        for norm in norms:  # the pass changes copies
            norm.running_mean = norm.running_mean.clone()
            norm.running_var = norm.running_var.clone()
        try:
            yield
        finally:
            for norm, (mean, variance) in zip(norms, kept, strict=True):
                norm.running_mean, norm.running_var = mean, variance

    def again_without(block: nn.Module) -> Callable[..., Any]:
        forward = block.forward

        def apply(*arguments: Tensor | None) -> Tensor:
            if not block.training:
                return forward(*arguments)  # type: ignore[no-any-return]
            # masks are a function of the update, so no generator has to be kept
            return checkpoint(  # type: ignore[no-any-return]
                forward,
                *arguments,
                use_reentrant=False,
                preserve_rng_state=False,
                context_fn=lambda: (nullcontext(), again()),
            )

        return apply

    for block in model.body:
        if isinstance(block, _Branches):
            block.forward = again_without(block)  # type: ignore[method-assign]


def compiled(function: Callable[..., Any], model: nn.Module) -> Callable[..., Any]:
    """Compile with torch.compile, once per shape. Dropout masks are not compiled: they depend on
    Python numbers that change every step."""
    # torch counts the compilations of a function over all runs of the process; after eight it
    # would not compile any more
    torch.compiler.reset()
    for module in model.modules():
        if isinstance(module, Dropout):
            module.keep = torch.compiler.disable(module.keep)  # type: ignore[method-assign]
    return torch.compile(function, dynamic=False)


def load(model: Tensors, values: Mapping[str, np.ndarray]) -> None:
    """Copy canonical values into the model."""
    with torch.no_grad():
        for name, tensor in model.named().items():
            tensor.copy_(model.to_torch(values[name]))


def save(model: Tensors, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Return canonical copies of the model's values."""
    tensors = model.named()
    return {name: model.to_canonical(tensors[name]) for name in names}


def load_state(model: Tensors, state: TrainState) -> None:
    load(model, {**state.weights, **state.buffers})


def from_canonical(value: np.ndarray) -> Tensor:
    """[in, out] -> [out, in]; [height, width, in, out] -> [out, in, height, width]."""
    return torch.from_numpy(np.transpose(value, _AXES.get(value.ndim, range(value.ndim))).copy())


def canonical(tensor: Tensor) -> Tensor:
    """Return a view with canonical axes."""
    return tensor.permute(_CANONICAL.get(tensor.ndim, tuple(range(tensor.ndim))))


def to_canonical(tensor: Tensor) -> np.ndarray:
    """The inverse of from_canonical, as a copy."""
    value: np.ndarray = (
        canonical(tensor.detach()).clone(memory_format=torch.contiguous_format).cpu().numpy()
    )
    return value


def _pads(node: spec.Node) -> list[int]:
    """The argument of F.pad: low and high of the width, then of the height."""
    height, width = node.spec.window.pads(node.input_shape)
    return [*width, *height]


class _Conv2d(nn.Conv2d):
    """A convolution with asymmetric padding, which torch's `padding` does not support: one more row
    or column at the end."""

    pads: list[int]

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, self.pads))


class _MaxPool2d(nn.MaxPool2d):
    """Max pooling with asymmetric padding by minus infinity."""

    pads: list[int]

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, self.pads, value=float("-inf")))


def _conv2d(node: spec.Node) -> nn.Conv2d:
    s, window, pads = node.spec, node.spec.window, _pads(node)
    is_symmetric = pads[::2] == pads[1::2]
    kind = nn.Conv2d if is_symmetric else _Conv2d
    conv = kind(
        node.input_shape[2], s.filters, window.size, window.stride,
        (pads[2], pads[0]) if is_symmetric else 0, window.dilation, s.groups, bias=s.bias,
    )  # fmt: skip
    if isinstance(conv, _Conv2d):
        conv.pads = pads
    return conv


class _DepthwiseConv2d(nn.Module):
    """spec.DepthwiseConv2D. Like every weight of four axes here, its weight [M, in, height, width]
    has the last two canonical axes first."""

    bias: nn.Parameter | None

    def __init__(self, node: spec.Node) -> None:
        super().__init__()
        s, window, channels = node.spec, node.spec.window, node.input_shape[2]
        self.weight = nn.Parameter(torch.empty(s.depth_multiplier, channels, *window.size))
        filters = node.output_shape[2]
        self.register_parameter("bias", nn.Parameter(torch.empty(filters)) if s.bias else None)
        self.pads, self.stride, self.dilation = _pads(node), window.stride, window.dilation

    def forward(self, x: Tensor) -> Tensor:
        pads, padding = self.pads, (0, 0)
        if pads[::2] == pads[1::2]:
            padding = (pads[2], pads[0])
        else:
            x = F.pad(x, pads)
        kernel = self.weight.transpose(0, 1).flatten(0, 1).unsqueeze(1)  # [in M, 1, h, w]
        return F.conv2d(x, kernel, self.bias, self.stride, padding, self.dilation, x.shape[1])


class _ConvTranspose2d(nn.ConvTranspose2d):
    """spec.Conv2DTranspose. If the padding is asymmetric, torch's result has one more row or column
    at the end."""

    def __init__(self, node: spec.Node) -> None:
        s, window = node.spec, node.spec.window
        self.height, self.width, _ = node.output_shape
        (top, _), (left, _) = window.pads(node.output_shape)
        missing = [max(d - k, 0) for k, d in zip(window.size, window.stride, strict=True)]
        super().__init__(
            node.input_shape[2], s.filters, window.size, window.stride, (top, left),
            (missing[0], missing[1]), bias=s.bias,
        )  # fmt: skip

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        return super().forward(x)[:, :, : self.height, : self.width]


class _UpSampling2d(nn.Module):
    """Nearest upsampling. F.interpolate computes indices in float32."""

    def __init__(self, node: spec.Node) -> None:
        super().__init__()
        (height, width, _), (down, across) = node.input_shape, node.spec.window.size
        self.sides = height, down, width, across

    def forward(self, x: Tensor) -> Tensor:
        repeated = x[:, :, :, None, :, None].expand(*x.shape[:2], *self.sides)
        return repeated.flatten(4, 5).flatten(2, 3)


class _Conv1d(nn.Module):
    """spec.Conv1D of [B, T, C]. The weight has the canonical layout [size, in, out]."""

    bias: nn.Parameter | None

    def __init__(self, node: spec.Node) -> None:
        super().__init__()
        s = node.spec
        self.weight = nn.Parameter(torch.empty(node.variables[0].shape))
        self.register_parameter("bias", nn.Parameter(torch.empty(s.filters)) if s.bias else None)
        self.stride, self.dilation, self.pads = s.stride, s.dilation, s.pads(node.input_shape[0])
        self.groups = s.groups

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if mask is not None:
            x = x.where(mask[..., None], 0.0)
        x, (low, high) = x.transpose(1, 2), self.pads
        if low != high:
            x = F.pad(x, self.pads)
        padding, kernel = low if low == high else 0, self.weight.permute(2, 1, 0)
        y = F.conv1d(x, kernel, self.bias, self.stride, padding, self.dilation, self.groups)
        return y.transpose(1, 2)


class _Recurrent(nn.Module):
    """spec.GRU or spec.LSTM by torch's own kernel, with the canonical order of the gates."""

    def __init__(self, node: spec.Node) -> None:
        super().__init__()
        for name in _RECURRENT:
            self.register_parameter(name, None)
        for variable in node.variables:
            empty = torch.empty(variable.shape[::-1])
            self.register_parameter(variable.name, nn.Parameter(empty))
        self.spec, self.is_gru = node.spec, node.spec.layer == "gru"

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        # [B, T, D] -> [B, T, U], or [B, U]
        if not self.is_gru and x.is_cpu and torch.is_autocast_enabled("cpu"):
            # most processors have no bfloat16 kernel for LSTM: torch raises an error
            with torch.autocast("cpu", enabled=False):
                return self._outputs(x.float(), mask)
        return self._outputs(x, mask)

    def _outputs(self, x: Tensor, mask: Tensor | None) -> Tensor:
        s = self.spec
        if mask is None:
            y, h = self._run(x, s.prefixes)
            return y if s.return_sequences else h.transpose(0, 1).flatten(1)
        order = _reversed_steps(mask)
        parts = []
        for prefix in s.prefixes:
            y, _ = self._run(_take_steps(x, order) if prefix else x, [prefix])
            if not s.return_sequences:
                y = _take_steps(y, order[:, :1])[:, 0]
            parts.append(_take_steps(y, order) if prefix and s.return_sequences else y)
        return torch.cat(parts, -1)

    def _run(self, x: Tensor, prefixes: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return the outputs of all steps and the last states of torch's kernel, with the weights
        of one or both directions."""
        s = self.spec
        zeros = x.new_zeros(len(prefixes), x.shape[0], s.units)
        weights = [w for prefix in prefixes for w in self._weights(prefix)]
        how = (s.bias, 1, 0.0, self.training, len(prefixes) == 2, True)
        if self.is_gru:
            return torch.gru(x, zeros, weights, *how)
        y, h, _ = torch.lstm(x, (zeros, zeros), weights, *how)
        return y, h

    def _weights(self, prefix: str) -> list[Tensor]:
        """Return the kernels and, if there are some, the biases, in the order of torch's gates."""
        weights = [getattr(self, f"{prefix}{name}") for name in ("kernel", "recurrent_kernel")]
        if self.spec.bias:
            bias = getattr(self, f"{prefix}bias")
            weights += [*bias.t()] if self.is_gru else [bias, torch.zeros_like(bias)]
        return [_swap_gates(w) for w in weights] if self.is_gru else weights


def _reversed_steps(mask: Tensor) -> Tensor:
    """Return the number of the step at each position if the steps before the padding are reversed:
    [2, 1, 0, 3] for three steps and one of padding.  # bool[B, T] -> int[B, T]"""
    steps = torch.arange(mask.shape[1], device=mask.device)
    return torch.where(mask, mask.sum(1, keepdim=True) - 1 - steps, steps)


def _take_steps(x: Tensor, steps: Tensor) -> Tensor:
    """x[b, steps[b, t]]  # [B, T, D], int[B, T'] -> [B, T', D]"""
    return x.gather(1, steps[..., None].expand(-1, -1, x.shape[2]))


def _swap_gates(weight: Tensor) -> Tensor:
    """[z, r, n] -> [r, z, n]"""
    z, r, n = weight.chunk(3)
    return torch.cat([r, z, n])


def _max_pool(node: spec.Node) -> nn.MaxPool2d:
    window, pads = node.spec.window, _pads(node)
    if not any(pads):
        return nn.MaxPool2d(window.size, window.stride)
    pool = _MaxPool2d(window.size, window.stride)
    pool.pads = pads
    return pool


class _AveragePoolSame(nn.Module):
    """Average pooling with `padding: same`, which averages the values without the padding. torch
    would count asymmetric padding."""

    def __init__(self, node: spec.Node) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(node.spec.window.size, node.spec.window.stride)
        self.pads = _pads(node)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(F.pad(x, self.pads)) / self.pool(
            F.pad(torch.ones_like(x[:1, :1]), self.pads)
        )


class _GlobalAveragePool(nn.Module):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if mask is not None:
            return x.where(mask[..., None], 0.0).sum(1) / mask.sum(1, keepdim=True).to(x.dtype)
        return x.mean((2, 3) if x.ndim == 4 else 1)


class _GlobalMaxPool(nn.Module):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if mask is not None:
            x = x.where(mask[..., None], float("-inf"))
        return x.amax((2, 3) if x.ndim == 4 else 1)


class _Flatten(nn.Module):
    """Flatten in canonical order: height, width, channels."""

    def forward(self, x: Tensor) -> Tensor:
        return (x.permute(0, 2, 3, 1) if x.ndim == 4 else x).flatten(1)


class _Reshape(nn.Module):
    def __init__(self, node: spec.Node) -> None:
        super().__init__()
        self.shape, self.image_in = node.output_shape, len(node.input_shape) == 3

    def forward(self, x: Tensor) -> Tensor:
        y = (x.permute(0, 2, 3, 1) if self.image_in else x).reshape(-1, *self.shape)
        return y.permute(0, 3, 1, 2) if len(self.shape) == 3 else y


class _Slice(nn.Module):
    def __init__(self, node: spec.Node) -> None:
        super().__init__()
        self.axis = 1 if len(node.input_shape) == 3 else -1
        self.start, self.stop = node.spec.ends(node.input_shape)

    def forward(self, x: Tensor) -> Tensor:
        return x.narrow(self.axis, self.start, self.stop - self.start)


class _Columns(nn.Module):
    numbers: Tensor

    def __init__(self, node: spec.Node) -> None:
        super().__init__()
        self.register_buffer("numbers", torch.tensor(node.columns), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return x.index_select(1, self.numbers)


def _with_features_last(norm: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply `norm`, which expects the features on the last axis; images have them on axis 1."""
    return norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) if x.ndim == 4 else norm(x)


def _with_features_first(norm: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply `norm`, which expects the features on axis 1; sequences have them on the last axis."""
    return norm(x.transpose(1, 2)).transpose(1, 2) if x.ndim == 3 else norm(x)


class _BatchNorm1d(nn.BatchNorm1d):
    has_features_last = True

    """Batch norm of [B, C] and of sequences [B, T, C]; torch expects the features on axis 1."""

    def forward(self, x: Tensor) -> Tensor:
        return _with_features_first(super().forward, x)


class _LayerNorm(nn.LayerNorm):
    """Layer norm over the features or the channels of an image; images have them on axis 1."""

    def forward(self, x: Tensor) -> Tensor:
        return _with_features_last(super().forward, x)


class _Embedding(nn.Module):
    """spec.Embedding. Like every matrix here, its weight is the transpose of the canonical one."""

    def __init__(self, node: spec.Node) -> None:
        super().__init__()
        num, features = node.variables[0].shape
        self.weight = nn.Parameter(torch.empty(features, num))

    def forward(self, x: Tensor) -> Tensor:  # ids [B, T], also as numbers -> [B, T, D]
        return F.embedding(x.long() if x.is_floating_point() else x, self.weight.t())


class _TiedDense(nn.Module):
    """A dense layer with the matrix of an embedding, which the network sets: one parameter of two
    modules."""

    weight = None  # it has no kernel of its own
    embedding: nn.Parameter
    bias: nn.Parameter | None

    def __init__(self, node: spec.Node) -> None:
        super().__init__()
        num = node.output_shape[-1]
        self.register_parameter("bias", nn.Parameter(torch.empty(num)) if node.spec.bias else None)

    def forward(self, x: Tensor) -> Tensor:  # [B, ..., features] -> [B, ..., num_embeddings]
        return F.linear(x, self.embedding.t(), self.bias)


class _Masking(nn.Module):
    """spec.Masking. The sequence that it is in computes the mask."""

    def forward(self, x: Tensor) -> Tensor:
        return x


class _BlankPadding(nn.Module):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        assert mask is not None
        blank = torch.full_like(x[:1, :1], max(spec.LOG_NEVER, torch.finfo(x.dtype).min))
        blank[..., -1] = 0.0
        return x.where(mask[..., None], blank)


def _find_mask(s: Any, x: Tensor) -> Tensor:
    """Return the mask of `masking` or `embedding` for its input.  # bool[B, T]"""
    is_value = x != 0 if s.layer == "embedding" else (x != s.mask_value).any(-1)
    mask = is_value.flip(1).cumsum(1).flip(1) > 0
    return mask | (torch.arange(x.shape[1], device=x.device) == 0)


class _RMSNorm(nn.RMSNorm):
    """RMS norm over the features or the channels of an image; images have them on axis 1."""

    def forward(self, x: Tensor) -> Tensor:
        return _with_features_last(super().forward, x)


class _GroupNorm(nn.GroupNorm):
    """Group norm; torch expects the features of a sequence on axis 1, too."""

    def forward(self, x: Tensor) -> Tensor:
        return _with_features_first(super().forward, x)


class _PositionEmbedding(nn.Module):
    def __init__(self, node: spec.Node) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1, *node.input_shape))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.weight


class _Attention(nn.Module):
    """spec.Attention, with kernels [out, in] as in torch."""

    query: nn.Parameter
    key: nn.Parameter
    value: nn.Parameter
    output: nn.Parameter
    cos: Tensor
    sin: Tensor

    def __init__(self, node: spec.Node) -> None:
        super().__init__()
        s, width = node.spec, node.input_shape[-1]
        self.size, self.is_grouped = width // s.num_heads, s.kv_heads < s.num_heads
        self.is_causal = s.causal
        for variable in node.variables:
            empty = torch.empty(variable.shape[::-1])
            self.register_parameter(variable.name, nn.Parameter(empty))
        self.is_rotary = (angles := s.rotations(node.input_shape)) is not None
        for name, values in zip(("cos", "sin"), angles or (), strict=False):
            self.register_buffer(name, torch.from_numpy(values.copy()), persistent=False)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:  # [B, T, D]
        kernels = torch.cat([self.query, self.key, self.value])
        widths = [len(kernel) for kernel in (self.query, self.key, self.value)]
        q, k, v = (
            part.unflatten(-1, (-1, self.size)).transpose(1, 2)  # [B, H, T, D / H]
            for part in F.linear(x, kernels).split(widths, -1)
        )
        if self.is_rotary:
            q, k = self._rotated(q), self._rotated(k)
        if mask is None:
            heads = F.scaled_dot_product_attention(
                q, k, v, is_causal=self.is_causal, enable_gqa=self.is_grouped
            )
        else:
            is_seen = mask[:, None, None]
            if self.is_causal:
                is_seen = is_seen & mask.new_ones(x.shape[1], x.shape[1]).tril()
            heads = F.scaled_dot_product_attention(q, k, v, is_seen, enable_gqa=self.is_grouped)
        return F.linear(heads.transpose(1, 2).flatten(2), self.output)

    def _rotated(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        y = torch.cat([a * self.cos - b * self.sin, b * self.cos + a * self.sin], -1)
        return y.to(x.dtype)


class _SinusoidalPositions(nn.Module):
    encodings: Tensor

    def __init__(self, node: spec.Node) -> None:
        super().__init__()
        values = torch.from_numpy(encodings(node.input_shape, node.spec.base))
        self.register_buffer("encodings", values, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.encodings.to(x.dtype)


class _Products(nn.Module):
    """The weights of two dense layers within one, with kernels [out, in] as in torch."""

    def __init__(self, node: spec.Node) -> None:
        super().__init__()
        for name in _NAMES[node.spec.layer]:
            self.register_parameter(name, None)
        for variable in node.variables:
            empty = torch.empty(variable.shape[::-1])
            self.register_parameter(variable.name, nn.Parameter(empty))


class _GatedDense(_Products):
    """spec.GatedDense, with one product for both kernels."""

    gate_kernel: nn.Parameter
    kernel: nn.Parameter
    gate_bias: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(self, node: spec.Node) -> None:
        super().__init__(node)
        self.activation = _ACTIVATIONS[node.spec.activation](node.spec)

    def forward(self, x: Tensor) -> Tensor:  # [B, ..., in] -> [B, ..., out]
        kernel, bias = torch.cat([self.gate_kernel, self.kernel]), None
        if self.gate_bias is not None and self.bias is not None:
            bias = torch.cat([self.gate_bias, self.bias])
        gate, value = F.linear(x, kernel, bias).chunk(2, -1)
        y: Tensor = self.activation(gate) * value
        return y


class _SqueezeExcite(_Products):
    """spec.SqueezeExcite of [B, T, C] and [B, C, H, W]."""

    squeeze_kernel: nn.Parameter
    squeeze_bias: nn.Parameter | None
    excite_kernel: nn.Parameter
    excite_bias: nn.Parameter | None

    def forward(self, x: Tensor) -> Tensor:
        is_image = x.ndim == 4
        mean = x.mean((2, 3) if is_image else 1)
        hidden = F.relu(F.linear(mean, self.squeeze_kernel, self.squeeze_bias))
        scale = torch.sigmoid(F.linear(hidden, self.excite_kernel, self.excite_bias))
        return x * (scale[:, :, None, None] if is_image else scale[:, None])


class Dropout(nn.Module):
    """Dropout with the masks of runner.random.keep, computed on the device."""

    def __init__(
        self, rate: float, index: int, dropout_state: DropoutState, is_masked: bool = False
    ) -> None:
        super().__init__()
        self.rate, self.dropout_state, self.key, self.is_masked = (
            rate,
            dropout_state,
            layer_key(dropout_state.seed, index),
            is_masked,
        )

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        return x * (self.keep(x) * (1 / (1 - self.rate))).to(x.dtype)

    def keep(self, x: Tensor) -> Tensor:
        # runner.random.keep gives masks in canonical layout
        shape = (x.shape[0], *x.shape[2:], x.shape[1]) if x.ndim == 4 else x.shape
        state = self.dropout_state
        where = (state.step, state.micro_batch, x.device, state.first_row)
        mask = keep(shape, self.rate, self.key, *where, self.is_masked)
        return mask.permute(0, 3, 1, 2) if x.ndim == 4 else mask


class _StochasticDepth(Dropout):
    """Dropout of whole rows."""

    def keep(self, x: Tensor) -> Tensor:
        state = self.dropout_state
        where = (state.step, state.micro_batch, x.device, state.first_row)
        mask = keep(x.shape[:1], self.rate, self.key, *where)
        return mask.view(-1, *(1,) * (x.ndim - 1))


def keep(
    shape: Sequence[int],
    rate: float,
    key: int,
    step: int,
    micro_batch: int,
    device: torch.device,
    first_row: int = 0,
    is_masked: bool = False,
) -> Tensor:
    """Compute runner.random.keep in a shape, for rows from `first_row` on, on a device. Rows of a
    masked sequence have elements of their own."""
    k: Any = mix(mix(key + step) + micro_batch)
    size = math.prod(shape[1:])
    if is_masked:
        rows = torch.arange(first_row, first_row + shape[0], device=device)
        k, i = _mix_tensor((rows + k) & MASK)[:, None], torch.arange(size, device=device)
    else:
        first = first_row * size
        i = torch.arange(first, first + math.prod(shape), device=device)
    return (_mix_tensor(_mix_tensor((i + k) & MASK) ^ k) >= threshold(rate)).view(tuple(shape))


def _mix_tensor(x: Tensor) -> Tensor:
    """Compute runner.random.mix of int64 tensors that hold 32 bits."""
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & MASK
    x = ((x ^ (x >> 15)) * 0x846CA68B) & MASK
    return x ^ (x >> 16)


class _Branches(nn.Module):
    """The branches of a layer, each a sequence of modules under a name."""

    def __init__(
        self, node: spec.Node, dropout_state: DropoutState | None, names: Sequence[str]
    ) -> None:
        super().__init__()
        self.names = tuple(names)
        for name, branch in zip(names, node.branches, strict=True):
            self.add_module(name, _sequence(branch, dropout_state))

    def outputs(self, x: Tensor, mask: Tensor | None) -> list[Tensor]:
        branches = [getattr(self, name) for name in self.names]
        if mask is None:
            return [branch(x) for branch in branches]
        return [
            branch(x, mask) if isinstance(branch, _MaskedSequence) else branch(x)
            for branch in branches
        ]


class _Parallel(_Branches):
    def __init__(self, node: spec.Node, dropout_state: DropoutState | None) -> None:
        super().__init__(node, dropout_state, [f"branch_{i}" for i in range(len(node.branches))])
        self.joined_by = node.spec.joined_by

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        parts = self.outputs(x, mask)
        if self.joined_by == "concat":
            return torch.cat(parts, 1 if parts[0].ndim == 4 else -1)
        return reduce(torch.add if self.joined_by == "add" else torch.mul, parts)


class _Residual(_Branches):
    def __init__(self, node: spec.Node, dropout_state: DropoutState | None) -> None:
        super().__init__(node, dropout_state, ("main", "shortcut"))
        self.depth: nn.Module | None = None
        if dropout_state and node.spec.drop_rate > 0:
            self.depth = _StochasticDepth(node.spec.drop_rate, node.index, dropout_state)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        y, shortcut = self.outputs(x, mask)
        return (y if self.depth is None else self.depth(y)) + shortcut


class _MaskedSequence(nn.Sequential):
    """Modules of which some use the mask of a padded sequence: it is an argument, or one of them
    finds it."""

    def __init__(self, nodes: Sequence[spec.Node], modules: OrderedDict[str, nn.Module]) -> None:
        super().__init__(modules)
        self.nodes = nodes

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        for node, module in zip(self.nodes, self, strict=True):
            if node.spec.makes_mask:
                mask = _find_mask(node.spec, x)
            x = module(x, mask) if node.is_masked and isinstance(module, _USE_MASK) else module(x)
        return x


_USE_MASK = (
    _Attention, _Conv1d, _Recurrent, _GlobalAveragePool, _GlobalMaxPool, _Branches, _BlankPadding,
)  # fmt: skip


def _sequence(nodes: Sequence[spec.Node], dropout_state: DropoutState | None) -> nn.Sequential:
    modules = OrderedDict((node.name, _build(node, dropout_state)) for node in nodes)
    if any(node.is_masked for node in nodes):
        return _MaskedSequence(nodes, modules)
    return nn.Sequential(modules)


_ACTIVATIONS = {
    "relu": lambda s: nn.ReLU(),
    "leaky_relu": lambda s: nn.LeakyReLU(s.negative_slope),
    "gelu": lambda s: nn.GELU(),
    "gelu_tanh": lambda s: nn.GELU(approximate="tanh"),
    "silu": lambda s: nn.SiLU(),
    "tanh": lambda s: nn.Tanh(),
    "sigmoid": lambda s: nn.Sigmoid(),
}


def _build(node: spec.Node, dropout_state: DropoutState | None) -> nn.Module:
    s, channels = node.spec, node.input_shape[-1]
    match s.layer:
        case "dense":
            is_tied = node.tied is not None
            units = node.output_shape[-1]
            return _TiedDense(node) if is_tied else nn.Linear(channels, units, bias=s.bias)
        case "conv1d" | "conv2d" | "depthwise_conv2d" | "conv2d_transpose":
            return _convolution(node)
        case "upsampling2d":
            return _UpSampling2d(node)
        case "gru" | "lstm":
            return _Recurrent(node)
        case "max_pool":
            return _max_pool(node)
        case "average_pool":
            return (
                _AveragePoolSame(node)
                if s.padding == "same"
                else nn.AvgPool2d(s.window.size, s.window.stride)
            )
        case "global_average_pool":
            return _GlobalAveragePool()
        case "global_max_pool":
            return _GlobalMaxPool()
        case "flatten":
            return _Flatten()
        case "reshape" | "slice" | "columns":
            return {"reshape": _Reshape, "slice": _Slice, "columns": _Columns}[s.layer](node)
        case "activation":
            return _ACTIVATIONS[s.function](s)
        case "dropout":
            return (
                Dropout(s.rate, node.index, dropout_state, node.is_masked)
                if dropout_state
                else nn.Dropout(s.rate)
            )
        case "residual" | "parallel":
            kind = _Residual if s.layer == "residual" else _Parallel
            return kind(node, dropout_state)
        case "gated_dense":
            return _GatedDense(node)
        case "squeeze_excite":
            return _SqueezeExcite(node)
    return _build_norm(node) if s.layer.endswith("_norm") else _build_for_sequences(node)


def _convolution(node: spec.Node) -> nn.Module:
    match node.spec.layer:
        case "conv1d":
            return _Conv1d(node)
        case "conv2d":
            return _conv2d(node)
        case "depthwise_conv2d":
            return _DepthwiseConv2d(node)
    return _ConvTranspose2d(node)


def _build_norm(node: spec.Node) -> nn.Module:
    s, channels = node.spec, node.input_shape[-1]
    match s.layer:
        case "batch_norm":
            norm = nn.BatchNorm2d if len(node.input_shape) == 3 else _BatchNorm1d
            return norm(channels, eps=s.eps, momentum=1 - s.momentum)
        case "layer_norm":
            return _LayerNorm(channels, eps=s.eps)
        case "rms_norm":
            return _RMSNorm(channels, eps=s.eps)
        case "group_norm":
            return _GroupNorm(s.groups, channels, eps=s.eps)
    raise AssertionError(s.layer)


def _build_for_sequences(node: spec.Node) -> nn.Module:
    match node.spec.layer:
        case "embedding":
            return _Embedding(node)
        case "masking":
            return _Masking()
        case "blank_padding":
            return _BlankPadding()
        case "position_embedding":
            return _PositionEmbedding(node)
        case "sinusoidal_positions":
            return _SinusoidalPositions(node)
        case "attention":
            return _Attention(node)
    raise AssertionError(node.spec.layer)
