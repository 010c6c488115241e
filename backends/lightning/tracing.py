"""Follows one batch through a twin's torch module, layer by layer."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from backends.lightning import custom, device, layers, objective, twin
from runner.components.custom import CustomNetwork
from runner.components.layers import padding_same
from runner.components.twins import Call, Trace
from runner.data.source import Batch
from runner.spec import ModelSpec, TrainState

_ACTIVATIONS: Mapping[type[nn.Module], str] = {
    nn.ReLU: "relu", nn.GELU: "gelu", nn.LeakyReLU: "leaky_relu", nn.SiLU: "silu",
    nn.ELU: "elu", nn.SELU: "selu", nn.Tanh: "tanh", nn.Sigmoid: "sigmoid",
    nn.Softplus: "softplus", nn.Softmax: "softmax", nn.Mish: "mish", nn.ReLU6: "relu6",
    nn.Hardswish: "hard_swish", nn.Hardsigmoid: "hard_sigmoid",
}  # fmt: skip
_OTHERS: Mapping[str, tuple[type[nn.Module], ...]] = {
    "max_pool": (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d),
    "average_pool": (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    "global_average_pool": (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
    "flatten": (nn.Flatten,),
    "dropout": (nn.Dropout,),
}


def trace(model: ModelSpec, state: TrainState, rows: Batch, loss: Any) -> Trace:
    """Run one batch in evaluation, then in training with its backward pass, on the CPU."""
    dropout_state = layers.DropoutState(0)
    with device.settings(model), _float64():
        assert isinstance(model.network, CustomNetwork)
        network = custom.build(model.network, torch.float64, dropout_state)
        layers.load_state(network, state)
        x, y = (torch.from_numpy(rows[name]) for name in ("x", "y"))
        network.eval()
        with torch.no_grad(), _recorded(network) as evaluation:
            network(x)
        network.train()
        function = None if loss is None else objective.own_function(loss)
        with _recorded(network) as training:
            if loss is None:
                outputs = network(x)
                value = outputs.square().mean()
            else:
                outputs, value = objective.forward(loss, function, network)(x, y)
        value.backward()  # type: ignore[no-untyped-call]
    tensors = network.named()
    gradients = {
        name: np.zeros(t.shape) if t.grad is None else network.to_canonical(t.grad)
        for name, t in tensors.items()
        if t.requires_grad
    }
    buffers = {name: network.to_canonical(tensors[name]) for name in state.buffers}
    numpy: np.ndarray = outputs.detach().numpy()
    return Trace(evaluation, training, numpy, float(value.detach()), gradients, buffers)


@contextmanager
def outputs_of_layers(network: nn.Module) -> Iterator[list[tuple[str, Tensor]]]:
    """Collect the outputs of the layers of a network that is called in the block, by name."""
    found: list[tuple[str, Tensor]] = []

    def hook(name: str) -> Callable[..., None]:
        def record(module: nn.Module, args: Any, output: Any) -> None:
            tensor = output[0] if isinstance(output, tuple) and output else output
            if isinstance(tensor, Tensor):
                found.append((name, tensor.clone()))

        return record

    hooks = [
        module.register_forward_hook(hook(path.partition(".")[2]))
        for path, module in network.named_modules()
        if path not in ("", "body", "model")  # the whole model
    ]
    try:
        yield found
    finally:
        for handle in hooks:
            handle.remove()


@contextmanager
def _float64() -> Iterator[None]:
    """Make float64 torch's default in the block, as Lightning does for a run in float64: products
    of a mask and a Python number have the default."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def _recorded(network: custom.Network) -> Iterator[list[Call]]:
    """Record the calls of the module's layers in the block."""
    calls: list[Call] = []
    names = {id(tensor): name for name, tensor in network.named().items()}
    hooks = []
    inside: list[str] = []
    for path, module in network.model.named_modules():
        if any(path.startswith(f"{outer}.") for outer in inside):
            continue
        kind = _kind(path, module)
        if kind is not None:
            inside.append(path)
            hook = _hook(calls, kind, path, names)
            hooks.append(module.register_forward_hook(hook, with_kwargs=True))
    try:
        yield calls
    finally:
        for handle in hooks:
            handle.remove()


def _kind(path: str, module: nn.Module) -> str | None:
    known = next(iter(twin.known(path, module)), None)
    if known is not None:
        return known.kind
    if type(module) in _ACTIVATIONS:
        return "activation"
    return next((kind for kind, bases in _OTHERS.items() if isinstance(module, bases)), None)


def _hook(calls: list[Call], kind: str, path: str, names: Mapping[int, str]) -> Callable[..., None]:
    def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        x = _array(args[0] if args else next(iter(kwargs.values())))
        y = _array(output[0] if isinstance(output, tuple) else output)
        if not getattr(module, "batch_first", True):
            x, y = x.swapaxes(0, 1), y.swapaxes(0, 1)
        parameters = [*module.parameters(), *module.buffers()]
        tensors = tuple(names[id(t)] for t in parameters if id(t) in names)
        calls.append(Call(kind, path or kind, tensors, _settings(module, x), x, y))

    return hook


def _array(tensor: Tensor) -> np.ndarray:
    array: np.ndarray = tensor.detach().numpy().copy()
    return array


def _settings(module: Any, x: np.ndarray) -> dict[str, Any]:
    """Return the settings of a layer that may differ, in Keras's words."""
    match module:
        case nn.BatchNorm1d() | nn.BatchNorm2d() | nn.BatchNorm3d():
            return {"epsilon": module.eps, "momentum": round(1 - (module.momentum or 0), 15)}
        case nn.LayerNorm():
            return {"epsilon": module.eps, "axes": len(module.normalized_shape)}
        case nn.RMSNorm():
            return {"epsilon": torch.finfo(torch.float64).eps if module.eps is None else module.eps}
        case nn.GroupNorm():
            return {"epsilon": module.eps, "groups": module.num_groups}
        case nn.Conv1d() | nn.Conv2d() | nn.Conv3d():
            return {
                "strides": module.stride,
                "dilation": module.dilation,
                "padding": _pads(module, module.kernel_size, module.stride, x),
                "groups": module.groups,
            }
        case nn.MultiheadAttention():
            return {"heads": module.num_heads}
        case nn.LSTM() | nn.GRU():
            return {"bidirectional": module.bidirectional}
        case nn.RNN():
            return {"bidirectional": module.bidirectional, "activation": module.nonlinearity}
        case nn.Dropout():
            return {"rate": module.p}
        case nn.Embedding():
            return {"vocabulary": module.num_embeddings}
    if type(module) in _ACTIVATIONS:
        return _activation(module)
    if hasattr(module, "kernel_size"):
        num = x.ndim - 2
        size, stride = (_each(value, num) for value in (module.kernel_size, module.stride))
        pads = _pads(module, size, stride, x)
        is_counted = getattr(module, "count_include_pad", None)
        is_average = is_counted is not None and any(map(any, pads))
        padded = {"counts_padding": is_counted} if is_average else {}
        return {"window": size, "strides": stride, "padding": pads, **padded}
    return {}


def _activation(module: Any) -> dict[str, Any]:
    settings: dict[str, Any] = {"function": _ACTIVATIONS[type(module)]}
    if isinstance(module, nn.GELU):
        settings["approximate"] = module.approximate == "tanh"
    if isinstance(module, nn.LeakyReLU):
        settings["slope"] = module.negative_slope
    if isinstance(module, nn.ELU):
        settings["alpha"] = module.alpha
    return settings


def _each(value: Any, num: int) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, tuple) else (value,) * num


def _pads(module: Any, window: Any, stride: Any, x: np.ndarray) -> tuple[tuple[int, int], ...]:
    """Return the (low, high) padding of each axis."""
    sizes = x.shape[2:]
    if module.padding == "same":
        return tuple(
            padding_same(size, w, s) for size, w, s in zip(sizes, window, stride, strict=True)
        )
    padding = 0 if module.padding == "valid" else module.padding
    return tuple((pad, pad) for pad in _each(padding, len(sizes)))
