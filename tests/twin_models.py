"""Twins, as a user would write them: for each function of torch, one of Keras."""

from typing import Any


def torch_small(width: int = 24) -> Any:
    from torch import nn

    return nn.Sequential(
        *(nn.Linear(64, width), nn.LayerNorm(width, eps=1e-3), nn.GELU(), nn.Dropout(0.3)),
        *(nn.Linear(width, 16, bias=False), nn.BatchNorm1d(16, eps=1e-3, momentum=0.01)),
        *(nn.LeakyReLU(0.2), nn.Linear(16, 10)),
    )


def keras_small(width: int = 24) -> Any:
    from keras import Sequential, layers

    return Sequential(
        [
            *(layers.Dense(width), layers.LayerNormalization(), layers.Activation("gelu")),
            *(layers.Dropout(0.3), layers.Dense(16, use_bias=False)),
            *(layers.BatchNormalization(), layers.LeakyReLU(0.2), layers.Dense(10)),
        ]
    )


def keras_unnormed(width: int = 24) -> Any:
    from keras import Sequential, layers

    return Sequential([layers.Dense(width), layers.Dense(10)])


def torch_large() -> Any:
    """Images as sequences of rows: most kinds of layers, in subclasses."""
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 6, 3, padding=1)
            self.norm = nn.BatchNorm2d(6, eps=1e-3, momentum=0.01)
            self.depthwise = nn.Conv2d(6, 12, 3, padding=1, groups=6)
            self.groups = nn.GroupNorm(3, 12, eps=1e-3)
            self.drop = nn.Dropout(0.3)
            self.rnn = nn.GRU(96, 10, batch_first=True, bidirectional=True)
            self.position = nn.Parameter(torch.zeros(8, 20))
            self.attention = nn.MultiheadAttention(20, 2, batch_first=True)
            self.layer_norm = nn.LayerNorm(20, eps=1e-3)
            self.lstm = nn.LSTM(20, 7, batch_first=True)
            self.lstm.bias_hh_l0.requires_grad_(False)
            self.body = nn.Sequential(nn.Linear(56, 24), nn.PReLU(24), nn.Dropout(0.2))
            self.head = nn.Linear(24, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.relu(self.norm(self.conv(x)))
            x = self.drop(self.groups(self.depthwise(x))).permute(0, 2, 3, 1).flatten(2)
            x = self.rnn(x)[0] + self.position
            x = self.layer_norm(x + self.attention(x, x, x)[0])
            x, _ = self.lstm(x)
            return self.head(self.body(x.flatten(1)))  # type: ignore[no-any-return]

    return Net()


def keras_large() -> Any:
    import keras
    from keras import layers, ops

    class Net(keras.Model):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.conv = layers.Conv2D(6, 3, padding="same")
            self.norm = layers.BatchNormalization()
            self.depthwise = layers.DepthwiseConv2D(3, depth_multiplier=2, padding="same")
            self.groups = layers.GroupNormalization(3)
            self.drop = layers.Dropout(0.3)
            self.rnn = layers.Bidirectional(layers.GRU(10, return_sequences=True))
            self.position = self.add_weight(shape=(8, 20), name="position")
            self.attention = layers.MultiHeadAttention(2, 10)
            self.layer_norm = layers.LayerNormalization()
            self.lstm = layers.LSTM(7, return_sequences=True)
            self.hidden = layers.Dense(24)
            self.prelu = layers.PReLU()
            self.drop2 = layers.Dropout(0.2)
            self.head = layers.Dense(10)

        def call(self, x: Any, training: bool = False) -> Any:
            x = ops.relu(self.norm(self.conv(x), training=training))
            x = self.drop(self.groups(self.depthwise(x)), training=training)
            x = self.rnn(ops.reshape(x, (-1, 8, 96))) + self.position
            x = self.layer_norm(x + self.attention(x, x))
            x = ops.reshape(self.lstm(x), (-1, 56))
            return self.head(self.drop2(self.prelu(self.hidden(x)), training=training))

    return Net()


def torch_reordered() -> Any:
    """The head is defined first; a table of scales is a parameter."""
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.first = nn.Linear(16, 10), nn.Linear(64, 24)
            self.second = nn.Linear(24, 16, bias=False)
            self.scale = nn.Parameter(torch.ones(64))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(torch.tanh(self.second(self.first(x * self.scale))))

    return Net()


def keras_reordered() -> Any:
    """The product with torch's `second` is a layer of another kind."""
    import keras
    from keras import layers, ops

    class Net(keras.Model):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.scale = self.add_weight(shape=(64,), name="scale")
            self.first = layers.Dense(24, name="first")
            self.second = layers.EinsumDense("bi,io->bo", 16, name="second")
            self.head = layers.Dense(10, name="head")

        def call(self, x: Any) -> Any:
            return self.head(ops.tanh(self.second(self.first(x * self.scale))))

    return Net()


def torch_headed() -> Any:
    """Two outputs."""
    from torch import nn

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.size, self.head = nn.Linear(64, 16), nn.Linear(16, 1), nn.Linear(16, 10)
            self.drop = nn.Dropout(0.2)

        def forward(self, x: Any) -> Any:
            h = self.drop(self.body(x).tanh())
            return {"size": self.size(h)[:, 0], "logits": self.head(h)}

    return Net()


def keras_headed() -> Any:
    import keras
    from keras import layers, ops

    x = keras.Input((64,))
    h = layers.Dropout(0.2)(layers.Dense(16, activation="tanh", name="body")(x))
    logits, size = layers.Dense(10)(h), layers.Dense(1)(h)
    return keras.Model(x, {"size": ops.squeeze(size, 1), "logits": logits})


def headed(outputs: Any, batch: Any) -> Any:
    """The cross-entropy of one output plus a tenth of the square error of the other."""
    z, size, (x, y) = outputs["logits"], outputs["size"], batch
    if type(z).__module__.startswith("torch"):
        from torch.nn import functional

        loss: Any = functional.cross_entropy(z, y) + 0.1 * functional.mse_loss(size, x.mean(1))
        return loss
    from keras import ops

    log_p = ops.take_along_axis(ops.log_softmax(z), y[:, None], axis=1)
    return 0.1 * ops.mean((size - ops.mean(x, axis=1)) ** 2) - ops.mean(log_p)


def largest(outputs: Any, targets: Any) -> float:
    return float(outputs["size"].max())
