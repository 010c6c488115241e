"""Twins with one planted difference each: `torch_NAME(planted)` and `keras_NAME()`, or the
difference is in Keras's. Without it they are the same model. Rows are images [8, 8, 1]."""

from typing import Any

import keras
import torch
from keras import layers, ops
from torch import nn


def _torch(*body: nn.Module, features: int = 64) -> nn.Module:
    return nn.Sequential(nn.Flatten(), *body, nn.Linear(features, 10))


def _keras(*body: Any) -> Any:
    return keras.Sequential([layers.Flatten(), *body, layers.Dense(10)])


def torch_batch_norm_epsilon(planted: bool) -> nn.Module:
    eps = 1e-5 if planted else 1e-3
    return _torch(nn.Linear(64, 8), nn.BatchNorm1d(8, eps, 0.01), nn.Tanh(), features=8)


def keras_batch_norm_epsilon() -> Any:
    return _keras(layers.Dense(8), layers.BatchNormalization(), layers.Activation("tanh"))


def torch_batch_norm_momentum(planted: bool) -> nn.Module:
    momentum = 0.1 if planted else 0.01
    return _torch(nn.Linear(64, 8), nn.BatchNorm1d(8, 1e-3, momentum), nn.Tanh(), features=8)


keras_batch_norm_momentum = keras_batch_norm_epsilon


def torch_layer_norm_epsilon(planted: bool) -> nn.Module:
    norm = nn.LayerNorm(8) if planted else nn.LayerNorm(8, 1e-3)
    return _torch(nn.Linear(64, 8), norm, nn.SiLU(), features=8)


def keras_layer_norm_epsilon() -> Any:
    return _keras(layers.Dense(8, activation=None), layers.LayerNormalization(), _silu())


def _silu() -> Any:
    return layers.Activation("silu")


class _Images(nn.Module):
    """A body of images, then its pixels with the channels last, as Keras flattens them."""

    def __init__(self, *body: nn.Module, features: int, channels_first: bool = False) -> None:
        super().__init__()
        self.body, self.flat = nn.Sequential(*body), nn.Flatten()
        self.head, self.channels_first = nn.Linear(features, 10), channels_first

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.body(x)
        y = y if self.channels_first else y.permute(0, 2, 3, 1)
        return self.head(self.flat(y))  # type: ignore[no-any-return]


def _keras_images(*body: Any) -> Any:
    return keras.Sequential([*body, layers.Flatten(), layers.Dense(10)])


def torch_padding(planted: bool) -> nn.Module:
    """Keras pads an even image only at its end."""
    if planted:
        return _Images(nn.Conv2d(1, 3, 3, 2, padding=1), nn.ReLU(), features=48)
    ends = nn.ZeroPad2d((0, 1, 0, 1))
    return _Images(ends, nn.Conv2d(1, 3, 3, 2), nn.ReLU(), features=48)


def keras_padding() -> Any:
    return _keras_images(layers.Conv2D(3, 3, 2, padding="same", activation="relu"))


def torch_flatten(planted: bool) -> nn.Module:
    body = nn.Conv2d(1, 3, 3), nn.ReLU()
    return _Images(*body, features=108, channels_first=planted)


def keras_flatten() -> Any:
    return _keras_images(layers.Conv2D(3, 3), layers.ReLU())


def torch_pooling(planted: bool) -> nn.Module:
    pool = nn.AvgPool2d(3, 1, padding=1, count_include_pad=planted)
    return _Images(nn.Conv2d(1, 3, 3, padding="same"), pool, features=192)


def keras_pooling() -> Any:
    pool = layers.AveragePooling2D(3, 1, padding="same")
    return _keras_images(layers.Conv2D(3, 3, padding="same"), pool)


def torch_groups(planted: bool) -> nn.Module:
    norm = nn.GroupNorm(3 if planted else 2, 6, eps=1e-3)
    return _Images(nn.Conv2d(1, 6, 3), norm, nn.ReLU(), features=216)


def keras_groups() -> Any:
    return _keras_images(layers.Conv2D(6, 3), layers.GroupNormalization(2), layers.ReLU())


def torch_transposed_kernel() -> nn.Module:
    return _torch(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())


class Transposed(layers.Dense):  # type: ignore[misc]
    def call(self, x: Any) -> Any:
        return ops.matmul(x, ops.transpose(self.kernel)) + self.bias


def keras_transposed_kernel(planted: bool) -> Any:
    second = (Transposed if planted else layers.Dense)(64)
    return _keras(layers.Dense(64, activation="relu"), second, layers.ReLU())


class _OwnLSTM(nn.LSTM):
    """An LSTM written out, with a choice of the order of two gates."""

    def __init__(self, swapped: bool) -> None:
        super().__init__(8, 6, batch_first=True)
        self.bias_hh_l0.requires_grad_(False)
        self.swapped = swapped

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        h = c = torch.zeros(len(x), 6, dtype=x.dtype)
        for step in x.unbind(1):
            sums = step @ self.weight_ih_l0.T + self.bias_ih_l0 + h @ self.weight_hh_l0.T
            i, f, g, o = sums.chunk(4, 1)
            g, o = (o, g) if self.swapped else (g, o)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
        return h


class _Rows(nn.Module):
    """The rows of the images as a sequence, then a layer."""

    def __init__(self, layer: nn.Module, features: int) -> None:
        super().__init__()
        self.layer, self.head = layer, nn.Linear(features, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.flatten(1, 2)
        if not isinstance(self.layer, nn.MultiheadAttention):
            return self.head(self.layer(rows))  # type: ignore[no-any-return]
        y = self.layer(rows, rows, rows)[0].mean(1)
        return self.head(y)  # type: ignore[no-any-return]


def torch_gate_order(planted: bool) -> nn.Module:
    return _Rows(_OwnLSTM(planted), 6)


def keras_gate_order() -> Any:
    return keras.Sequential([layers.Reshape((8, 8)), layers.LSTM(6), layers.Dense(10)])


def torch_heads(planted: bool) -> nn.Module:
    return _Rows(nn.MultiheadAttention(8, 4 if planted else 2, batch_first=True), 8)


def keras_heads() -> Any:
    x = keras.Input((8, 8, 1))
    rows = layers.Reshape((8, 8))(x)
    y = layers.MultiHeadAttention(2, 4)(rows, rows)
    return keras.Model(x, layers.Dense(10)(layers.GlobalAveragePooling1D()(y)))


def torch_missing_bias(planted: bool) -> nn.Module:
    return _torch(nn.Linear(64, 8, bias=not planted), nn.ELU(), features=8)


def keras_missing_bias() -> Any:
    return _keras(layers.Dense(8, activation="elu"))


def torch_gelu(planted: bool) -> nn.Module:
    gelu = nn.GELU("tanh" if planted else "none")
    return _torch(nn.Linear(64, 8), gelu, features=8)


def keras_gelu() -> Any:
    return _keras(layers.Dense(8, activation="gelu"))


def torch_slope(planted: bool) -> nn.Module:
    slope = nn.LeakyReLU() if planted else nn.LeakyReLU(0.2)
    return _torch(nn.Linear(64, 8), slope, features=8)


def keras_slope() -> Any:
    return _keras(layers.Dense(8), layers.LeakyReLU(0.2))


def torch_rate(planted: bool) -> nn.Module:
    return _torch(nn.Linear(64, 8), nn.Dropout(0.5 if planted else 0.3), features=8)


def keras_rate() -> Any:
    return _keras(layers.Dense(8), layers.Dropout(0.3))


class _Functions(nn.Module):
    """Activations and a flatten that are no modules."""

    def __init__(self, channels_first: bool = False, tanh: bool = False) -> None:
        super().__init__()
        self.conv, self.hidden = nn.Conv2d(1, 2, 3), nn.Linear(72, 8)
        self.head, self.channels_first, self.tanh = nn.Linear(8, 10), channels_first, tanh

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.conv(x))
        y = y if self.channels_first else y.permute(0, 2, 3, 1)
        how = "tanh" if self.tanh else "none"
        hidden = nn.functional.gelu(self.hidden(y.flatten(1)), approximate=how)
        return self.head(hidden)  # type: ignore[no-any-return]


def torch_flatten_function(planted: bool) -> nn.Module:
    return _Functions(channels_first=planted)


def torch_gelu_function(planted: bool) -> nn.Module:
    return _Functions(tanh=planted)


class _KerasFunctions(keras.Model):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.hidden = layers.Conv2D(2, 3), layers.Dense(8)
        self.head = layers.Dense(10)

    def call(self, x: Any) -> Any:
        y = ops.reshape(ops.relu(self.conv(x)), (-1, 72))
        return self.head(ops.gelu(self.hidden(y), approximate=False))


def keras_flatten_function() -> Any:
    return _KerasFunctions()


keras_gelu_function = keras_flatten_function


class _Shortcut(nn.Module):
    def __init__(self, detached: bool) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(64, 8), nn.Linear(8, 8), nn.Linear(8, 10)
        self.detached = detached

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.tanh(self.first(x.flatten(1)))
        inner = y.detach() if self.detached else y
        return self.head(y + self.second(inner))  # type: ignore[no-any-return]


def torch_detached(planted: bool) -> nn.Module:
    return _Shortcut(planted)


def keras_detached() -> Any:
    x = keras.Input((8, 8, 1))
    y = layers.Dense(8, activation="tanh")(layers.Flatten()(x))
    return keras.Model(x, layers.Dense(10)(layers.Add()([y, layers.Dense(8)(y)])))


def torch_frozen(planted: bool) -> nn.Module:
    net = _torch(nn.Linear(64, 8), nn.Sigmoid(), features=8)
    if planted:
        net[1].weight.requires_grad_(False)  # type: ignore[index]
    return net


def keras_frozen() -> Any:
    return _keras(layers.Dense(8, activation="sigmoid"))


class _Tokens(nn.Module):
    """Pixels as tokens; LSTMs in two levels, then a GRU in both directions, of which Keras returns
    the last steps alone."""

    def __init__(self, other_cell: bool) -> None:
        super().__init__()
        self.table = nn.Embedding(17, 6)
        self.levels = nn.LSTM(6, 5, num_layers=2, batch_first=True)
        for name, parameter in self.levels.named_parameters():
            parameter.requires_grad_(not name.startswith("bias_hh"))
        self.both = nn.GRU(5, 4, batch_first=True, bidirectional=True)
        kind = "relu" if other_cell else "tanh"
        self.last = nn.RNN(8, 4, batch_first=True, nonlinearity=kind)
        self.last.bias_hh_l0.requires_grad_(False)
        self.gru = nn.GRU(8, 3, batch_first=True, bidirectional=True)
        self.head = nn.Linear(10, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = (x.flatten(1)[:, 20:29] * 16).long()
        y = self.both(self.levels(self.table(tokens))[0])[0]
        _, (forward, backward) = self.gru(y)
        z: torch.Tensor = self.head(torch.cat([self.last(y)[0][:, -1], forward, backward], 1))
        return z


def torch_recurrent(planted: bool) -> nn.Module:
    return _Tokens(planted)


def keras_recurrent() -> Any:
    x = keras.Input((8, 8, 1))
    tokens = ops.cast(ops.reshape(x, (-1, 64))[:, 20:29] * 16, "int32")
    y = layers.Embedding(17, 6)(tokens)
    for _ in range(2):
        y = layers.LSTM(5, return_sequences=True)(y)
    y = layers.Bidirectional(layers.GRU(4, return_sequences=True))(y)
    last, both = layers.SimpleRNN(4)(y), layers.Bidirectional(layers.GRU(3))(y)
    return keras.Model(x, layers.Dense(10)(layers.Concatenate()([last, both])))


def torch_convolutions(planted: bool) -> nn.Module:
    """All kinds of convolutions, and a batch norm of a sequence."""
    images = (nn.Conv2d(1, 4, 3), nn.Conv2d(4, 8, 3, groups=4), nn.Conv2d(8, 6, 3, groups=2))
    steps = nn.Conv1d(4, 5, 3, padding=2 if planted else 0)
    return nn.Sequential(
        *(*images, nn.Tanh(), nn.ConvTranspose2d(6, 3, 3), _Steps(), steps),
        *(nn.BatchNorm1d(5, 1e-3, 0.01), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(5, 10)),
    )


class _Steps(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.permute(0, 2, 3, 1).reshape(-1, 12, 4).transpose(1, 2)


def keras_convolutions() -> Any:
    images = (layers.Conv2D(4, 3), layers.Conv2D(8, 3, groups=4), layers.Conv2D(6, 3, groups=2))
    return keras.Sequential(
        [
            *(*images, layers.Activation("tanh"), layers.Conv2DTranspose(3, 3)),
            *(layers.Reshape((12, 4)), layers.Conv1D(5, 3), layers.BatchNormalization()),
            *(layers.GlobalAveragePooling1D(), layers.Dense(10)),
        ]
    )


class _TwoOutputs(nn.Module):
    def __init__(self, name: str, planted: bool) -> None:
        super().__init__()
        self.body, self.size, self.head = nn.Linear(64, 8), nn.Linear(8, 1), nn.Linear(8, 10)
        self.name, self.planted = name, planted

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        h = self.body(x.flatten(1)).tanh()
        return {self.name: self.size(h)[:, 0], "logits": self.head(h) * (1 + self.planted)}


def torch_two_outputs(planted: bool, name: str = "size") -> nn.Module:
    return _TwoOutputs(name, planted)


def keras_two_outputs() -> Any:
    """The outputs have another order than torch's."""
    x = keras.Input((8, 8, 1))
    h = layers.Dense(8, activation="tanh")(layers.Flatten()(x))
    size = ops.squeeze(layers.Dense(1)(h), 1)
    return keras.Model(x, {"logits": layers.Dense(10)(h), "size": size})


def loss_two_outputs(outputs: dict[str, Any], batch: Any) -> Any:
    return (outputs["logits"] ** 2).mean() + outputs["size"].mean()
