"""The models in keras.layers, for both TensorFlow peers: conf/model/mlp.yaml and the models
of benchmarks/conf/model."""

from typing import Any

import keras
from keras import layers


def network(model: str) -> keras.Model:
    if model == "mlp":
        return keras.Sequential(
            [keras.Input((64,)), layers.Dense(128, activation="relu"), layers.Dense(10)]
        )
    if model in ("cnn", "resnet"):
        return _small(model)
    if model == "transformer":
        return _transformer(width=32, num_heads=4, hidden=64)
    if model == "mlp_4m":
        hidden = [layers.Dense(1650, activation="relu") for _ in range(2)]
        return keras.Sequential(
            [keras.Input((28, 28, 1)), layers.Flatten(), *hidden, layers.Dense(10)]
        )
    image = keras.Input((32, 32, 3))
    blocks = [layer for filters in (32, 64, 128) for layer in _block(filters)]
    head = [
        layers.Flatten(),
        layers.Dense(448, activation="relu"),
        layers.Dropout(0.25),
        layers.Dense(10),
    ]
    return keras.Sequential([image, *blocks, *head])


def _small(model: str) -> keras.Model:
    if model == "cnn":
        head = [layers.Flatten(), layers.Dropout(0.25), layers.Dense(10)]
        return keras.Sequential([keras.Input((8, 8, 1)), *_block(16), *_block(32), *head])
    image = keras.Input((8, 8, 1))
    x = layers.Activation("relu")(_normed(image, 16, 3, 1))
    for filters, stride in ((16, 1), (32, 2)):
        main = layers.Activation("relu")(_normed(x, filters, 3, stride))
        shortcut = x if stride == 1 else _normed(x, filters, 1, stride)
        x = layers.Activation("relu")(layers.Add()([_normed(main, filters, 3, 1), shortcut]))
    return keras.Model(image, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))


class _Positions(layers.Layer):
    def build(self, shape: Any) -> None:
        self.embedding = self.add_weight(shape=shape[1:], name="embedding")

    def call(self, x: Any) -> Any:
        return x + self.embedding


def _transformer(width: int, num_heads: int, hidden: int) -> keras.Model:
    image = keras.Input((8, 8, 1))
    x = _Positions()(layers.Reshape((-1, width))(layers.Conv2D(width, 2, strides=2)(image)))
    for _ in range(2):
        y = layers.LayerNormalization(epsilon=1e-5)(x)
        x = layers.Add()(
            [x, layers.MultiHeadAttention(num_heads, width // num_heads, use_bias=False)(y, y)]
        )
        y = layers.LayerNormalization(epsilon=1e-5)(x)
        y = layers.Dense(width)(layers.Dense(hidden, activation="gelu")(y))
        x = layers.Add()([x, y])
    x = layers.GlobalAveragePooling1D()(layers.LayerNormalization(epsilon=1e-5)(x))
    return keras.Model(image, layers.Dense(10)(x))


def _normed(x: keras.KerasTensor, filters: int, size: int, stride: int) -> keras.KerasTensor:
    x = layers.Conv2D(filters, size, strides=stride, padding="same", use_bias=False)(x)
    return layers.BatchNormalization(momentum=0.9, epsilon=1e-5)(x)


def _block(filters: int) -> list[layers.Layer]:
    return [
        layers.Conv2D(filters, 3, padding="same", use_bias=False),
        layers.BatchNormalization(momentum=0.9, epsilon=1e-5),
        layers.Activation("relu"),
        layers.MaxPooling2D(2),
    ]
