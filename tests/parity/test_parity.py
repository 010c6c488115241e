"""The claim: the same config is the same training run on both frameworks.

float64: losses, weights, buffers and slots within 1e-12 after 300 updates; rates equal to the bit,
and equal to the closed form rounded once. The tolerance: rounding errors of 1e-16 an operation add
up to some 1e-15 in 300 updates of these networks; 1e-12 is far above that and far below what any
difference of meaning makes (1e-2 to 1e-5). Differences are taken relative to the largest value of
the tensor where that is above 1: a slot such as RMSprop's momentum reaches 1e3.

A new optimizer, layer, loss or setting is one row.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from runner.spec import TrainState
from tests.rows import long_but, of_lengths, slow_but
from tests.training import Trained, differences, first, prepare, train

TOLERANCE = 1e-12
BASE = ["trainer.precision=float64", "trainer.max_steps=300"]

OPTIMIZERS = {
    "sgd": ["optimizer=sgd", "optimizer.lr=0.1"],
    "momentum": ["optimizer=sgd", "optimizer.lr=0.05", "optimizer.momentum=0.9"],
    "nesterov": [
        "optimizer=sgd",
        "optimizer.lr=0.05",
        "optimizer.momentum=0.9",
        "optimizer.nesterov=true",
    ],
    "adam": ["optimizer=adam"],
    "amsgrad": ["optimizer=adam", "optimizer.amsgrad=true"],
    "adamw": ["optimizer=adamw"],
    "rmsprop": ["optimizer=rmsprop"],
    # at their default rates, with coupled decay, weights of pixels that are always 0 are chaotic: a
    # change of 1 ulp in the first weights then grows on one framework alone, with nadam at 1e-3 to
    # 2e-5 and at 5e-4 to 6e-16; momentum 0.9 makes RMSprop's rate ten times itself
    "rmsprop_momentum": ["optimizer=rmsprop", "optimizer.momentum=0.9", "optimizer.lr=1e-4"],
    "rmsprop_centered": ["optimizer=rmsprop", "optimizer.centered=true"],
    "rmsprop_both": [
        "optimizer=rmsprop",
        "optimizer.momentum=0.9",
        "optimizer.centered=true",
        "optimizer.lr=1e-4",
    ],
    "adagrad": ["optimizer=adagrad", "optimizer.initial_accumulator=0.1"],
    "adadelta": ["optimizer=adadelta"],
    "adamax": ["optimizer=adamax"],
    "nadam": ["optimizer=nadam", "optimizer.lr=5e-4"],
    "lion": ["optimizer=lion"],
    "ademamix": ["optimizer=ademamix", "optimizer.beta3=0.99"],
}
# and those with numbers of whole tensors, or of all of them
OF_TENSORS = {
    "adafactor": ["optimizer=adafactor", "optimizer.lr=3e-3"],
    "lamb": ["optimizer=lamb"],
    # its estimate multiplies rounding like its rate: at d_coef 1, 1.1e-12 for one row of the cnn
    "prodigy": ["optimizer=prodigy", "optimizer.d0=1e-5", "optimizer.d_coef=0.3"],
    "schedule_free_sgd": ["optimizer=schedule_free_sgd", "optimizer.lr=0.1", "optimizer.r=0.5"],
    "schedule_free_adamw": ["optimizer=schedule_free_adamw"],
    "muon": ["optimizer=muon", "optimizer.adamw_lr_factor=0.5"],
    "lars": ["optimizer=lars", "optimizer.nesterov=true"],
}
IMAGES = "data.images=true"
SCHEDULES = {"constant": ["schedule=constant"], "exponential": ["schedule=exponential"]}
MODELS = {"mlp": ["model=mlp"], "cnn": ["model=cnn", IMAGES]}  # the cnn has batch norm and dropout
_CLIPPED = [
    "trainer.gradient_clip_norm=0.5",
    "trainer.accumulate_grad_batches=3",
    "optimizer.weight_decay=0.01",
]
SETTINGS = {
    "plain": ["optimizer.weight_decay=0.0"],
    "coupled": [*_CLIPPED, "optimizer.weight_decay_mode=coupled"],
    "decoupled": [
        *_CLIPPED,
        "optimizer.weight_decay_mode=decoupled",
        "optimizer.decay_exclude=bias_and_norm",
    ],
}
ALL_OPTIMIZERS = {**OPTIMIZERS, **OF_TENSORS}
BY_DEFAULT = {("adam", "mlp", "constant", "plain"), ("nesterov", "mlp", "exponential", "decoupled")}


def rows() -> Iterator[tuple[str, str, str, str]]:
    """Every optimizer with every setting, with both models and with both schedules; all pairs of a
    model, a schedule and a setting occur with some optimizer."""
    models, schedules = [*MODELS], [*SCHEDULES]
    for i, optimizer in enumerate(ALL_OPTIMIZERS):
        for j, setting in enumerate(SETTINGS):
            yield optimizer, models[(i + j) % 2], schedules[(i // 2 + j) % 2], setting
    yield from BY_DEFAULT


# a row of each optimizer, with all settings in turn
IN_CI = {
    (optimizer, setting)
    for i, optimizer in enumerate(ALL_OPTIMIZERS)
    for j, setting in enumerate(SETTINGS)
    if (i + j) % len(SETTINGS) == 0
}


def _mark(row: tuple[str, str, str, str]) -> list[pytest.MarkDecorator]:
    if row in BY_DEFAULT:
        return []
    return [pytest.mark.slow if (row[0], row[3]) in IN_CI else pytest.mark.long]


TABLE = [
    pytest.param(
        ALL_OPTIMIZERS[optimizer] + MODELS[model] + SCHEDULES[schedule] + SETTINGS[setting],
        id=f"{optimizer}-{model}-{schedule}-{setting}",
        marks=_mark((optimizer, model, schedule, setting)),
    )
    for optimizer, model, schedule, setting in sorted(set(rows()))
]


def stack(layers: str) -> str:
    """The override of a model of these layers and a dense layer of one unit per output."""
    return f"model.layers=[{layers}, {{layer: dense, units: outputs}}]"


# The licence of this project, in rows of 16 characters
TEXT = [
    "data=text", f"data.path={Path(__file__).parents[2] / 'LICENSE'}", "data.context=16",
    "trainer.batch_size=8",
]  # fmt: skip

LAYERS = {
    "activations": [
        stack(
            "{layer: dense, units: 16, bias: false},{layer: activation, function: leaky_relu},"
            "{layer: dense, units: 16},{layer: activation, function: gelu},"
            "{layer: dense, units: 16},{layer: activation, function: gelu_tanh},"
            "{layer: dense, units: 16},{layer: activation, function: silu},"
            "{layer: dense, units: 16},{layer: activation, function: tanh},"
            "{layer: dense, units: 16},{layer: activation, function: sigmoid}"
        )
    ],
    "dropout": [stack("{layer: dense, units: 32},{layer: dropout, rate: 0.5}")],
    # without a bias before it: its true gradient is 0, and Adam would turn the rounding noise in
    # its place into steps
    "batch_norm": [
        stack("{layer: dense, units: 16, bias: false},{layer: batch_norm, momentum: 0.5}")
    ],
    "layer_norm": [stack("{layer: dense, units: 16},{layer: layer_norm}")],
    # same padding that is even and uneven, and none
    "conv2d": [
        stack(
            "{layer: conv2d, filters: 4, kernel_size: 3, stride: 2},"
            "{layer: conv2d, filters: 4, kernel_size: 2},"
            "{layer: conv2d, filters: 4, kernel_size: 3, padding: valid},{layer: flatten}"
        ),
        IMAGES,
    ],
    # padding that is symmetric and differs by axis: 1 and 1 of the height, 2 and 2 of the width
    "conv_same_6x7": [
        stack(
            "{layer: dense, units: 42},{layer: reshape, shape: [6, 7, 1]},"
            "{layer: conv2d, filters: 4, kernel_size: 5, stride: 3},{layer: flatten}"
        )
    ],
    # windows, strides and dilations that differ by axis; asymmetric padding; pools
    "conv_rectangular": [
        stack(
            "{layer: conv2d, filters: 4, kernel_size: [3, 4], stride: [2, 1]},"
            "{layer: conv2d, filters: 5, kernel_size: [2, 3], dilation: [1, 2]},"
            "{layer: max_pool, pool_size: [1, 3], stride: [1, 2], padding: same},"
            "{layer: average_pool, pool_size: [2, 3], stride: [1, 2], padding: same},"
            "{layer: conv2d, filters: 3, kernel_size: [2, 1], dilation: 2, padding: valid},"
            "{layer: flatten}"
        ),
        IMAGES,
    ],
    "conv_grouped": [
        stack(
            "{layer: conv2d, filters: 6, kernel_size: 3},"
            "{layer: conv2d, filters: 4, kernel_size: [2, 3], stride: [1, 2], groups: 2},"
            "{layer: conv2d, filters: 8, kernel_size: 3, groups: 4, dilation: 2, bias: false},"
            "{layer: flatten}"
        ),
        IMAGES,
    ],
    "depthwise_conv2d": [
        stack(
            "{layer: conv2d, filters: 3, kernel_size: 3},"
            "{layer: depthwise_conv2d, kernel_size: 3, stride: 2, depth_multiplier: 2},"
            "{layer: depthwise_conv2d, kernel_size: [3, 2], dilation: [1, 2], bias: false},"
            "{layer: conv2d, filters: 4, kernel_size: 1},{layer: flatten}"
        ),
        IMAGES,
    ],
    # an even difference of kernel and stride, an odd one, and a stride above the kernel
    "conv2d_transpose": [
        stack(
            "{layer: conv2d, filters: 3, kernel_size: 3, stride: 2},"
            "{layer: conv2d_transpose, filters: 4, kernel_size: [3, 4], stride: 2},"
            "{layer: conv2d_transpose, filters: 3, kernel_size: [3, 1], stride: [1, 2], padding: "
            "valid, bias: false},{layer: conv2d_transpose, filters: 2, kernel_size: [1, 3], "
            "stride: [2, 1]},{layer: average_pool},{layer: flatten}"
        ),
        IMAGES,
    ],
    "upsampling2d": [
        stack(
            "{layer: conv2d, filters: 3, kernel_size: 3, stride: 2},{layer: upsampling2d},"
            "{layer: conv2d, filters: 2, kernel_size: 3},{layer: upsampling2d, size: [1, 3]},"
            "{layer: conv2d, filters: 2, kernel_size: 3, stride: 2},{layer: flatten}"
        ),
        IMAGES,
    ],
    "pools": [
        stack(
            "{layer: conv2d, filters: 8, kernel_size: 3},"
            "{layer: max_pool, pool_size: 3, stride: 2, padding: same},"
            "{layer: average_pool, pool_size: 3, stride: 1, padding: same},"
            "{layer: average_pool},{layer: global_average_pool}"
        ),
        IMAGES,
    ],
    "image_norms_and_dropout": [
        stack(
            "{layer: reshape, shape: [8, 8, 1]},{layer: conv2d, filters: 4, kernel_size: 3},"
            "{layer: layer_norm},{layer: dropout, rate: 0.3},{layer: batch_norm},{layer: "
            "reshape, shape: [256]}"
        )
    ],
    "residual": [
        stack(
            "{layer: residual, layers: [{layer: dense, units: 64},{layer: activation, "
            "function: tanh}]},"
            "{layer: residual, layers: [{layer: dense, units: 16}], shortcut: [{layer: "
            "dense, units: 16}]}"
        )
    ],
    "resnet": ["model=resnet", IMAGES],
    "sequence": [
        stack(
            "{layer: reshape, shape: [8, -1]},{layer: dense, units: 12, bias: "
            "false},{layer: batch_norm},"
            "{layer: position_embedding},{layer: dropout, rate: 0.3},{layer: layer_norm},"
            "{layer: activation, function: tanh},{layer: global_average_pool}"
        )
    ],
    # 1 / sqrt(3) is no number of 24 bits; the steps are as many as the features of a head and more
    "attention": [
        stack(
            "{layer: reshape, shape: [16, 4]},{layer: dense, units: 6},{layer: attention, "
            "num_heads: 2},{layer: flatten}"
        )
    ],
    "transformer": ["model=transformer", IMAGES],
    # token ids, and a label at each step
    "tokens": [
        *TEXT,
        "model.layers=[{layer: embedding, features: 12},{layer: position_embedding},"
        "{layer: residual, layers: [{layer: layer_norm},"
        "{layer: attention, num_heads: 3, causal: true}]},"
        "{layer: dropout, rate: 0.1},{layer: dense, units: outputs}]",
    ],
    "llama": [*TEXT, "model=llama"],
    # strides, dilation, asymmetric padding
    "conv1d": [
        stack(
            "{layer: reshape, shape: [16, 4]},{layer: conv1d, filters: 6, kernel_size: 4, stride: "
            "2},{layer: conv1d, filters: 5, kernel_size: 3, dilation: 2, padding: causal, bias: "
            "false},{layer: conv1d, filters: 4, kernel_size: 3, dilation: 2},"
            "{layer: conv1d, filters: 4, kernel_size: 3, stride: 2, padding: valid},{layer: "
            "flatten}"
        )
    ],
    "conv1d_grouped": [
        stack(
            "{layer: reshape, shape: [16, 4]},{layer: conv1d, filters: 6, kernel_size: 3, groups: "
            "2, stride: 2},{layer: conv1d, filters: 9, kernel_size: 2, dilation: 2, padding: "
            "causal, groups: 3, bias: false},{layer: conv1d, filters: 9, kernel_size: 3, groups: "
            "9, dilation: 2},{layer: flatten}"
        )
    ],
    # few steps, since exact mode is compiled step by step
    "gru": [
        stack(
            "{layer: reshape, shape: [4, 16]},{layer: gru, units: 6, return_sequences: true},"
            "{layer: gru, units: 6, return_sequences: true, bidirectional: true},"
            "{layer: gru, units: 5, bidirectional: true, bias: false}"
        )
    ],
    "lstm": [
        stack(
            "{layer: reshape, shape: [4, 16]},{layer: lstm, units: 6, return_sequences: true},"
            "{layer: lstm, units: 6, return_sequences: true, bidirectional: true},"
            "{layer: lstm, units: 5, bidirectional: true, bias: false}"
        )
    ],
    "stochastic_depth": [
        stack(
            "{layer: reshape, shape: [8, 8, 1]},{layer: residual, stochastic_depth: 0.5, layers: "
            "[{layer: conv2d, filters: 1, kernel_size: 3}]},{layer: reshape, shape: [64]},"
            "{layer: residual, stochastic_depth: 0.3, layers: [{layer: dense, units: 16},{layer: "
            "activation, function: tanh}], shortcut: [{layer: dense, units: 16}]}"
        ),
        "trainer.accumulate_grad_batches=2",
    ],
    # the output has the matrix of the embedding, which is one weight with two gradients
    "tied": [
        *TEXT,
        "model.layers=[{layer: embedding, features: 12},{layer: position_embedding},"
        "{layer: dense, units: 12},{layer: activation, function: tanh},"
        "{layer: dense, units: outputs, tie: embedding_0}]",
        "trainer.accumulate_grad_batches=2",
    ],
    # of an image, by all three joins; a batch norm and a dropout in branches
    "parallel": [
        stack(
            "{layer: reshape, shape: [8, 8, 1]},{layer: parallel, branches: [[{layer: conv2d, "
            "filters: 3, kernel_size: 1}],[{layer: conv2d, filters: 2, kernel_size: 3, bias: "
            "false},{layer: batch_norm},{layer: dropout, rate: 0.2}],[]]},{layer: flatten},"
            "{layer: parallel, join: multiply, branches: [[{layer: dense, units: 6}],[{layer: "
            "dense, units: 6},{layer: activation, function: tanh}],[{layer: dense, units: 6}]]},"
            "{layer: parallel, join: add, branches: [[],[{layer: dense, units: 6},{layer: "
            "dropout, rate: 0.2}],[{layer: activation, function: relu}]]}"
        ),
        "trainer.accumulate_grad_batches=2",
    ],
    # of an image and of a row
    "slice": [
        stack(
            "{layer: dense, units: 48},{layer: reshape, shape: [4, 4, 3]},{layer: parallel, "
            "branches: [[{layer: slice, stop: 2},{layer: conv2d, filters: 2, kernel_size: 2}],"
            "[{layer: slice, start: 1, stop: 2},{layer: activation, function: tanh}]]},{layer: "
            "flatten},{layer: slice, start: 5}"
        )
    ],
    "columns": [
        "data=diabetes",
        stack(
            "{layer: parallel, branches: [[{layer: columns, names: [s5, bmi]},{layer: dense, "
            "units: 3}],[{layer: columns, names: ['s*', age]},{layer: dense, units: 4},{layer: "
            "activation, function: tanh}]]}"
        ),
    ],
    "masked_parallel": [
        stack(
            "{layer: reshape, shape: [16, 4]},{layer: masking},{layer: parallel, branches: "
            "[[{layer: conv1d, filters: 3, kernel_size: 3}],[],[{layer: gru, units: 5, "
            "return_sequences: true}]]},{layer: parallel, branches: [[{layer: "
            "global_average_pool}],[{layer: global_max_pool}],[{layer: lstm, units: 4}]]}"
        )
    ],
    # three heads of queries for each of keys; 1 / sqrt(2) is no number of 24 bits
    "grouped_attention": [
        stack(
            "{layer: reshape, shape: [16, 4]},{layer: sinusoidal_positions},{layer: dense, units: "
            "12},{layer: attention, num_heads: 6, num_kv_heads: 2, causal: true},{layer: flatten}"
        )
    ],
    "rotary": [
        stack(
            "{layer: reshape, shape: [8, 8]},{layer: sinusoidal_positions, base: 50},{layer: "
            "attention, num_heads: 2, num_kv_heads: 1, positions: rotary, rotary_base: 100, "
            "causal: true},{layer: flatten}"
        )
    ],
    # side by side, since each multiplies two products: adversarial values stay within float32
    "gated_dense": [
        stack(
            "{layer: reshape, shape: [8, 8]},{layer: parallel, branches: ["
            "[{layer: gated_dense, units: 6}],"
            "[{layer: gated_dense, units: 6, activation: gelu, bias: true}],"
            "[{layer: gated_dense, units: 6, activation: gelu_tanh}],"
            "[{layer: gated_dense, units: 6, activation: sigmoid}],"
            "[{layer: gated_dense, units: 6, activation: relu, bias: true}]]},{layer: flatten}"
        )
    ],
    # of an image and of a sequence
    "squeeze_excite": [
        stack(
            "{layer: reshape, shape: [8, 8, 1]},{layer: conv2d, filters: 6, kernel_size: 3},"
            "{layer: squeeze_excite, ratio: 2},{layer: reshape, shape: [64, 6]},"
            "{layer: squeeze_excite, ratio: 3, bias: false},{layer: flatten}"
        )
    ],
    # the half rows of 4 pixels at the end of a digit that are dark are padding
    "masked_recurrent": [
        stack(
            "{layer: reshape, shape: [16, 4]},{layer: masking},{layer: lstm, units: 6, "
            "return_sequences: true, bidirectional: true},{layer: gru, units: 5, bidirectional: "
            "true}"
        )
    ],
    "masked_attention": [
        stack(
            "{layer: reshape, shape: [16, 4]},{layer: masking},{layer: conv1d, filters: 6, "
            "kernel_size: 3},{layer: residual, layers: [{layer: attention, num_heads: 2}], "
            "shortcut: [{layer: attention, num_heads: 3, causal: true}]},"
            "{layer: dropout, rate: 0.1},{layer: global_average_pool}"
        )
    ],
    "masked_maximum": [
        stack(
            "{layer: reshape, shape: [16, 4]},{layer: masking},{layer: dense, units: 6},"
            "{layer: activation, function: relu},{layer: global_max_pool}"
        )
    ],
    "rms_norm": [
        stack(
            "{layer: reshape, shape: [8, 8, 1]},{layer: conv2d, filters: 4, kernel_size: 3},"
            "{layer: rms_norm, eps: 1e-3},{layer: flatten},{layer: dense, units: 12},{layer: "
            "rms_norm}"
        )
    ],
    # of an image, a sequence and a row
    "group_norm": [
        stack(
            "{layer: reshape, shape: [8, 8, 1]},{layer: conv2d, filters: 6, kernel_size: 3},"
            "{layer: group_norm, groups: 3},{layer: reshape, shape: [64, 6]},{layer: group_norm, "
            "groups: 2, eps: 1e-3},{layer: flatten},{layer: dense, units: 12},{layer: group_norm, "
            "groups: 2}"
        )
    ],
    # ties of zeros after relu share the gradient
    "global_max_pool": [
        stack(
            "{layer: reshape, shape: [8, 8, 1]},{layer: conv2d, filters: 24, kernel_size: 3},"
            "{layer: activation, function: relu},{layer: global_max_pool},{layer: reshape, shape: "
            "[6, 4]},{layer: dense, units: 8},{layer: activation, function: relu},{layer: "
            "global_max_pool}"
        )
    ],
}
NEWER = (*OF_TENSORS, "ademamix")  # the optimizers that are not among torch's classic ones
# Groups of weights with their own rate and decay, and hyperparameters with a schedule of their own
_MOMENTUM = (
    "optimizer.schedules.momentum={name: sequence, phases: [{for: 30%, name: ramp, from: "
    "1.1, to: 1.0, edge: both},"
    "{for: rest, name: ramp, from: 1.0, to: 1.1, shape: cosine}]}"
)
GROUPS = {
    "rates": ["optimizer=adam",
        "optimizer.groups=[{match: dense_0, lr_factor: 0.1},{match: '*/bias', lr_factor: 0.0}]"],
    "schedules": ["optimizer=adamw", "optimizer.layer_decay=0.5", "schedule=linear", (
        "optimizer.groups=[{match: dense_1, lr_factor: 2.0, schedule: {name: cosine, warmup: 10%}},"
        "{match: dense_0/bias, schedule: {name: sequence, phases: [{for: 30%, name: hold, factor: "
        "0.0},{for: rest, name: hold}]}}]"
    )],
    "ema": ["optimizer=adam", "optimizer.ema=0.9"],
    "swa": ["optimizer=sgd", "optimizer.momentum=0.9", "optimizer.swa=60%"],
    "lawa": ["optimizer=sgd", "trainer.batch_size=128", "optimizer.lawa=4"],
    "widths": ["optimizer=sgd", "optimizer.momentum=0.9", "optimizer.lr=0.02",
        "optimizer.width_base=24"],
    # no weight has the rate eta(t) itself, and one layer is frozen
    "frozen": ["optimizer=adam",
        "optimizer.groups=[{match: dense_0, lr_factor: 0.0},{match: '*', lr_factor: 0.5}]"],
    "frozen_shrinking": [
        "optimizer=rmsprop", "optimizer.weight_decay=0.1", "optimizer.weight_decay_mode=decoupled",
        "optimizer.groups=[{match: dense_1/bias, lr_factor: 0.0},{match: '*', lr_factor: 0.5}]",
    ],
    "layer_decay": ["optimizer=adamw", "optimizer.layer_decay=0.5", "model=cnn", IMAGES],
    "decays": [
        "optimizer=sgd", "optimizer.lr=0.05", "optimizer.weight_decay=0.1",
        "optimizer.weight_decay_mode=decoupled",
        (
            "optimizer.groups=[{match: dense_1/kernel, weight_decay_factor: 0.5},{match: "
            "'dense_?/bias', weight_decay_factor: 0}]"
        ),
    ],
    "momentum": ["optimizer=sgd", "optimizer.lr=0.05", "optimizer.momentum=0.85", _MOMENTUM,
        "schedule=one_cycle"],
    "nesterov": ["optimizer=sgd", "optimizer.lr=0.05", "optimizer.momentum=0.85",
        "optimizer.nesterov=true", _MOMENTUM],
    "beta1": ["optimizer=adam", "optimizer.beta1=0.85", _MOMENTUM.replace("momentum", "beta1")],
    "betas": ["optimizer=lion", _MOMENTUM.replace("momentum", "beta2"), "optimizer.beta2=0.9"],
    "rho": [
        "optimizer=rmsprop", "optimizer.momentum=0.85", "optimizer.lr=1e-4", _MOMENTUM,
        "optimizer.schedules.rho={name: hold}",
    ],
    "weight_decay": [
        "optimizer=adamw", "optimizer.weight_decay=0.1",
        "optimizer.schedules.weight_decay={name: cosine, final_lr: 0.01}",
        "optimizer.groups=[{match: '*/bias', weight_decay_factor: 0.5}]",
        "optimizer.layer_decay=0.8",
    ],
    "slow_warmup": ["optimizer=ademamix", "optimizer.slow_warmup_steps=50",
        "optimizer.schedules.beta1={name: ramp, from: 1.0, to: 0.9}"],
    "coupled_decay": ["optimizer=adadelta", "optimizer.schedules.weight_decay={name: cosine}",
        "optimizer.weight_decay=0.01"],
    "shrinking": [
        "optimizer=rmsprop", "optimizer.weight_decay=0.1", "optimizer.weight_decay_mode=decoupled",
        "optimizer.schedules.weight_decay={name: linear}", "optimizer.decay_exclude=bias_and_norm",
    ],
}  # fmt: skip
LOSSES = {
    "label_smoothing": ["loss=cross_entropy", "loss.label_smoothing=0.1"],
    "mean_squared_error": ["data=diabetes"],
    "huber": ["data=diabetes", "loss=huber", "loss.delta=0.5"],
    "linear_model": ["model=linear"],
    "focal": ["loss=focal"],
}
# and those that exact mode refuses
LOSSES_WITHOUT_EXACT_FORM = {
    "focal_weighted": [
        "loss=focal", "loss.alpha=null", "loss.gamma=0.5", "loss.class_weights=balanced",
    ],
    "contrastive": ["loss=contrastive", "loss.features=8", "trainer.batch_size=24"],
    "focal_of_tokens": [*LAYERS["tokens"], "loss=focal", "loss.gamma=1"],
    "mixed": [
        "data.mixup=0.4", "data.cutmix=1", IMAGES, "data.augment.flip=true", "model=cnn",
        "loss=cross_entropy", "loss.class_weights=balanced", "loss.label_smoothing=0.1",
    ],
}  # fmt: skip
SHORT = {
    "short_batches": ["trainer.batch_size=48"],
    "short_group": ["trainer.accumulate_grad_batches=7"],
}
RUNS = {**LOSSES, **LOSSES_WITHOUT_EXACT_FORM, **SHORT}


def both(overrides: list[str]) -> tuple[Trained, Trained]:
    return train("lightning", overrides), train("keras", overrides)


def assert_parity(overrides: list[str]) -> None:
    torch_run, keras_run = both(overrides)
    assert len(torch_run.losses) == prepare(overrides).order.total_steps
    planned = prepare(overrides).run_spec()
    for name, expected in planned.tables.items():
        np.testing.assert_array_equal(torch_run.applied[name], expected)
        np.testing.assert_array_equal(keras_run.applied[name], expected)
    apart = differences(torch_run, keras_run)
    assert max(apart.values()) < TOLERANCE, apart


@pytest.mark.parametrize("overrides", TABLE)
def test_optimizers_agree(overrides: list[str]) -> None:
    assert_parity(BASE + overrides)


SHORT_ROWS = [(name, 60) for name in NEWER]


@pytest.mark.parametrize(
    ("name", "num_steps"),
    long_but([*SHORT_ROWS, *((name, 300) for name in ALL_OPTIMIZERS)], slow=SHORT_ROWS),
)
def test_optimizers_agree_on_a_transformer_with_groups(name: str, num_steps: int) -> None:
    """Groups: frozen weights, another rate, layer decay and a scheduled weight decay. LARS has a
    twentieth of its rate: with all of it, rounding grows to 5e-12 in the logits of 300 updates."""
    overrides = [
        *ALL_OPTIMIZERS[name], *(["optimizer.lr=0.05"] if name == "lars" else []),
        *LAYERS["transformer"], "schedule=cosine",
        "trainer.accumulate_grad_batches=2", "trainer.gradient_clip_norm=0.5",
        "optimizer.layer_decay=0.9",
        "optimizer.weight_decay=0.01", "optimizer.schedules.weight_decay={name: linear}",
        "optimizer.groups=[{match: '*/bias', lr_factor: 0.0},{match: '*/key', lr_factor: 0.5}]",
    ]  # fmt: skip
    assert_parity(["trainer.precision=float64", f"trainer.max_steps={num_steps}", *overrides])


@pytest.mark.parametrize("name", slow_but(GROUPS, "schedules"))
def test_groups_and_scheduled_hyperparameters_agree(name: str) -> None:
    assert_parity(["trainer.precision=float64", "trainer.max_steps=100", *GROUPS[name]])


def in_float64(num_updates: int) -> list[str]:
    """The overrides of a run of so many updates."""
    length = [f"trainer.max_steps={num_updates}", "trainer.max_epochs=null"]
    return ["trainer.precision=float64", *length]


@pytest.mark.parametrize(("name", "num_updates"), of_lengths(LAYERS, 60, ["batch_norm"]))
def test_layers_agree(name: str, num_updates: int) -> None:
    assert_parity([*in_float64(num_updates), "schedule=cosine", *LAYERS[name]])


@pytest.mark.parametrize(("name", "num_updates"), of_lengths(RUNS, 100, ["huber"]))
def test_losses_and_short_batches_agree(name: str, num_updates: int) -> None:
    assert_parity([*in_float64(num_updates), *RUNS[name]])


@pytest.mark.parametrize(("loss", "num_updates"), of_lengths(["focal", "cosine_similarity"], 60))
def test_losses_of_several_targets_agree(loss: str, num_updates: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 5))
    y = x @ rng.normal(size=(5, 3))
    table = np.hstack([x, y > 0 if loss == "focal" else y])
    path = tmp_path / "rows.csv"
    np.savetxt(path, table, delimiter=",", header="a,b,c,d,e,f,g,h", comments="")
    task = "multilabel" if loss == "focal" else "regression"
    data = ["data=table", f"data.path={path}", "data.target=[f,g,h]", f"data.task={task}"]
    assert_parity([*in_float64(num_updates), f"loss={loss}", *data])


@pytest.mark.parametrize("num_updates", long_but([60, 300], slow=[60]))
def test_binary_cross_entropy_agrees(num_updates: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 5))
    np.savez(tmp_path / "data.npz", x=x, y=(x[:, 0] + x[:, 1] > 0).astype(int))
    data = [f"data.path={tmp_path / 'data.npz'}", "data=npz", "loss=binary_cross_entropy"]
    assert_parity([*in_float64(num_updates), *data])


@pytest.mark.parametrize(
    "schedule",
    slow_but(["constant", "exponential", "linear", "step", "polynomial", "cosine", "piecewise"]),
)
def test_rates_are_equal_to_the_bit_and_rounded_once(schedule: str) -> None:
    """In float32; in float64 `assert_parity` says it of every run here."""
    overrides = [
        f"schedule={schedule}", "schedule.warmup=10%", "trainer.max_steps=90",
        "trainer.accumulate_grad_batches=2",
    ]  # fmt: skip
    torch_run, keras_run = both(overrides)
    closed_form = prepare(overrides).rates()
    np.testing.assert_array_equal(torch_run.rates, keras_run.rates)
    np.testing.assert_array_equal(torch_run.rates, closed_form.astype(np.float32))


@pytest.mark.slow
def test_the_rates_of_groups_are_their_schedules_to_the_bit() -> None:
    """cosine falls as (1 + cos(pi t / T)) / 2, a hold is constant: T = 20 updates in float32, read
    from the frameworks' optimizers."""
    overrides = [
        "trainer.max_steps=20", "optimizer.lr=0.01", (
            "optimizer.groups=[{match: dense_0, lr_factor: 0.5, schedule: {name: cosine}},"
            "{match: '*', schedule: {name: hold, factor: 3.0}}]"
        ),
    ]  # fmt: skip
    expected = {
        "learning_rate": np.full(20, 0.01),
        "learning_rate*0.5/dense_0": 0.005 * (1 + np.cos(np.pi * np.arange(20) / 20)) / 2,
        "learning_rate/*": np.full(20, 0.03),
    }
    torch_run, keras_run = both(overrides)
    assert torch_run.applied.keys() == keras_run.applied.keys() == expected.keys()
    for name, rates in expected.items():
        np.testing.assert_array_equal(torch_run.applied[name], keras_run.applied[name])
        # one rounding to float32, of values that differ by a few roundings of float64
        np.testing.assert_allclose(torch_run.applied[name], rates, rtol=2**-23)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["lightning", "keras"])
def test_subnormals_are_zero_on_both_and_nobody_s_else(backend: str) -> None:
    """The moment of a weight whose pixel is never lit is 0.9 of what it was: of 1e-40, which
    float32 has only as a subnormal,
    0. NumPy's own arithmetic in the process is left as it was."""
    overrides = ["device=cpu", "trainer.max_steps=1"]
    prepared = prepare(overrides)
    start = first(prepared)
    dark = np.flatnonzero((prepared.data.train.x == 0).all(0))
    start.slots["first_moment"]["dense_0/kernel"][dark] = 1e-40
    moments = train(backend, overrides, start=start).state.slots["first_moment"]["dense_0/kernel"]
    assert len(dark) > 0
    np.testing.assert_array_equal(moments[dark], 0)
    assert np.count_nonzero(moments) > moments.size / 2
    assert np.float32(1e-40) * np.float32(0.5) > 0


HANDED_OVER = (
    "momentum", "adam", "adamw", "nadam", "rmsprop_both", "adagrad", "adadelta", "lion", *NEWER,
)  # fmt: skip
ORDERS = (("lightning", "keras"), ("keras", "lightning"))
_ORDERED = [(name, ORDERS[i % 2]) for i, name in enumerate(HANDED_OVER)]


@pytest.mark.parametrize(
    ("name", "order"),
    long_but(
        _ORDERED, slow=[row for row in _ORDERED if row[0] in ("adam", *NEWER)], quick=_ORDERED[3:4]
    ),
)
def test_a_run_started_on_one_framework_is_finished_on_the_other(
    name: str, order: tuple[str, str]
) -> None:
    overrides = [*BASE, *ALL_OPTIMIZERS[name], "schedule=exponential", "trainer.steps_per_call=30"]
    whole = train(order[0], overrides)
    half = train(order[0], overrides, stop_after=150)
    assert half.state.step == 150
    rest = train(order[1], overrides, start=half.state)
    joined = half.then(rest)
    np.testing.assert_array_equal(joined.rates, whole.rates)
    apart = differences(joined, whole)
    assert max(apart.values()) < TOLERANCE, apart


@pytest.mark.parametrize("model", slow_but(["mlp", "cnn"]))
def test_float32_differs_no_more_than_ten_times_what_one_ulp_does(model: str) -> None:
    """The control: the same framework, every first weight moved by one ulp up or down, in three
    draws. Two float32 runs part by rounding alone: once a ReLU or a max-pool decides otherwise, by
    1e-3, on one framework as between two."""
    overrides = [
        "trainer.precision=float32",
        "trainer.max_steps=300",
        *MODELS[model],
        "schedule=exponential",
    ]
    torch_run, keras_run = both(overrides)
    controls = [
        differences(train("lightning", overrides, start=moved(overrides, draw)), torch_run)
        for draw in range(3)
    ]
    apart = differences(torch_run, keras_run)
    for what in ("losses", "weights"):
        assert apart[what] <= 10 * max(control[what] for control in controls), (
            what,
            apart,
            controls,
        )


def moved(overrides: list[str], draw: int) -> TrainState:
    """The run's first state, every weight one ulp up or down."""
    rng, start = np.random.default_rng(draw), first(prepare(overrides))
    weights = {
        name: np.nextafter(
            value, np.where(rng.random(value.shape) < 0.5, -np.inf, np.inf).astype(value.dtype)
        )
        for name, value in start.weights.items()
    }
    return replace(start, weights=weights)
