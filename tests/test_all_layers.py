"""Claims for every layer of the vocabulary, in the networks of tests/parity: an export predicts
what the run predicts, a training in 16 bits or compiled is the same training but for rounding."""

import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
import torch._dynamo

from runner import dispatcher
from runner.components.layers import Layer
from runner.components.loss_scale import SLOT, LossScale
from runner.errors import ConfigError
from runner.plan import Plan
from runner.spec import TrainState
from tests.command_line import BACKENDS
from tests.parity.test_parity import LAYERS, MODELS, TEXT
from tests.rows import long_but
from tests.training import differences, first, prepare, train

SIZES = (1, 3, 7)  # of batches
NETWORKS = {**LAYERS, "cnn": MODELS["cnn"]}
# which LiteRT cannot run: tensors of five dimensions, a tied kernel
NOT_TFLITE = {"upsampling2d", "llama", "grouped_attention", "rotary", "tied"}
TFLITE = [name for name in NETWORKS if name not in NOT_TFLITE]
SOME = ["activations", "cnn", "tokens"]
# compiling takes seconds, so networks with several layers stand for those with one of them
COMPILED = [
    "dropout", "batch_norm", "layer_norm", "conv2d", "conv_grouped",
    "conv2d_transpose", "resnet", "llama", "conv1d_grouped", "gru", "lstm",
    "masked_recurrent", "masked_attention", "squeeze_excite", "stochastic_depth", "group_norm",
]  # fmt: skip
# and each kind of kernel in 16 bits on Keras, whose policy is one for all layers
ON_KERAS = [
    "batch_norm", "conv2d", "conv_grouped", "conv2d_transpose", "depthwise_conv2d", "attention",
    "grouped_attention", "tokens", "conv1d", "gru", "lstm", "group_norm", "masked_recurrent",
]  # fmt: skip
STEPS = ["trainer.max_steps=4", "device=cpu"]
IN_16_BITS = [
    *(("lightning", name) for name in LAYERS),
    *(("keras", name) for name in ON_KERAS),
]
COMPILINGS = [(backend, name) for backend in BACKENDS for name in COMPILED]

# loads each file of a folder and predicts the rows beside it
ALONE = """
import os, sys
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
from pathlib import Path
import numpy as np
for path in Path(sys.argv[1]).glob("*.x.npy"):
    stem = path.name.removesuffix(".x.npy")
    if (file := path.with_name(stem + ".onnx")).exists():
        import onnxruntime
        model = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        assert model.get_inputs()[0].shape[0] == "rows"
        call = lambda x: model.run(["y"], {"x": x})[0]
    elif (file := path.with_name(stem + ".keras")).exists():
        import keras
        model = keras.models.load_model(file)
        call = lambda x: np.asarray(model(x))
    elif (file := path.with_name(stem + ".savedmodel")).exists():
        import tensorflow
        model = tensorflow.saved_model.load(file)
        call = lambda x: np.asarray(model.serve(x)["y"])
    elif (file := path.with_name(stem + ".tflite")).exists():
        import tensorflow
        model = tensorflow.lite.Interpreter(str(file)).get_signature_runner()
        call = lambda x: model(x=x)["y"]
    else:
        import torch
        model = torch.export.load(path.with_name(stem + ".pt2")).module()
        call = lambda x: model(torch.from_numpy(x)).detach().numpy()
    x = np.load(path)
    assert "runner" not in sys.modules and "backends" not in sys.modules
    np.savez(path.with_name(stem + ".z.npz"), *(call(x[:n]) for n in {sizes}))
""".replace("{sizes}", str(SIZES))


def test_every_layer_has_a_row() -> None:
    kinds = {kind.model_fields["layer"].annotation for kind in get_args(get_args(Layer)[0])}
    named = set(re.findall(r"layer:\s*(\w+)", str(LAYERS)))
    # blank_padding needs sequences of labels: tests/test_transcription.py
    assert {get_args(kind)[0] for kind in kinds} <= named | {"blank_padding"}


def _with_noise(prepared: Plan) -> TrainState:
    """Return a first state in which no bias is 0, no scale and no running variance is 1."""
    rng, start = np.random.default_rng(0), first(prepared)

    def moved(values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {
            name: value + (0.2 * rng.random(value.shape) - 0.1).astype(value.dtype)
            for name, value in values.items()
        }

    return replace(start, weights=moved(start.weights), buffers=moved(start.buffers))


def _rows(prepared: Plan, num: int) -> np.ndarray:
    return np.ascontiguousarray(prepared.data.train.x[:num], prepared.model.input_dtype)


@pytest.mark.parametrize(
    ("backend", "suffix", "names"),
    [
        pytest.param("lightning", "pt2", SOME, id="torch-some", marks=pytest.mark.slow),
        pytest.param("keras", "keras", SOME, id="keras-some", marks=pytest.mark.slow),
        pytest.param("lightning", "onnx", ["tokens"], id="onnx-tokens", marks=pytest.mark.slow),
        pytest.param("lightning", "pt2", list(NETWORKS), id="torch-all", marks=pytest.mark.slow),
        pytest.param("keras", "keras", list(NETWORKS), id="keras-all", marks=pytest.mark.slow),
        pytest.param("lightning", "onnx", list(NETWORKS), id="onnx-all", marks=pytest.mark.slow),
        pytest.param("keras", "savedmodel", SOME, id="savedmodel-some", marks=pytest.mark.slow),
        pytest.param(
            "keras", "savedmodel", list(NETWORKS), id="savedmodel-all", marks=pytest.mark.long
        ),
        pytest.param(
            "keras",
            "tflite",
            ["activations", "tokens", "gru"],
            id="tflite-some",
            marks=pytest.mark.slow,
        ),
        pytest.param("keras", "tflite", TFLITE, id="tflite-all", marks=pytest.mark.long),
    ],
)
def test_an_export_predicts_alone_what_the_run_predicts(
    backend: str, suffix: str, names: list[str], tmp_path: Path
) -> None:
    apart = _exported(backend, suffix, {name: NETWORKS[name] for name in names}, tmp_path)
    assert {name: value for name, value in apart.items() if not value < 1e-5} == {}


EXPORTS = (("lightning", "pt2"), ("keras", "keras"), ("lightning", "onnx"))
OF_SEQUENCES = ("gpt", "lstm", "bert", "bert_classifier", "gru", "tc_resnet", "ctc_gru")
_MODELS = [(*pair, name) for name in OF_SEQUENCES for pair in EXPORTS]
_SLOW = [("lightning", "pt2", "gpt"), ("keras", "keras", "ctc_gru"), ("lightning", "onnx", "gru")]


@pytest.mark.parametrize(("backend", "suffix", "model"), long_but(_MODELS, _SLOW))
def test_the_models_of_experiments_are_exported_for_any_length(
    backend: str, suffix: str, model: str, tmp_path: Path
) -> None:
    """Rows of three lengths; a text and a recording are shorter than their row. The networks of
    images and tables are among those of the layers."""
    lengths = {f"{n}": _sequences(model, n, tmp_path / f"{n}.npz") for n in (8, 20, 33)}
    apart = _exported(backend, suffix, lengths, tmp_path)
    assert {name: value for name, value in apart.items() if not value < 1e-5} == {}


def _sequences(model: str, length: int, path: Path) -> list[str]:
    """Rows for a model of conf/model: text, or noise with silence at its end."""
    if model in ("gpt", "lstm", "bert", "bert_classifier"):
        data = TEXT[:2]
        if model == "bert_classifier":
            data = ["data=python_docs", "data.chapters=true", "data.split=random"]
        elif model == "bert":
            data = [*data, "data.mask_rate=0.15"]
        return [*data, f"model={model}", f"data.context={length}"]
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, length, 12))
    x[np.arange(length) >= rng.integers(2, length + 1, 40)[:, None]] = 0
    y = rng.integers(0, 3, (40, 1) if model == "ctc_gru" else 40)
    np.savez(path, x=x, y=y)
    more = ["data.task=transcription"] if model == "ctc_gru" else []
    return ["data=npz", f"data.path={path}", f"model={model}", *more]


def _exported(
    backend: str, suffix: str, networks: Mapping[str, Sequence[str]], tmp_path: Path
) -> dict[str, float]:
    """Export networks, and let a process without code of this project predict batches of three
    sizes. Returns the largest difference from predict, relative to the largest output if that is
    above 1. It is below 1e-5: float32 outputs near 1, from kernels that sum in another order,
    differ by up to 1e-6."""
    expected = {}
    if suffix == "onnx":
        pytest.importorskip("onnxruntime")
    engine = dispatcher.load(backend)
    for name, overrides in networks.items():
        prepared = prepare([*overrides, "device=cpu"])
        state, x = _with_noise(prepared), _rows(prepared, max(SIZES))
        engine.export(prepared.model, state, tmp_path / f"{name}.{suffix}")
        np.save(tmp_path / f"{name}.x.npy", x)
        expected[name] = [engine.predict(prepared.model, state, {"x": x[:n]}) for n in SIZES]
    subprocess.run(
        [sys.executable, "-c", ALONE, tmp_path], check=True, cwd=tmp_path, stdout=subprocess.PIPE
    )
    apart = {}
    for name in networks:
        found = list(np.load(tmp_path / f"{name}.z.npz").values())
        assert [z.shape for z in found] == [z.shape for z in expected[name]], name
        apart[name] = max(
            np.abs(a - b).max() / max(1.0, np.abs(b).max())
            for a, b in zip(found, expected[name], strict=True)
        )
    return apart


def test_without_onnxscript_the_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = prepare([])
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ConfigError) as raised:
        dispatcher.load("lightning").export(prepared.model, first(prepared), tmp_path / "m.onnx")
    assert str(raised.value) == (
        "format=onnx needs the package onnxscript, which is not installed: pip install "
        "'twinrun[onnx]'"
    )
    assert not (tmp_path / "m.onnx").exists()


@pytest.mark.parametrize(
    ("backend", "name"),
    long_but(
        IN_16_BITS,
        slow=IN_16_BITS[::2],
        quick=[("lightning", "lstm"), ("lightning", "gated_dense")],
    ),
)
def test_16_bits_train(name: str, backend: str) -> None:
    """The losses are those of float32 but for 2 % with bfloat16, which has 8 bits, so that an
    operation rounds by up to 0.4 %, and 1 % with float16, which has 11: a loss is a mean over rows,
    whose errors differ in sign. With a small scale of the loss no update is skipped."""
    overrides = [*LAYERS[name], *STEPS]
    expected = train(backend, overrides).losses
    bfloat16 = train(backend, [*overrides, "trainer.precision=bf16-mixed"]).losses
    np.testing.assert_allclose(bfloat16, expected, rtol=0.02)
    start = first(prepare(overrides))
    start = replace(start, slots={**start.slots, SLOT: LossScale(2.0**8).slot()})
    float16 = train(backend, [*overrides, "trainer.precision=16-mixed"], start=start)
    assert float16.state.slots[SLOT]["num_skipped"] == 0
    np.testing.assert_allclose(float16.losses, expected, rtol=0.01)


@pytest.fixture
def always_compiled() -> Iterator[None]:
    """torch raises an error where it would go on without compiling."""
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        yield


@pytest.mark.usefixtures("always_compiled")
@pytest.mark.parametrize(("backend", "name"), long_but(COMPILINGS, slow=COMPILINGS[::3]))
def test_a_compiled_training_is_the_same(name: str, backend: str) -> None:
    """The tolerance, 1e-12: what the compiler fuses rounds otherwise in the last bits of
    float64."""
    overrides = [*LAYERS[name], *STEPS, "trainer.precision=float64"]
    found = differences(
        train(backend, overrides), train(backend, [*overrides, "trainer.compile=true"])
    )
    assert max(found.values()) < 1e-12, found


@pytest.mark.slow
@pytest.mark.usefixtures("always_compiled")
def test_every_run_of_a_process_is_compiled() -> None:
    """torch compiles a function eight times, by default; here twice."""
    for units in (5, 6, 7):
        model = f"model.layers=[{{layer: dense, units: {units}}},{{layer: dense, units: outputs}}]"
        with torch._dynamo.config.patch(recompile_limit=2):
            train("lightning", [model, *STEPS, "trainer.compile=true"])
