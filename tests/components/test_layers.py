"""The layer vocabulary: shapes, names, first weights."""

from collections.abc import Mapping, Sequence
from math import sqrt
from typing import Any

import numpy as np
import pytest

from runner.cli.compose import compose
from runner.components.layers import Network, Shape, initial_variables, network, padding_same
from runner.config.schema import parse
from runner.errors import ConfigError


def layers(*given: Mapping[str, Any]) -> list[Any]:
    """Layers with the defaults of conf/layer_defaults."""
    composed = compose([])
    return parse({**composed, "model": {"name": "mine", "layers": list(given)}}).model.layers


def net(input_shape: Shape, num_outputs: int, *given: Mapping[str, Any]) -> Network:
    return network(layers(*given), input_shape, num_outputs)


def shapes(made: Network) -> list[Shape]:
    return [node.output_shape for node in made.nodes]


def dense(units: Any, **more: Any) -> dict[str, Any]:
    return {"layer": "dense", "units": units, **more}


def conv(filters: int, kernel_size: int | list[int], **more: Any) -> dict[str, Any]:
    return {"layer": "conv2d", "filters": filters, "kernel_size": kernel_size, **more}


def transposed(filters: int, kernel_size: int | list[int], **more: Any) -> dict[str, Any]:
    return {**conv(filters, kernel_size, **more), "layer": "conv2d_transpose"}


def conv1d(filters: int, kernel_size: int, **more: Any) -> dict[str, Any]:
    return {"layer": "conv1d", "filters": filters, "kernel_size": kernel_size, **more}


FLATTEN: dict[str, Any] = {"layer": "flatten"}
POOL = {"layer": "max_pool"}
DEPTHWISE = {"layer": "depthwise_conv2d", "kernel_size": 3}


@pytest.mark.parametrize(
    ("size", "layer", "output"),
    [
        # same: ceil(size / stride)
        ((8, 8, 1), conv(5, 3), (8, 8, 5)),
        ((8, 8, 1), conv(5, 3, stride=2), (4, 4, 5)),
        ((9, 7, 1), conv(5, 3, stride=2), (5, 4, 5)),
        ((9, 7, 1), conv(5, 4, stride=3), (3, 3, 5)),
        # valid: floor((size - window) / stride) + 1
        ((8, 8, 1), conv(5, 3, padding="valid"), (6, 6, 5)),
        ((9, 7, 2), conv(5, 3, stride=2, padding="valid"), (4, 3, 5)),
        ((3, 3, 2), conv(5, 3, padding="valid"), (1, 1, 5)),
        # each axis by itself; a dilated kernel reads (size - 1) * dilation + 1
        ((9, 7, 2), conv(5, [3, 2], stride=[2, 3]), (5, 3, 5)),
        ((9, 7, 2), conv(5, [3, 2], dilation=[2, 3], padding="valid"), (5, 4, 5)),
        ((9, 7, 2), conv(6, 3, groups=2, padding="valid"), (7, 5, 6)),
        ((9, 7, 2), {**DEPTHWISE, "stride": 2, "depth_multiplier": 3}, (5, 4, 6)),
        # keras.layers.Conv2DTranspose: H stride, plus max(size - stride, 0) if valid
        ((4, 5, 2), transposed(3, 3, stride=2), (8, 10, 3)),
        ((4, 5, 2), transposed(3, [3, 1], stride=2, padding="valid"), (9, 10, 3)),
        ((4, 5, 2), {"layer": "upsampling2d"}, (8, 10, 2)),
        ((4, 5, 2), {"layer": "upsampling2d", "size": [1, 3]}, (4, 15, 2)),
        ((9, 7, 3), {**POOL, "pool_size": [2, 3], "stride": [1, 2]}, (8, 3, 3)),
        ((8, 8, 3), POOL, (4, 4, 3)),
        ((9, 7, 3), POOL, (4, 3, 3)),
        ((9, 7, 3), {**POOL, "padding": "same"}, (5, 4, 3)),
        ((9, 7, 3), {"layer": "average_pool", "pool_size": 3, "stride": 1}, (7, 5, 3)),
        ((9, 7, 3), {"layer": "global_average_pool"}, (3,)),
        ((9, 7, 3), FLATTEN, (189,)),
        ((12,), FLATTEN, (12,)),
        ((12,), {"layer": "reshape", "shape": [2, 3, 2]}, (2, 3, 2)),
        ((2, 3, 2), {"layer": "reshape", "shape": [12]}, (12,)),
        ((12,), {"layer": "reshape", "shape": [2, -1]}, (2, 6)),
        ((2, 3, 2), {"layer": "reshape", "shape": [-1, 2]}, (6, 2)),
        ((12,), dense(7), (7,)),
        ((5, 12), dense(7), (5, 7)),
        ((5, 12), {"layer": "global_average_pool"}, (12,)),
        ((5, 12), {"layer": "layer_norm"}, (5, 12)),
        ((5, 12), {"layer": "rms_norm"}, (5, 12)),
        # the span of a dilated kernel is (size - 1) * dilation + 1
        ((9, 2), conv1d(5, 3), (9, 5)),
        ((9, 2), conv1d(5, 4, stride=2), (5, 5)),
        ((9, 2), conv1d(5, 3, dilation=3, padding="valid"), (3, 5)),
        ((9, 2), conv1d(5, 3, stride=2, padding="valid"), (4, 5)),
        ((9, 2), conv1d(5, 3, dilation=3, padding="causal"), (9, 5)),
        ((9, 2), conv1d(5, 3, stride=2, padding="causal"), (5, 5)),
        ((9, 2), conv1d(6, 3, groups=2), (9, 6)),
        ((9, 2), {"layer": "gru", "units": 5}, (5,)),
        ((9, 2), {"layer": "gru", "units": 5, "return_sequences": True}, (9, 5)),
        ((9, 2), {"layer": "lstm", "units": 5, "bidirectional": True}, (10,)),
        ((9, 7, 4), {"layer": "group_norm", "groups": 2}, (9, 7, 4)),
        ((9, 7, 3), {"layer": "global_max_pool"}, (3,)),
        ((5, 12), {"layer": "global_max_pool"}, (12,)),
        ((5, 12), {"layer": "position_embedding"}, (5, 12)),
        ((5, 12), {"layer": "attention", "num_heads": 3}, (5, 12)),
        ((5, 12), {"layer": "gated_dense", "units": 7}, (5, 7)),
        ((5, 12), {"layer": "slice", "start": 2, "stop": 9}, (5, 7)),
        ((5, 12), {"layer": "slice", "start": 2}, (5, 10)),
        ((5, 12), {"layer": "sinusoidal_positions"}, (5, 12)),
        ((5, 12), {"layer": "attention", "num_heads": 6, "num_kv_heads": 2}, (5, 12)),
        ((9, 7, 4), {"layer": "squeeze_excite", "ratio": 2}, (9, 7, 4)),
        ((12,), {"layer": "dropout", "rate": 0.5}, (12,)),
        ((9, 7, 3), {"layer": "batch_norm"}, (9, 7, 3)),
        ((9, 7, 3), {"layer": "layer_norm"}, (9, 7, 3)),
        ((12,), {"layer": "activation", "function": "relu"}, (12,)),
    ],
)
def test_the_shape_that_a_layer_makes(size: Shape, layer: Mapping[str, Any], output: Shape) -> None:
    assert shapes(net(size, 2, layer, FLATTEN, dense("outputs")))[0] == output


@pytest.mark.parametrize(
    ("size", "window", "stride", "expected"),
    [
        (8, 3, 1, (1, 1)),
        (8, 3, 2, (0, 1)),
        (7, 3, 2, (1, 1)),
        (8, 2, 2, (0, 0)),
        (5, 4, 1, (1, 2)),
        (8, 1, 2, (0, 0)),
    ],
)
def test_same_padding_is_split_in_two_with_the_odd_one_at_the_end(
    size: int, window: int, stride: int, expected: tuple[int, int]
) -> None:
    assert padding_same(size, window, stride) == expected


def test_names_count_each_kind_in_order_of_definition_nested_layers_included() -> None:
    made = net(
        (8, 8, 1),
        10,
        conv(4, 3),
        {"layer": "batch_norm"},
        {
            "layer": "residual",
            "layers": [conv(4, 3), {"layer": "batch_norm"}],
            "shortcut": [conv(4, 1, bias=False)],
        },
        conv(4, 3, bias=False),
        FLATTEN,
        dense("outputs"),
    )
    expected = {
        "conv2d_0/kernel": (3, 3, 1, 4),
        "conv2d_0/bias": (4,),
        "batch_norm_0/scale": (4,),
        "batch_norm_0/offset": (4,),
        "batch_norm_0/mean": (4,),
        "batch_norm_0/variance": (4,),
        "conv2d_1/kernel": (3, 3, 4, 4),
        "conv2d_1/bias": (4,),
        "batch_norm_1/scale": (4,),
        "batch_norm_1/offset": (4,),
        "batch_norm_1/mean": (4,),
        "batch_norm_1/variance": (4,),
        "conv2d_2/kernel": (1, 1, 4, 4),
        "conv2d_3/kernel": (3, 3, 4, 4),
        "dense_0/kernel": (256, 10),
        "dense_0/bias": (10,),
    }
    variables = made.variables()
    assert {name: variable.shape for name, variable in variables.items()} == expected
    assert list(variables) == list(expected)
    untrained = {name for name, variable in variables.items() if not variable.trainable}
    assert untrained == {f"batch_norm_{i}/{name}" for i in (0, 1) for name in ("mean", "variance")}
    assert {name for name, variable in variables.items() if variable.decays} == {
        n for n in expected if "kernel" in n
    }


def test_attention_has_four_square_kernels_and_no_bias() -> None:
    made = net(
        (5, 12),
        2,
        {"layer": "position_embedding"},
        {"layer": "attention", "num_heads": 3},
        FLATTEN,
        dense("outputs"),
    )
    variables = {name: v for name, v in made.variables().items() if not name.startswith("dense")}
    assert {name: variable.shape for name, variable in variables.items()} == {
        "position_embedding_0/embedding": (1, 5, 12),
        **{f"attention_0/{name}": (12, 12) for name in ("query", "key", "value", "output")},
    }
    assert [name for name, variable in variables.items() if not variable.decays] == [
        "position_embedding_0/embedding"
    ]


def test_recurrent_layers_have_their_gates_side_by_side() -> None:
    made = net(
        (9, 2),
        2,
        {"layer": "gru", "units": 5, "return_sequences": True},
        {"layer": "lstm", "units": 3, "bidirectional": True},
        dense("outputs"),
    )
    assert {n: v.shape for n, v in made.variables().items() if not n.startswith("dense")} == {
        "gru_0/kernel": (2, 15),
        "gru_0/recurrent_kernel": (5, 15),
        "gru_0/bias": (2, 15),
        **{
            f"lstm_0/{prefix}{name}": shape
            for prefix in ("", "backward_")
            for name, shape in {
                "kernel": (5, 12),
                "recurrent_kernel": (3, 12),
                "bias": (12,),
            }.items()
        },
    }


PARALLEL = {
    "layer": "parallel",
    "branches": [[dense(5), {"layer": "batch_norm"}], [], [dense(2), {"layer": "batch_norm"}]],
}


@pytest.mark.parametrize(
    ("join", "branches", "output"),
    [
        ("concat", PARALLEL["branches"], (9, 5 + 4 + 2)),
        ("add", [[], [dense(4)], [dense(4)]], (9, 4)),
        ("multiply", [[dense(3)], [dense(3)]], (9, 3)),
    ],
)
def test_branches_are_joined(join: str, branches: list[Any], output: Shape) -> None:
    made = net((9, 4), 2, {**PARALLEL, "branches": branches, "join": join}, FLATTEN, dense(2))
    assert made.nodes[0].output_shape == output


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["pay", "age"], (4, 0)),
        (["job"], (1, 2)),  # both its categories
        (["job=cook", "*y*"], (2, 3, 4)),
        (["job*"], (1, 2, 3)),
    ],
)
def test_columns_are_found_by_their_names(names: list[str], expected: tuple[int, ...]) -> None:
    features = ["age", "job=clerk", "job=cook", "jobs_y", "pay"]
    given = layers({"layer": "columns", "names": names}, dense(2))
    made = network(given, (5,), 2, features=features)
    assert made.nodes[0].columns == expected
    assert made.nodes[0].output_shape == (len(expected),)


def test_layers_in_branches_are_counted_in_order_of_definition() -> None:
    inner = {**PARALLEL, "branches": [[PARALLEL, dense(3)], [dense(3)]]}
    made = net((4,), 2, dense(4), inner, dense("outputs"))
    assert [(node.name, node.index) for node in made.walk()] == [
        ("dense_0", 0), ("parallel_0", 1), ("parallel_1", 2), ("dense_1", 3), ("batch_norm_0", 4),
        ("dense_2", 5), ("batch_norm_1", 6), ("dense_3", 7), ("dense_4", 8), ("dense_5", 9),
    ]  # fmt: skip


TIED = [
    {"layer": "embedding", "features": 6},
    dense(6),
    {"layer": "layer_norm"},
    dense("outputs", tie="embedding_0", bias=False),
]


def test_a_tied_layer_has_no_kernel_of_its_own() -> None:
    made = network(layers(*TIED), (5,), 9, (5,), num_tokens=9)
    assert {name: variable.shape for name, variable in made.variables().items()} == {
        "embedding_0/embedding": (9, 6),
        "dense_0/kernel": (6, 6),
        "dense_0/bias": (6,),
        "layer_norm_0/scale": (6,),
        "layer_norm_0/offset": (6,),
    }
    assert made.last_weights() == ["embedding_0/embedding"]
    # the output is a layer for optimizer.layer_decay, with a weight that the first one has
    assert [len(names) for names in made.layers()] == [1, 2, 2, 0]


def test_every_node_has_an_index_of_its_own_in_order_of_definition() -> None:
    inner = {"layer": "residual", "layers": [dense(6), {"layer": "dropout", "rate": 0.1}]}
    made = net((6,), 2, inner, {"layer": "dropout", "rate": 0.1}, dense("outputs"))
    assert [node.index for node in made.walk()] == [0, 1, 2, 3, 4]
    assert [node.name for node in made.walk()] == [
        "residual_0",
        "dense_0",
        "dropout_0",
        "dropout_1",
        "dense_1",
    ]


def test_outputs_stands_for_what_the_data_asks_for() -> None:
    assert net((6,), 3, dense("outputs")).output_shape == (3,)


def test_the_largest_output_of_a_layer_counts_also_in_a_branch() -> None:
    wide = {"layer": "residual", "layers": [dense(96), dense(8)]}
    assert net((8,), 10, wide, dense("outputs")).widest() == 96
    assert net((4, 4, 3), 2, conv(5, 1), {"layer": "flatten"}, dense(2)).widest() == 4 * 4 * 5
    assert net((64,), 10, dense("outputs")).widest() == 64  # the input


def test_the_mlp_of_the_contract_is_64_128_10() -> None:
    made = network(parse(compose(["model=mlp"])).model.layers, (64,), 10)
    assert {name: variable.shape for name, variable in made.variables().items()} == {
        "dense_0/kernel": (64, 128),
        "dense_0/bias": (128,),
        "dense_1/kernel": (128, 10),
        "dense_1/bias": (10,),
    }


@pytest.mark.parametrize(
    ("size", "given", "message"),
    [
        ((4,), [dense(3)], r"model.layers must end in the shape \[2\] for this data, got \[3\]"),
        (
            (4,),
            [conv(3, 3)],
            r"model.layers\[0\] \(conv2d\): input must have 3 axes \(an image\), got \[4\]",
        ),
        (
            (4, 4, 1),
            [dense(2)],
            r"\(dense\): input must have 1 or 2 axes \(a row or a sequence\), got \[4, 4, 1\]",
        ),
        (
            (4,),
            [{"layer": "global_average_pool"}],
            r"model.layers\[0\] \(global_average_pool\): input must have 2 or 3 axes",
        ),
        (
            (4, 4),
            [dense(2)],
            r"model.layers must end in the shape \[2\] for this data, got \[4, 2\]",
        ),
        (
            (4,),
            [{"layer": "position_embedding"}],
            r"\(position_embedding\): input must have 2 axes \(a sequence .*\), got \[4\]",
        ),
        (
            (4, 6),
            [{"layer": "attention", "num_heads": 4}],
            r"\(attention\): num_heads=4 does not divide 6 features",
        ),
        ((4,), [{"layer": "reshape", "shape": [-1, -1]}], r"cannot reshape \[4\] to \[-1, -1\]"),
        ((4,), [{"layer": "reshape", "shape": [-1, 0]}], r"cannot reshape \[4\] to \[-1, 0\]"),
        ((4, 4, 1), [conv(3, 5, padding="valid")], r"a window of 5 does not fit into \[4, 4, 1\]"),
        ((4,), [{"layer": "reshape", "shape": [3]}], r"cannot reshape \[4\] to \[3\]"),
        (
            (4,),
            [{"layer": "residual", "layers": [dense(3)]}],
            r"model.layers\[0\]: the branches must have the same output shape, got \[3\] and \[4\]",
        ),
        (
            (4, 4, 1),
            [{"layer": "residual", "layers": [conv(2, 3)], "shortcut": [conv(2, 1, stride=2)]}],
            r"the branches must have the same output shape, got \[4, 4, 2\] and \[2, 2, 2\]",
        ),
        (
            (4,),
            [{"layer": "residual", "layers": [dense(4), conv(3, 3)]}],
            r"model.layers\[0\].layers\[1\] \(conv2d\): input must have 3 axes",
        ),
    ],
)
def test_a_misfit_is_refused_with_its_place(
    size: Shape, given: Sequence[Mapping[str, Any]], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        net(size, 2, *given)


def first_values(
    seed: int, *given: Mapping[str, Any], size: Shape = (64,)
) -> dict[str, np.ndarray]:
    return initial_variables(net(size, 10, *given), seed)


@pytest.mark.parametrize(
    ("layer", "size", "limit"),
    [
        # Glorot and Bengio (2010), equation 16: sqrt(6 / (fan_in + fan_out)); He et al. (2015):
        # variance 2 / fan_in, which a uniform draw has at sqrt(3 * 2 / fan_in). A convolution's
        # fans are its channels times the kernel's area.
        (dense(100, init="glorot_uniform"), (64,), sqrt(6 / (64 + 100))),
        (dense(100, init="he_uniform"), (64,), sqrt(6 / 64)),
        (conv(16, 3, init="he_uniform"), (8, 8, 4), sqrt(6 / (9 * 4))),
        (conv(16, 3, init="glorot_uniform"), (8, 8, 4), sqrt(6 / (9 * (4 + 16)))),
        # an output of a group depends on the inputs of the group
        (conv(32, [3, 5], groups=2), (8, 8, 8), sqrt(6 / (15 * 4))),
        (conv(32, 3, groups=2, init="glorot_uniform"), (8, 8, 8), sqrt(6 / (9 * (4 + 16)))),
        ({**DEPTHWISE, "depth_multiplier": 8}, (8, 8, 16), sqrt(6 / 9)),
        (
            {**DEPTHWISE, "depth_multiplier": 8, "init": "glorot_uniform"},
            (8, 8, 16),
            sqrt(6 / (9 + 9 * 8)),
        ),
        # mean 0 and variance 1, as the normal draw of torch.nn.Embedding
        (dense(100, init="unit_uniform"), (64,), sqrt(3)),
        # with stride 2, a quarter of the kernel's positions reach an output
        (transposed(16, 4, stride=2), (8, 8, 8), sqrt(6 / (4 * 8))),
    ],
)
def test_first_kernels_fill_the_range_that_the_papers_give(
    layer: Mapping[str, Any], size: Shape, limit: float
) -> None:
    kernel = first_values(0, layer, FLATTEN, dense("outputs"), size=size)[
        f"{layer['layer']}_0/kernel"
    ]
    assert np.abs(kernel).max() <= limit
    # Of n uniform draws the largest lies above (1 - 20 / n) of the limit but with probability
    # exp(-20).
    assert np.abs(kernel).max() >= limit * (1 - 20 / kernel.size)
    # Mean 0 and variance limit^2 / 3, each to six of its standard deviations.
    assert abs(kernel.mean()) <= 6 * limit / sqrt(3 * kernel.size)
    assert abs(kernel.var() - limit**2 / 3) <= 6 * limit**2 * sqrt(4 / 45 / kernel.size)


def test_what_is_not_a_kernel_starts_at_0_or_1() -> None:
    given = [{"layer": "batch_norm"}, {"layer": "layer_norm"}, dense("outputs")]
    for name, value in first_values(0, *given).items():
        last = name.rpartition("/")[2]
        if last != "kernel":
            assert (value == (1.0 if last in ("scale", "variance") else 0.0)).all()


def test_the_same_seed_gives_the_same_weights_and_another_seed_others() -> None:
    model = [dense(16), dense("outputs")]
    a, again, b = first_values(3, *model), first_values(3, *model), first_values(4, *model)
    assert all((a[name] == again[name]).all() for name in a)
    assert not np.isclose(a["dense_0/kernel"], b["dense_0/kernel"]).any()


def test_a_layer_s_weights_do_not_depend_on_the_layers_around_it() -> None:
    alone = first_values(0, dense(16), dense("outputs"))
    norm = {"layer": "batch_norm"}
    among = first_values(
        0, norm, dense(16), {"layer": "dropout", "rate": 0.5}, norm, dense("outputs")
    )
    assert all((among[name] == value).all() for name, value in alone.items())


def test_two_layers_of_one_shape_start_apart() -> None:
    values = first_values(0, dense(64), dense(64), dense("outputs"))
    assert not np.isclose(values["dense_0/kernel"], values["dense_1/kernel"]).any()
