"""The layers of a twin's torch module, and the canonical layouts of their tensors."""

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from torch import Tensor as TorchTensor
from torch import nn

from backends.lightning import layers as ours
from runner.components.twins import SAME, Layers, Layout, Tensor, TwinLayer, axes
from runner.errors import ConfigError

_MATRIX = axes(1, 0)  # [out, in] -> [in, out]
# number of axes of a kernel -> its layout: [out, in, ...] -> [..., in, out]
_KERNELS = {3: axes(2, 1, 0), 4: axes(2, 3, 1, 0), 5: axes(2, 3, 4, 1, 0)}
_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
# draw random numbers in training, and Keras's generators cannot draw the same
_RANDOM = (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


def find(model: nn.Module, named: Mapping[str, TorchTensor]) -> Layers:
    """List the layers of a module in order of definition. `named` are its tensors."""
    constants = {name: np.zeros_like(t.detach().numpy()) for name, t in named.items()}
    found: list[TwinLayer] = []
    inside: list[str] = []  # modules with parts that belong to a layer
    for path, module in model.named_modules():
        if any(path.startswith(f"{outer}.") for outer in inside):
            continue
        _refuse(path, module)
        its_layers = list(known(path, module))
        if its_layers:
            found += its_layers
            inside.append(path)
        else:
            found += _parameters(path, module)
    kept = [_with(layer, named) for layer in found]
    claimed = {tensor.name for layer in kept for tensor in layer.tensors}
    for name, tensor in named.items():
        if name not in claimed and not _is_second_bias(name, model):
            constants[name] = tensor.detach().numpy().copy()
    layers = tuple(layer for layer in kept if layer.tensors)
    return Layers(layers, {n: v for n, v in constants.items() if n not in claimed})


def _with(layer: TwinLayer, named: Mapping[str, TorchTensor]) -> TwinLayer:
    """Return the layer with the tensors that it has; a layer without bias lists one."""
    tensors = tuple(tensor for tensor in layer.tensors if tensor.name in named)
    return TwinLayer(layer.kind, layer.name, tensors)


def _parameters(path: str, module: nn.Module) -> Iterator[TwinLayer]:
    """Yield the parameters of a module that is no known layer, each as a layer."""
    for name, _ in module.named_parameters(recurse=False):
        full = _join(path, name)
        yield TwinLayer("parameter", full, (Tensor(full, ("value",)),))


def known(path: str, module: nn.Module) -> Iterator[TwinLayer]:
    """Yield the layers that a module is: a recurrent one may be several."""

    def layer(kind: str, **roles: tuple[str, Layout]) -> TwinLayer:
        tensors = (Tensor(_join(path, name), (role,), how) for name, (role, how) in roles.items())
        return TwinLayer(kind, path or kind, tuple(tensors))

    match module:
        case nn.Linear():
            yield layer("dense", weight=("kernel", _MATRIX), bias=("bias", SAME))
        case nn.Conv1d() | nn.Conv2d() | nn.Conv3d():
            is_depthwise = module.groups == module.in_channels > 1
            kind = "depthwise_conv" if is_depthwise else "conv"
            layout = _depthwise(module.groups) if is_depthwise else _KERNELS[module.weight.ndim]
            yield layer(kind, weight=("kernel", layout), bias=("bias", SAME))
        case nn.ConvTranspose1d() | nn.ConvTranspose2d() | nn.ConvTranspose3d():
            layout = _KERNELS[module.weight.ndim]
            yield layer("conv_transpose", weight=("kernel", layout), bias=("bias", SAME))
        case nn.BatchNorm1d() | nn.BatchNorm2d() | nn.BatchNorm3d():
            norm = {"weight": ("scale", SAME), "bias": ("offset", SAME)}
            running = {"running_mean": ("mean", SAME), "running_var": ("variance", SAME)}
            yield layer("batch_norm", **norm, **running)
        case nn.LayerNorm():
            yield layer("layer_norm", weight=("scale", SAME), bias=("offset", SAME))
        case nn.GroupNorm():
            yield layer("group_norm", weight=("scale", SAME), bias=("offset", SAME))
        case nn.RMSNorm():
            yield layer("rms_norm", weight=("scale", SAME))
        case nn.PReLU():
            yield layer("prelu", weight=("slope", SAME))
        case nn.Embedding():
            yield layer("embedding", weight=("table", SAME))
        case nn.MultiheadAttention():
            yield _attention(path, module)
        case nn.LSTM() | nn.GRU() | nn.RNN():
            yield from _recurrent(path, module)


def _depthwise(channels: int) -> Layout:
    """Return the layout of a depthwise kernel: [in * M, 1, ...] -> [..., in, M]."""

    def to_canonical(value: np.ndarray) -> list[np.ndarray]:
        split = value.reshape(channels, -1, *value.shape[2:])
        return [np.moveaxis(split, (0, 1), (-2, -1))]

    def to_native(values: object) -> np.ndarray:
        split = np.moveaxis(values[0], (-2, -1), (0, 1))  # type: ignore[index]
        return split.reshape(-1, 1, *split.shape[2:])

    return Layout(to_canonical, to_native)


_HEADS = ("query", "key", "value")


def _attention(path: str, module: nn.MultiheadAttention) -> TwinLayer:
    """List attention: kernels [in, out], with the heads side by side in `out`."""
    kernels = Layout(
        lambda value: [part.T for part in np.split(value, 3)],
        lambda values: np.concatenate([value.T for value in values]),
    )
    biases = Layout(lambda value: np.split(value, 3), np.concatenate)
    joint = Tensor(_join(path, "in_proj_weight"), tuple(f"{h}_kernel" for h in _HEADS), kernels)
    single = [Tensor(_join(path, f"{h[0]}_proj_weight"), (f"{h}_kernel",), _MATRIX) for h in _HEADS]
    return TwinLayer(
        "attention",
        path or "attention",
        (
            joint,
            *single,
            Tensor(_join(path, "in_proj_bias"), tuple(f"{h}_bias" for h in _HEADS), biases),
            Tensor(_join(path, "out_proj.weight"), ("output_kernel",), _MATRIX),
            Tensor(_join(path, "out_proj.bias"), ("output_bias",)),
        ),
    )


def _gru(transposed: bool) -> Layout:
    """Return the layout of a GRU's tensor: torch has the gates r, z, n; canonical is z, r, n."""

    def swap(value: np.ndarray) -> np.ndarray:
        reset, update, new = np.split(value, 3)
        return np.concatenate([update, reset, new])

    if not transposed:
        return Layout(lambda value: [swap(value)], lambda values: swap(values[0]))
    return Layout(lambda value: [swap(value).T], lambda values: swap(values[0].T))


def _recurrent(path: str, module: nn.RNNBase) -> Iterator[TwinLayer]:
    """Yield a layer per level and direction. Keras's LSTM and simple RNN have one bias; torch's
    second one is a constant 0."""
    is_gru = isinstance(module, nn.GRU)
    kind = "gru" if is_gru else "lstm" if isinstance(module, nn.LSTM) else "rnn"
    kernel = _gru(True) if is_gru else _MATRIX
    bias = _gru(False) if is_gru else SAME
    for level in range(module.num_layers):
        for direction in ("", "_reverse")[: 1 + module.bidirectional]:
            end = f"l{level}{direction}"
            tensors = [
                Tensor(_join(path, f"weight_ih_{end}"), ("input_kernel",), kernel),
                Tensor(_join(path, f"weight_hh_{end}"), ("recurrent_kernel",), kernel),
                Tensor(_join(path, f"bias_ih_{end}"), ("input_bias" if is_gru else "bias",), bias),
            ]
            if is_gru:
                tensors.append(Tensor(_join(path, f"bias_hh_{end}"), ("recurrent_bias",), bias))
            is_one = module.num_layers == 1 and not module.bidirectional
            name = path or kind
            yield TwinLayer(kind, name if is_one else f"{name}.{end}", tuple(tensors))


def _is_second_bias(name: str, model: nn.Module) -> bool:
    path, _, last = name.rpartition(".")
    return last.startswith("bias_hh_") and isinstance(model.get_submodule(path), nn.LSTM | nn.RNN)


def _refuse(path: str, module: nn.Module) -> None:
    """Refuse what Keras cannot have."""
    why = ""
    if isinstance(module, _RANDOM):
        why = "draws random numbers that Keras cannot draw; use torch.nn.Dropout"
    elif isinstance(module, nn.RNNBase | nn.MultiheadAttention) and module.dropout:
        why = f"has dropout={module.dropout:g} inside, which differs from Keras's; use 0"
    elif isinstance(module, _BATCH_NORMS) and module.momentum is None:
        why = "has momentum=None, which Keras does not have; use a number"
    elif isinstance(module, nn.LSTM | nn.RNN) and any(
        parameter.requires_grad
        for name, parameter in module.named_parameters()
        if name.startswith("bias_hh_")
    ):
        why = (
            "trains two biases, where Keras has one; freeze the second one, "
            "bias_hh_l0.requires_grad_(False); a twin sets it to 0"
        )
    if why:
        name = f"{path} ({type(module).__name__})" if path else type(module).__name__
        raise ConfigError(f"model.lightning: {name} {why}")


def use_runner_masks(model: nn.Module, state: ours.DropoutState) -> None:
    """Let the module's dropouts draw the runner's masks, which are the same on both frameworks."""
    dropouts = [module for module in model.modules() if type(module) is nn.Dropout and module.p]
    for index, module in enumerate(dropouts):
        masked = ours.Dropout(module.p, index, state)
        # as in layers.compiled: masks depend on Python numbers that change every step
        masked.keep = torch.compiler.disable(masked.keep)  # type: ignore[method-assign]
        module.forward = _masked(module, masked)  # type: ignore[method-assign, assignment]


def _masked(module: nn.Module, masked: ours.Dropout) -> Callable[[TorchTensor], TorchTensor]:
    def forward(x: TorchTensor) -> TorchTensor:
        return masked.train(module.training)(x)

    return forward


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
