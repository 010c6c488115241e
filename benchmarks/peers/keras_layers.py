"""The models in keras.layers, for both TensorFlow peers: conf/model/mlp.yaml and those of benchmarks/conf/model."""

import keras
from keras import layers


def network(model: str) -> keras.Model:
    if model == "mlp":
        return keras.Sequential([keras.Input((64,)), layers.Dense(128, activation="relu"), layers.Dense(10)])
    image = keras.Input((32, 32, 3))
    if model == "mlp_4m":
        hidden = [layers.Dense(units, activation="relu") for units in (1024, 896)]
        return keras.Sequential([image, layers.Flatten(), *hidden, layers.Dense(10)])
    blocks = [layer for filters in (32, 64, 128) for layer in _block(filters)]
    head = [layers.Flatten(), layers.Dense(448, activation="relu"), layers.Dropout(0.25), layers.Dense(10)]
    return keras.Sequential([image, *blocks, *head])


def _block(filters: int) -> list[layers.Layer]:
    return [
        layers.Conv2D(filters, 3, padding="same", use_bias=False),
        layers.BatchNormalization(momentum=0.9, epsilon=1e-5),
        layers.Activation("relu"),
        layers.MaxPooling2D(2),
    ]
