"""Files of a trained model that TensorFlow and LiteRT load: SavedModel and TFLite. The scaling of
raw rows, for every format.

In a SavedModel and a TFLite file, the input is `x`  # [N, ...] for any N. The output is `y`, or the
names of several outputs.
"""

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from backends.keras import custom
from runner.data.dataset import Scaling
from runner.errors import ConfigError, one_line
from runner.spec import ModelSpec

_PRECISIONS = ("float32", "exact")  # of a TFLite file


def check_dtype(model: ModelSpec) -> None:
    """Refuse the precisions for which LiteRT has no operations."""
    if model.precision not in _PRECISIONS:
        raise ConfigError(
            f"format=tflite needs trainer.precision to be float32 or exact, got "
            f"{model.precision}; format=savedmodel takes it"
        )


def write(network: keras.Model, model: ModelSpec, path: Path) -> None:
    """Write a SavedModel, or a TFLite file for the suffix .tflite."""
    if path.suffix != ".tflite":
        _save(network, model, path)
        return
    with TemporaryDirectory(dir=path.parent) as folder, _unrolled(network):
        _save(network, model, Path(folder))
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
        try:
            content = converter.convert()
            _try(content, model)
        except Exception as error:  # ConverterError, or RuntimeError of the interpreter
            raise ConfigError(
                f"format=tflite cannot hold this model: {_cause(str(error))}; format=savedmodel can"
            ) from error
    path.write_bytes(content)


@contextmanager
def _unrolled(network: keras.Model) -> Iterator[None]:
    """Unroll recurrent layers in the block: LiteRT has no lists of tensors."""
    layers = custom.all_layers(network)
    for layer in [each for each in layers if isinstance(each, keras.layers.Bidirectional)]:
        layers += [layer.forward_layer, layer.backward_layer]
    recurrent = [x for x in layers if isinstance(x, keras.layers.RNN) and not x.unroll]
    for layer in recurrent:
        layer.unroll = True
    try:
        yield
    finally:
        for layer in recurrent:
            layer.unroll = False


def _try(content: bytes, model: ModelSpec) -> None:
    """Run the file with batches of two sizes. The interpreter raises RuntimeError for a model that
    the converter has written, and that LiteRT cannot run."""
    with warnings.catch_warnings():  # it will be a package of its own
        warnings.simplefilter("ignore", UserWarning)
        call = tf.lite.Interpreter(model_content=content).get_signature_runner()
    for num_rows in (1, 3):
        call(x=np.zeros((num_rows, *model.network.input_shape), model.input_dtype))


def _save(network: keras.Model, model: ModelSpec, folder: Path) -> None:
    several = model.network.outputs

    def serve(x: tf.Tensor) -> dict[str, tf.Tensor]:
        y = network(x, training=False)
        if several is None:
            return {"y": y}
        return dict(zip(several.names, several.values(y), strict=True))

    archive = keras.export.ExportArchive()
    archive.track(network)
    rows = tf.TensorSpec((None, *model.network.input_shape), model.input_dtype.name, name="x")
    archive.add_endpoint("serve", serve, input_signature=[rows])
    archive.write_out(folder, verbose=False)


def _cause(message: str) -> str:
    """Shorten an error, which may list every operation of the graph."""
    missing = re.search(r"^\s*(?:TF Select|Custom) ops: (.*)$", message, re.MULTILINE)
    if missing:
        return f"LiteRT has no {missing[1]} of these shapes"
    said = re.search(r"\)\): (?!Error code)(\S.*)$", message, re.MULTILINE)
    return f"LiteRT: {one_line(said[1] if said else message)[:200]}"


def rescaled(x: Any, offset: np.ndarray, scale: np.ndarray) -> Any:
    """Return (x - offset) / scale, in float64."""
    return _affine(_affine(x, 1.0, -offset, "float64"), 1 / scale, 0.0, "float64")


def rescaled_in_float32(x: Any, offset: np.ndarray, scale: np.ndarray) -> Any:
    """Return (x - offset) / scale, in float32, for an engine without float64.

    The offset is the sum of two float32 numbers, high and low. x - high is exact for x near high,
    so that the result of a column such as a year has the error of float32, not that of x / scale.
    """
    high = offset.astype(np.float32)
    low = (offset - high).astype(np.float32)
    near = _affine(_affine(x, 1.0, -high, "float32"), 1.0, -low, "float32")
    return _affine(near, (1 / scale).astype(np.float32), 0.0, "float32")


def in_units(y: Any, scaling: Scaling | None, dtype: str, computed_in: str = "float64") -> Any:
    """Return outputs in the data's units, y * scale + offset, in the model's dtype; without a
    scaling the outputs themselves, which may be a tuple or a dict."""
    if scaling is not None:
        y = _affine(y, scaling.scale, scaling.offset, computed_in)
    return keras.tree.map_structure(keras.layers.Activation("linear", dtype=dtype), y)


def _affine(x: Any, scale: np.ndarray | float, offset: np.ndarray | float, dtype: str) -> Any:
    """Apply x * scale + offset with a stock layer. The numbers are arrays: Keras converts lists to
    float32."""
    return keras.layers.Rescaling(scale, offset, dtype=dtype)(x)
