"""The layers: their keys, output shapes, variables, and initial values.

Shapes do not include the batch: (features,), (steps, features) of a sequence, or (height, width,
channels), channels last. Weights have the same layout and names on every backend: dense kernel [in,
out]; convolution kernel [height, width, in, out]. A name is `KIND_INDEX/VARIABLE`; the index counts
the layers of a kind in order of definition, nested layers included. A size that is given for an
image is one number for both axes, or [height, width].

Rows of different lengths are padded at the end. `masking`, or `mask_zero` of `embedding`, finds the
padding of each row: the mask m [T] is true up to the last step that is not padding, and at the
first step. The layers after it ignore the padding, so its length changes no output.
"""

import math
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal, Union

import numpy as np
from pydantic import AfterValidator, Field

from runner.components.outputs import Outputs
from runner.components.positions import rotations
from runner.errors import ConfigError, listed, nearest, show
from runner.random import uniform
from runner.section import Count, Fraction, Index, NonNegative, OneOf, Positive, Section

Shape = tuple[int, ...]
Pair = tuple[int, int]  # of the height and of the width
Pads = tuple[Pair, Pair]  # (top, bottom), (left, right)
Padding = Literal["same", "valid"]
Join = Literal["concat", "add", "multiply"]
Init = Literal["glorot_uniform", "he_uniform", "uniform", "unit_uniform", "zeros", "ones"]
RotaryBase = Annotated[float, Field(ge=1)]
_SEQUENCE = ("a sequence [steps, features]", "add reshape")
_IMAGE = ("an image", "add reshape")


def _two(sides: list[int]) -> list[int]:
    if len(sides) != 2:
        raise ValueError("a list of two integers")
    return sides


Sides = Count | Annotated[list[Count], AfterValidator(_two)]


@dataclass(frozen=True)
class Variable:
    """One tensor of a layer. A buffer (running statistics) is not trainable; `decays` is true if
    weight decay applies with decay_exclude=bias_and_norm."""

    name: str
    shape: Shape
    init: Init | None  # None: the framework's own
    trainable: bool = True
    decays: bool = False
    fans: Pair | None = None  # (fan_in, fan_out); None: those of a kernel [..., in, out]


@dataclass(frozen=True)
class Window:
    """The window that a convolution or a pool moves over an image [H, W, C]."""

    size: Pair
    stride: Pair
    padding: Padding
    dilation: Pair = (1, 1)  # the distance between neighbouring values of a window

    @property
    def span(self) -> Pair:
        """The rows and columns from the first to the last one that a window reads."""
        down, across = self.size
        return (down - 1) * self.dilation[0] + 1, (across - 1) * self.dilation[1] + 1

    def pads(self, shape: Shape) -> Pads:
        """The padding of an image of this shape."""
        if self.padding == "valid":
            return (0, 0), (0, 0)
        height, width = (
            padding_same(*axis) for axis in zip(shape[:2], self.span, self.stride, strict=True)
        )
        return height, width

    def outputs(self, shape: Shape) -> Pair:
        """The number of windows down and across. Raises ValueError if none fits."""
        _check_rank(shape, (3,), *_IMAGE)
        if max(self.stride) > 1 and max(self.dilation) > 1:
            raise ValueError(
                f"stride and dilation must not both be > 1, got {_show_pair(self.stride)} and "
                f"{_show_pair(self.dilation)}"
            )
        height, width = shape[:2]
        if self.padding == "same":
            return -(-height // self.stride[0]), -(-width // self.stride[1])
        down, across = self.span
        if height < down or width < across:
            raise ValueError(
                f"a window of {_show_pair(self.span)} does not fit into {_show(shape)}"
            )
        return (height - down) // self.stride[0] + 1, (width - across) // self.stride[1] + 1


class _Layer(Section):
    @property
    def makes_mask(self) -> bool:
        """True if the layer finds the padding of a sequence."""
        return False

    @property
    def ignores_padding(self) -> bool:
        """True if no output that a later layer uses depends on the padding of a masked sequence."""
        return False

    @property
    def ends_mask(self) -> bool:
        """True if the layer replaces the padding of a sequence, so that later layers may use it."""
        return False

    def output_shape(self, shape: Shape) -> Shape:
        return shape

    def variables(self, shape: Shape) -> tuple[Variable, ...]:
        """The variables of the layer for an input of this shape."""
        return ()


class _IgnoresPadding(_Layer):
    @property
    def ignores_padding(self) -> bool:
        return True


class Dense(_IgnoresPadding):
    """y = x W + b; W [in, out] = `kernel`. Applied to each step of a sequence.

    With `tie: embedding_0`, W is the transpose of the matrix E [num_embeddings, features] of that
    embedding, y = x E^T + b: one weight, whose gradient is the sum of those of both uses. Its first
    values (`init`), rate and decay are the embedding's. Press and Wolf (2017), section 2;
    keras.layers.ReversibleEmbedding; in torch, one parameter of two modules.
    """

    layer: Literal["dense"]
    units: Count | Literal["outputs"]
    bias: bool
    tie: str | None
    init: Init

    def output_shape(self, shape: Shape) -> Shape:
        _check_rank(shape, (1, 2), "a row or a sequence", "add flatten or global_average_pool")
        return (*shape[:-1], int(self.units))

    def variables(self, shape: Shape) -> tuple[Variable, ...]:
        own = _dense_variables("", shape[-1], int(self.units), self.bias, self.init)
        return own if self.tie is None else own[1:]


class _Conv2D(_Layer):
    kernel_size: Sides
    stride: Sides
    dilation: Sides
    padding: Padding
    bias: bool
    init: Init

    @property
    def window(self) -> Window:
        size, stride, dilation = map(_pair, (self.kernel_size, self.stride, self.dilation))
        return Window(size, stride, self.padding, dilation)


class Conv2D(_Conv2D):
    """Cross-correlation with a kernel [height, width, in / G, out] = `kernel`, G = `groups`.
    `padding: same` gives ceil(size / stride) outputs per axis, as in TensorFlow; `dilation` is the
    distance between neighbouring values of a window (Yu and Koltun, 2016).

    With G > 1, the g-th of G equal parts of the output's channels depends only on the g-th part of
    the input's (Krizhevsky et al., 2012). torch.nn.Conv2d; keras.layers.Conv2D, where `dilation` is
    dilation_rate. Like Keras, it takes no stride together with dilation.
    """

    layer: Literal["conv2d"]
    filters: Count | Literal["outputs"]
    groups: Count

    def output_shape(self, shape: Shape) -> Shape:
        output = (*self.window.outputs(shape), int(self.filters))
        _check_groups(self, shape[2])
        return output

    def variables(self, shape: Shape) -> tuple[Variable, ...]:
        size, num_in = math.prod(self.window.size), shape[2] // self.groups
        kernel = (*self.window.size, num_in, int(self.filters))
        fans = (size * num_in, size * int(self.filters) // self.groups)
        return _kernel_and_bias(self, kernel, int(self.filters), fans)


class DepthwiseConv2D(_Conv2D):
    """Cross-correlation of each channel with its own M = `depth_multiplier` kernels: output channel
    c M + m is that of channel c with `kernel` [height, width, in, M] at [:, :, c, m].

    It is `conv2d` with as many groups as channels. With a `conv2d` of kernel_size 1 after it, it is
    a separable convolution (Chollet, 2017). torch.nn.Conv2d with groups = in;
    keras.layers.DepthwiseConv2D. The stride is the same on both axes, as in TensorFlow's kernel.
    """

    layer: Literal["depthwise_conv2d"]
    depth_multiplier: Count

    def output_shape(self, shape: Shape) -> Shape:
        down, across = self.window.stride
        if down != across:
            raise ValueError(f"stride must be the same on both axes, got [{down}, {across}]")
        return (*self.window.outputs(shape), shape[2] * self.depth_multiplier)

    def variables(self, shape: Shape) -> tuple[Variable, ...]:
        size, filters = math.prod(self.window.size), shape[2] * self.depth_multiplier
        kernel = (*self.window.size, shape[2], self.depth_multiplier)
        return _kernel_and_bias(self, kernel, filters, (size, size * self.depth_multiplier))


class Conv2DTranspose(_Layer):
    """The transpose of a convolution, which makes an image larger: x [H, W, in] -> y [H', W',
    filters], y = b + the sum over i, j of K_ij x_ij at the window ij of a `conv2d` from y's shape
    to x's, with its size, stride and padding. `kernel` K is [height, width, filters, in], the
    kernel of that convolution.

    `padding: same` gives H' = H stride, `valid` H' = H stride + max(height - stride, 0), as in
    keras.layers.Conv2DTranspose. torch.nn.ConvTranspose2d cuts the same number of rows from both
    ends, so its `padding` gives these sizes only if height - stride is even. Dumoulin and Visin
    (2016), chapter 4; Long et al. (2015), section 3.3, call it deconvolution.
    """

    layer: Literal["conv2d_transpose"]
    filters: Count | Literal["outputs"]
    kernel_size: Sides
    stride: Sides
    padding: Padding
    bias: bool
    init: Init

    def output_shape(self, shape: Shape) -> Shape:
        _check_rank(shape, (3,), *_IMAGE)
        sides = zip(shape[:2], self.window.size, self.window.stride, strict=True)
        is_valid = self.padding == "valid"
        height, width = (
            length * stride + (max(size - stride, 0) if is_valid else 0)
            for length, size, stride in sides
        )
        return (height, width, int(self.filters))

    def variables(self, shape: Shape) -> tuple[Variable, ...]:
        size, area = math.prod(self.window.size), math.prod(self.window.stride)
        fans = (max(1, size * shape[2] // area), size * int(self.filters))
        kernel = (*self.window.size, int(self.filters), shape[2])
        return _kernel_and_bias(self, kernel, int(self.filters), fans)

    @property
    def window(self) -> Window:
        """The window of the convolution from the output to the input."""
        return Window(_pair(self.kernel_size), _pair(self.stride), self.padding)


class UpSampling2D(_Layer):
    """Repeat every row and every column of an image `size` times: [H, W, C] -> [H size, W size, C].
    torch.nn.Upsample and keras.layers.UpSampling2D with their default, nearest."""

    layer: Literal["upsampling2d"]
    size: Sides

    def output_shape(self, shape: Shape) -> Shape:
        _check_rank(shape, (3,), *_IMAGE)
        down, across = self.window.size
        return (shape[0] * down, shape[1] * across, shape[2])

    @property
    def window(self) -> Window:
        """The window of the output that has the copies of one pixel."""
        return Window(_pair(self.size), _pair(self.size), "valid")


class Conv1D(_Layer):
    """Cross-correlation over the steps of a sequence [T, in] -> [T', filters] with a kernel [size,
    in / G, filters] = `kernel`, G = `groups` as for `conv2d`: with one group, y_t = sum over i of
    x_{t stride + i dilation - low} W_i + b.

    `padding: same` gives ceil(T / stride) steps, as in TensorFlow; `causal` pads only at the start,
    so y_t depends on no later x (van den Oord et al., 2016); `valid` does not pad. The padding of a
    masked sequence counts as zeros; this needs stride 1, and not `valid`.
    torch.nn.Conv1d; keras.layers.Conv1D, which also takes no stride together with dilation.
    """

    layer: Literal["conv1d"]
    filters: Count | Literal["outputs"]
    kernel_size: Count
    stride: Count
    dilation: Count
    groups: Count
    padding: Literal["same", "valid", "causal"]
    bias: bool
    init: Init

    def output_shape(self, shape: Shape) -> Shape:
        _check_rank(shape, (2,), *_SEQUENCE)
        if self.stride > 1 and self.dilation > 1:
            raise ValueError(
                f"stride and dilation must not both be > 1, got {self.stride} and {self.dilation}"
            )
        _check_groups(self, shape[1])
        length = shape[0] + sum(self.pads(shape[0]))
        if length < self.span:
            raise ValueError(f"a window of {self.span} does not fit into {_show(shape)}")
        return ((length - self.span) // self.stride + 1, int(self.filters))

    def variables(self, shape: Shape) -> tuple[Variable, ...]:
        num_in, filters = shape[1] // self.groups, int(self.filters)
        fans = (self.kernel_size * num_in, self.kernel_size * filters // self.groups)
        return _kernel_and_bias(self, (self.kernel_size, num_in, filters), filters, fans)

    @property
    def ignores_padding(self) -> bool:
        return self.stride == 1 and self.padding != "valid"

    @property
    def span(self) -> int:
        """The number of steps from the first to the last one that the kernel reads."""
        return (self.kernel_size - 1) * self.dilation + 1

    def pads(self, num_steps: int) -> tuple[int, int]:
        """The zeros before and after the sequence."""
        if self.padding == "same":
            return padding_same(num_steps, self.span, self.stride)
        return (self.span - 1, 0) if self.padding == "causal" else (0, 0)


class _Recurrent(_IgnoresPadding):
    units: Count
    return_sequences: bool
    bidirectional: bool
    bias: bool
    init: Init

    def output_shape(self, shape: Shape) -> Shape:
        _check_rank(shape, (2,), *_SEQUENCE)
        features = self.units * len(self.prefixes)
        return (shape[0], features) if self.return_sequences else (features,)

    def variables(self, shape: Shape) -> tuple[Variable, ...]:
        num_gates, bias_shape = self._gates()
        return tuple(
            variable
            for prefix in self.prefixes
            for variable in (
                Variable(f"{prefix}kernel", (shape[1], num_gates), self.init, decays=True),
                Variable(
                    f"{prefix}recurrent_kernel", (self.units, num_gates), self.init, decays=True
                ),
                *([Variable(f"{prefix}bias", bias_shape, "zeros")] if self.bias else []),
            )
        )

    @abstractmethod
    def _gates(self) -> tuple[int, Shape]:
        """The width of all gates and the shape of the bias."""

    @property
    def prefixes(self) -> tuple[str, ...]:
        """The start of the variables' names in each direction."""
        return ("", "backward_") if self.bidirectional else ("",)


class GRU(_Recurrent):
    """A gated recurrent unit over the steps of a sequence [T, D], h_0 = 0, U = `units`:

        z = sigmoid(x W_z + b_z + h U_z + c_z),  r = sigmoid(x W_r + b_r + h U_r + c_r)
        n = tanh(x W_n + b_n + r (h U_n + c_n)),  h' = z h + (1 - z) n

    `kernel` [D, 3 U] and `recurrent_kernel` [U, 3 U] have the gates side by side in the order
    z, r, n; the rows of `bias` [2, 3 U] are b and c. The output is [T, U], or with
    `return_sequences: false` the last state [U]. `bidirectional` runs a second one from the last
    step to the first (`backward_kernel`, ...) and puts its output beside: 2 U features. In a masked
    sequence, the last step is the last one before the padding.

    This is keras.layers.GRU with reset_after=True (its default), and torch.nn.GRU, which has the
    order r, z, n. Keras's reset_after=False, r before the product, is Cho et al. (2014), equation
    8; no framework has a fused kernel for it.
    """

    layer: Literal["gru"]

    def _gates(self) -> tuple[int, Shape]:
        return 3 * self.units, (2, 3 * self.units)


class LSTM(_Recurrent):
    """Long short-term memory over the steps of a sequence [T, D], h_0 = c_0 = 0, U = `units`:

        i, f, o = sigmoid(x W + h U + b),  g = tanh(x W_g + h U_g + b_g)
        c' = f c + i g,  h' = o tanh(c')

    `kernel` [D, 4 U], `recurrent_kernel` [U, 4 U] and `bias` [4 U] have the gates side by side in
    the order i, f, g, o, which is that of torch.nn.LSTM and of keras.layers.LSTM. torch has a
    second bias, which is 0 here. All biases start at 0; Keras's unit_forget_bias starts f's at 1.
    The outputs are as for `gru`. Hochreiter and Schmidhuber (1997), with Gers et al. (2000)'s f.
    """

    layer: Literal["lstm"]

    def _gates(self) -> tuple[int, Shape]:
        return 4 * self.units, (4 * self.units,)


class _Pool(_Layer):
    pool_size: Sides
    stride: Sides
    padding: Padding

    def output_shape(self, shape: Shape) -> Shape:
        return (*self.window.outputs(shape), shape[2])

    @property
    def window(self) -> Window:
        return Window(_pair(self.pool_size), _pair(self.stride), self.padding)


class MaxPool(_Pool):
    """The maximum of each window; padding is ignored."""

    layer: Literal["max_pool"]


class AveragePool(_Pool):
    """The mean of each window; padding is ignored."""

    layer: Literal["average_pool"]


class _GlobalPool(_IgnoresPadding):
    def output_shape(self, shape: Shape) -> Shape:
        _check_rank(shape, (2, 3), "an image or a sequence", "add reshape")
        return shape[-1:]


class GlobalAveragePool(_GlobalPool):
    """The mean over height and width, or over the steps of a sequence: [H, W, C] -> [C], [T, D] ->
    [D]. The padding of a masked sequence does not count: sum(m x) / sum(m)."""

    layer: Literal["global_average_pool"]


class GlobalMaxPool(_GlobalPool):
    """The maximum over height and width, or over the steps of a sequence: [H, W, C] -> [C], [T, D]
    -> [D]. Equal maxima share the gradient equally, as in torch.amax and tf.reduce_max. The padding
    of a masked sequence does not count."""

    layer: Literal["global_max_pool"]


class Flatten(_Layer):
    """[H, W, C] -> [H * W * C], in row-major order."""

    layer: Literal["flatten"]

    def output_shape(self, shape: Shape) -> Shape:
        return (math.prod(shape),)


class Reshape(_Layer):
    """Reshape to `shape`, in row-major order: [64] -> [8, 8, 1] turns rows into images. One size
    may be -1; it follows from the others."""

    layer: Literal["reshape"]
    shape: list[Annotated[int, Field(ge=-1)]]

    def output_shape(self, shape: Shape) -> Shape:
        size, known = math.prod(shape), math.prod(num for num in self.shape if num != -1)
        output = tuple(size // max(1, known) if num == -1 else num for num in self.shape)
        if self.shape.count(-1) > 1 or math.prod(output) != size:
            raise ValueError(f"cannot reshape {_show(shape)} to {_show(tuple(self.shape))}")
        return output


class Slice(_IgnoresPadding):
    """y = x[..., start:stop], the values `start` to `stop` - 1 of the last axis; `stop: null` is
    its end. In a branch of `parallel`, it selects the columns of a table that the branch reads."""

    layer: Literal["slice"]
    start: Index
    stop: Count | None

    def output_shape(self, shape: Shape) -> Shape:
        start, stop = self.ends(shape)
        if not start < stop <= shape[-1]:
            raise ValueError(
                f"start must be < stop <= {shape[-1]}, the last size of its input, got {start} and "
                f"{stop}"
            )
        return (*shape[:-1], stop - start)

    def ends(self, shape: Shape) -> Pair:
        """The first number, and that after the last one, for an input of this shape."""
        return self.start, shape[-1] if self.stop is None else self.stop


class Columns(_IgnoresPadding):
    """The values of a row that the data calls so, in the order of `names`. A name is that of a
    feature, a pattern of names such as `age*`, or a column of text, which stands for the features
    of all its categories (`job` for `job=clerk`, ...).

    It is the first layer, or the first one of a branch there. A dense layer without bias after the
    categories of a column is an embedding of the column, as its row is 1 for one category and 0
    for the others: Guo and Berkhahn (2016), section 3.
    """

    layer: Literal["columns"]
    names: Annotated[list[str], Field(min_length=1)]

    def numbers(self, features: Sequence[str]) -> tuple[int, ...]:
        """The positions of the columns among the data's features. Raises ValueError for a name
        that none has."""
        found: list[int] = []
        for name in self.names:
            fitting = [i for i, feature in enumerate(features) if _is_called(feature, name)]
            if not fitting:
                texts = (feature.partition("=")[0] for feature in features)
                names = [*dict.fromkeys((*texts, *features))]
                raise ValueError(
                    f"names must be columns of the data, got {show(name)}{nearest(name, names)}"
                )
            found += fitting
        return tuple(dict.fromkeys(found))


def _is_called(feature: str, name: str) -> bool:
    return feature == name or feature.startswith(f"{name}=") or fnmatchcase(feature, name)


class Activation(_IgnoresPadding):
    """relu; leaky_relu with `negative_slope`; gelu = x Phi(x); gelu_tanh, its approximation; silu =
    x sigmoid(x)."""

    layer: Literal["activation"]
    function: Literal["relu", "leaky_relu", "gelu", "gelu_tanh", "silu", "tanh", "sigmoid"]
    negative_slope: NonNegative


class Dropout(_IgnoresPadding):
    """In training, x / (1 - rate) where the mask of runner.random.keep is true, else 0; the
    identity in evaluation."""

    layer: Literal["dropout"]
    rate: Fraction


class BatchNorm(_Layer):
    """y = (x - mean) / sqrt(variance + eps) * scale + offset, over all axes but the last.

    Training uses the batch's mean and biased variance; evaluation uses running values, updated as
    running = momentum * running + (1 - momentum) * batch, with the unbiased variance as in torch.
    `momentum` is defined as in Keras and Flax; torch's is 1 - momentum. Ioffe and Szegedy (2015).
    """

    layer: Literal["batch_norm"]
    momentum: Fraction
    eps: Positive

    def variables(self, shape: Shape) -> tuple[Variable, ...]:
        size = shape[-1:]
        return (
            Variable("scale", size, "ones"),
            Variable("offset", size, "zeros"),
            Variable("mean", size, "zeros", trainable=False),
            Variable("variance", size, "ones", trainable=False),
        )


class LayerNorm(_IgnoresPadding):
    """y = (x - mean) / sqrt(variance + eps) * scale + offset, over the last axis of each row. Ba et
    al. (2016)."""

    layer: Literal["layer_norm"]
    eps: Positive

    def variables(self, shape: Shape) -> tuple[Variable, ...]:
        return (Variable("scale", shape[-1:], "ones"), Variable("offset", shape[-1:], "zeros"))


class Embedding(_Layer):
    """y_t = E[x_t] for token ids x [T]; E [num_embeddings, features] = `embedding`. Bengio et al.
    (2003); torch.nn.Embedding, keras.layers.Embedding.

    It is the first layer, or follows `columns` of ids. `num_embeddings: tokens` is the number of
    tokens of the data, or of ids of the columns. With
    `mask_zero`, the ids 0 at the end of a row are padding. keras.layers.Embedding also masks zeros
    before other ids.
    """

    layer: Literal["embedding"]
    num_embeddings: Count | Literal["tokens"]
    features: Count
    mask_zero: bool
    init: Init

    @property
    def makes_mask(self) -> bool:
        return self.mask_zero

    def output_shape(self, shape: Shape) -> Shape:
        _check_rank(shape, (1,), "token ids [steps]", "remove layers")
        return (*shape, self.features)

    def variables(self, shape: Shape) -> tuple[Variable, ...]:
        return (Variable("embedding", (int(self.num_embeddings), self.features), self.init),)


class Masking(_Layer):
    """y = x, and the steps at the end of a sequence [T, D] whose features all equal `mask_value`
    are padding. keras.layers.Masking, which also masks such steps before others."""

    layer: Literal["masking"]
    mask_value: float

    @property
    def makes_mask(self) -> bool:
        return True

    def output_shape(self, shape: Shape) -> Shape:
        _check_rank(shape, (2,), *_SEQUENCE)
        return shape


class BlankPadding(_Layer):
    """y = x, and at the padding of a masked sequence [T, C + 1] the certain blank of loss=ctc: 0
    for the last feature, -1e30 for all others (float16: its least number). As the last layer, it
    ends the mask: a path that is longer by certain blanks has the probability of that without
    them, so the loss is that of the row's own steps."""

    layer: Literal["blank_padding"]

    @property
    def ignores_padding(self) -> bool:
        return True

    @property
    def ends_mask(self) -> bool:
        return True

    def output_shape(self, shape: Shape) -> Shape:
        _check_rank(shape, (2,), *_SEQUENCE)
        return shape


LOG_NEVER = -1e30  # of blank_padding, for a class that a step of padding never has


class RMSNorm(_IgnoresPadding):
    """y = x / sqrt(mean(x^2) + eps) * scale, over the last axis of each row; scale [D]. Zhang and
    Sennrich (2019), equation 4; torch.nn.RMSNorm, keras.layers.RMSNormalization."""

    layer: Literal["rms_norm"]
    eps: Positive

    def variables(self, shape: Shape) -> tuple[Variable, ...]:
        return (Variable("scale", shape[-1:], "ones"),)


class GroupNorm(_Layer):
    """y = (x - mean) / sqrt(variance + eps) * scale + offset, for each row over all positions and
    the C / G neighbouring channels of a group, G = `groups`; scale and offset [C].

    Wu and He (2018), equation 7; torch.nn.GroupNorm, keras.layers.GroupNormalization. G = C is
    instance norm.
    """

    layer: Literal["group_norm"]
    groups: Count
    eps: Positive

    def output_shape(self, shape: Shape) -> Shape:
        if shape[-1] % self.groups:
            raise ValueError(f"groups={self.groups} does not divide {shape[-1]} channels")
        return shape

    def variables(self, shape: Shape) -> tuple[Variable, ...]:
        return (Variable("scale", shape[-1:], "ones"), Variable("offset", shape[-1:], "zeros"))


class PositionEmbedding(_IgnoresPadding):
    """y = x + E for a sequence [T, D]; E [1, T, D] = `embedding`, trained. Gehring et al.
    (2017)."""

    layer: Literal["position_embedding"]
    init: Init

    def output_shape(self, shape: Shape) -> Shape:
        _check_rank(shape, (2,), *_SEQUENCE)
        return shape

    def variables(self, shape: Shape) -> tuple[Variable, ...]:
        return (Variable("embedding", (1, *shape), self.init),)


class SinusoidalPositions(_IgnoresPadding):
    """y = x + P for a sequence [T, D], D even: P[t, 2 i] = sin(t a_i), P[t, 2 i + 1] = cos(t a_i),
    a_i = base^(-2 i / D). It has no weights. Vaswani et al. (2017), section 3.5, with base 10000.
    """

    layer: Literal["sinusoidal_positions"]
    base: RotaryBase

    def output_shape(self, shape: Shape) -> Shape:
        _check_rank(shape, (2,), *_SEQUENCE)
        if shape[-1] % 2:
            raise ValueError(f"needs an even number of features, got {shape[-1]}")
        return shape


class Attention(_IgnoresPadding):
    """Self-attention with H = `num_heads` heads over the steps of a sequence [T, D]. Head h uses
    the columns h d to (h + 1) d, d = D / H, of q = x Q, k = x K and v = x V and computes
    softmax(q k^T / sqrt(d)) v; y = (concatenated heads) O.

    With `causal`, step t uses the steps up to t only: the softmax gives later ones the weight 0. It
    also gives the weight 0 to the padding of a masked sequence.

    With `num_kv_heads` = G, k and v have G heads, each for H / G neighbouring heads of q: head h
    uses the columns of head floor(h G / H). G = 1 is multi-query attention. Ainslie et al. (2023);
    torch's scaled_dot_product_attention with enable_gqa=True, keras.layers.GroupQueryAttention.

    With `positions: rotary`, q and k at step t are rotated by t: the columns i and i + d/2 of a
    head, i < d/2, are a pair with the angle t a_i, a_i = rotary_base^(-2 i / d). Su et al. (2021),
    equation 34, where a pair is the columns 2 i and 2 i + 1; the halves here, as in GPT-NeoX and in
    the Llama of Hugging Face, are the same network with the columns of Q and K in another order.

    Q, O [D, D] and K, V [D, G d] = `query`, `output`, `key`, `value`. There are no biases: the bias
    of the keys does not affect the output, so its gradient would be rounding noise. Vaswani et al.
    (2017), section 3.2.2; torch's MultiheadAttention with bias=False, Keras's with use_bias=False.
    """

    layer: Literal["attention"]
    num_heads: Count
    num_kv_heads: Count | None
    causal: bool
    positions: Literal["rotary"] | None
    rotary_base: RotaryBase
    init: Init

    def output_shape(self, shape: Shape) -> Shape:
        _check_rank(shape, (2,), *_SEQUENCE)
        if shape[-1] % self.num_heads:
            raise ValueError(f"num_heads={self.num_heads} does not divide {shape[-1]} features")
        if self.num_heads % self.kv_heads:
            raise ValueError(
                f"num_kv_heads={self.kv_heads} does not divide num_heads={self.num_heads}"
            )
        if self.positions == "rotary" and shape[-1] // self.num_heads % 2:
            raise ValueError(
                f"positions=rotary needs an even number of features per head, got "
                f"{shape[-1] // self.num_heads}"
            )
        return shape

    def variables(self, shape: Shape) -> tuple[Variable, ...]:
        width = shape[-1]
        narrow = width // self.num_heads * self.kv_heads
        widths = {"query": width, "key": narrow, "value": narrow, "output": width}
        return tuple(
            Variable(name, (width, num_out), self.init, decays=True)
            for name, num_out in widths.items()
        )

    @property
    def kv_heads(self) -> int:
        """The number of heads of the keys and values."""
        return self.num_kv_heads or self.num_heads

    def rotations(self, shape: Shape) -> tuple[np.ndarray, np.ndarray] | None:
        """The cosine and the sine for each step and pair of columns, if the positions are
        rotary.  # float64[T, d/2] each"""
        num_pairs = shape[-1] // self.num_heads // 2
        if self.positions is None:
            return None
        return rotations(shape[0], num_pairs, self.rotary_base)


class GatedDense(_IgnoresPadding):
    """y = f(x W_g + b_g) (x W + b), a product element by element: the gate, f = `activation`, times
    the value. W_g and W [in, out] are `gate_kernel` and `kernel`. Applied to each step of a
    sequence.

    The gated linear unit with f = sigmoid, Dauphin et al. (2017); with silu SwiGLU, with gelu
    GEGLU, with relu ReGLU, Shazeer (2020), equations 5 and 6, without biases as there. torch's
    nn.functional.glu is f = sigmoid of both products side by side. A feed-forward part of a
    transformer is this layer and a dense one.
    """

    layer: Literal["gated_dense"]
    units: Count
    activation: Literal["sigmoid", "silu", "gelu", "gelu_tanh", "relu"]
    bias: bool
    init: Init

    def output_shape(self, shape: Shape) -> Shape:
        _check_rank(shape, (1, 2), "a row or a sequence", "add flatten or global_average_pool")
        return (*shape[:-1], self.units)

    def variables(self, shape: Shape) -> tuple[Variable, ...]:
        return tuple(
            variable
            for prefix in ("gate_", "")
            for variable in _dense_variables(prefix, shape[-1], self.units, self.bias, self.init)
        )


class SqueezeExcite(_Layer):
    """y = x s for each channel, s = sigmoid(relu(m W_1 + b_1) W_2 + b_2), m the mean of x over
    height and width, or over the steps of a sequence. W_1 [C, C / r] = `squeeze_kernel` and W_2
    [C / r, C] = `excite_kernel`, r = `ratio`. Hu et al. (2018), equations 2 to 4;
    torchvision.ops.SqueezeExcitation."""

    layer: Literal["squeeze_excite"]
    ratio: Count
    bias: bool
    init: Init

    def output_shape(self, shape: Shape) -> Shape:
        _check_rank(shape, (2, 3), "an image or a sequence", "add reshape")
        if shape[-1] % self.ratio:
            raise ValueError(f"ratio={self.ratio} does not divide {shape[-1]} channels")
        return shape

    def variables(self, shape: Shape) -> tuple[Variable, ...]:
        channels, hidden = shape[-1], shape[-1] // self.ratio
        return (
            *_dense_variables("squeeze_", channels, hidden, self.bias, self.init),
            *_dense_variables("excite_", hidden, channels, self.bias, self.init),
        )


def _dense_variables(
    prefix: str, num_in: int, num_out: int, bias: bool, init: Init
) -> tuple[Variable, ...]:
    kernel = Variable(f"{prefix}kernel", (num_in, num_out), init, decays=True)
    return (kernel, Variable(f"{prefix}bias", (num_out,), "zeros")) if bias else (kernel,)


class _Branching(_IgnoresPadding):
    """A layer whose branches of other layers have the same input."""

    @property
    @abstractmethod
    def paths(self) -> dict[str, list[Any]]:
        """The layers of each branch, by its key."""

    @property
    @abstractmethod
    def joined_by(self) -> Join:
        """The function of the outputs of the branches."""

    @property
    def drop_rate(self) -> float:
        """The probability that training drops the first branch for a row."""
        return 0.0

    def joined(self, shapes: Sequence[Shape]) -> Shape:
        """The output's shape. Raises ValueError if those of the branches do not fit."""
        found = " and ".join(map(_show, shapes))
        if self.joined_by != "concat" and len({*shapes}) > 1:
            raise ValueError(f"the branches must have the same output shape, got {found}")
        if len({shape[:-1] for shape in shapes}) > 1:
            raise ValueError(
                f"the output shapes of the branches must differ only in the last size, got {found}"
            )
        if self.joined_by != "concat":
            return shapes[0]
        return (*shapes[0][:-1], sum(shape[-1] for shape in shapes))


class Residual(_Branching):
    """y = layers(x) + shortcut(x); without shortcut layers, layers(x) + x. He et al. (2016).

    With `stochastic_depth` = p, training drops `layers` for a row with probability p: y =
    m / (1 - p) layers(x) + shortcut(x), where m is 0 or 1, runner.random.keep of the rows. In
    evaluation, nothing is dropped. Huang et al. (2016), who multiply by 1 - p in evaluation instead
    of dividing in training; torchvision.ops.StochasticDepth with mode="row", timm's DropPath.
    """

    layer: Literal["residual"]
    layers: list["Layer"]
    shortcut: list["Layer"]
    stochastic_depth: Fraction

    @property
    def paths(self) -> dict[str, list[Any]]:
        return {"layers": self.layers, "shortcut": self.shortcut}

    @property
    def joined_by(self) -> Join:
        return "add"

    @property
    def drop_rate(self) -> float:
        return self.stochastic_depth


class Parallel(_Branching):
    """The outputs of all branches for the same input x: side by side on the last axis (`join:
    concat`), their sum (`add`) or their product element by element (`multiply`). A branch is a list
    of layers; [] is x itself. Szegedy et al. (2015), figure 2, concatenate convolutions of several
    sizes; keras.layers.Concatenate, Add and Multiply.
    """

    layer: Literal["parallel"]
    branches: Annotated[list[list["Layer"]], Field(min_length=2)]
    join: Join

    @property
    def paths(self) -> dict[str, list[Any]]:
        return {f"branches[{i}]": branch for i, branch in enumerate(self.branches)}

    @property
    def joined_by(self) -> Join:
        return self.join


Layer = Annotated[
    Union[
        Dense, Conv2D, MaxPool, AveragePool, GlobalAveragePool, Flatten, Reshape,
        Activation, Dropout, BatchNorm, LayerNorm, Embedding, PositionEmbedding, Attention,
        Residual, RMSNorm, GroupNorm, GlobalMaxPool,
        Conv1D, GRU, LSTM, DepthwiseConv2D, Conv2DTranspose, UpSampling2D,
        GatedDense, SqueezeExcite, Masking, BlankPadding, SinusoidalPositions, Parallel, Slice,
        Columns,
    ],
    OneOf("layer"),
]  # fmt: skip
Residual.model_rebuild()
Parallel.model_rebuild()


@dataclass(frozen=True)
class Node:
    """A layer of a network: its name, input and output shapes, variables, and the nodes of its
    branches if it has some."""

    name: str
    spec: Any
    input_shape: Shape
    output_shape: Shape
    variables: tuple[Variable, ...]
    branches: tuple[tuple["Node", ...], ...] = ()
    index: int = 0  # number among all nodes, in order of definition; keys the dropout masks
    is_masked: bool = False  # whether the input has a mask
    tied: str | None = None  # the weight of an embedding whose transpose is this node's `kernel`
    columns: tuple[int, ...] = ()  # of the data's row, for the layer `columns`

    def trainable(self) -> list[str]:
        """The names of its trainable weights, including those in its branches."""
        return [
            f"{node.name}/{v.name}" for node in _walk([self]) for v in node.variables if v.trainable
        ]

    def used(self) -> list[str]:
        """Like `trainable`, with the weights of other layers that it is tied to."""
        return [*self.trainable(), *(node.tied for node in _walk([self]) if node.tied)]


@dataclass(frozen=True)
class Network:
    """The layers of a model in order, with all shapes. A backend builds its model from it."""

    nodes: tuple[Node, ...]
    input_shape: Shape

    @property
    def takes_tokens(self) -> bool:
        """True if x are token ids."""
        return bool(self.nodes) and isinstance(self.nodes[0].spec, Embedding)

    @property
    def output_shape(self) -> Shape:
        return self.nodes[-1].output_shape if self.nodes else self.input_shape

    @property
    def outputs(self) -> Outputs | None:
        """Several outputs, which only a model of the user's own has."""
        return None

    def mask_of(self, x: np.ndarray) -> np.ndarray | None:
        """Return which steps of rows are no padding, if the first layer finds it; None without a
        mask.  # bool[N, T]"""
        first = self.nodes[0].spec if self.nodes else None
        if first is None or not first.makes_mask:
            return None
        is_value = x != 0 if isinstance(first, Embedding) else (x != first.mask_value).any(axis=-1)
        mask: np.ndarray = np.maximum.accumulate(is_value[:, ::-1], axis=1)[:, ::-1]
        mask[:, 0] = True
        return mask

    def widest(self) -> int:
        """Count the numbers of a row in the largest output of a layer, or in the input."""
        shapes = [self.input_shape, *(node.output_shape for node in self.walk())]
        return max(map(math.prod, shapes))

    def walk(self) -> Iterator[Node]:
        """Iterate over all nodes in order of definition; branches come after their node."""
        return _walk(self.nodes)

    def layers(self) -> list[list[str]]:
        """The names of the weights of each layer that has weights; one with branches is one layer.
        A layer that has only a weight of another one has no names."""
        return [node.trainable() for node in self.nodes if node.used()]

    def last_weights(self) -> list[str]:
        """The names of the weights that the last layer with weights uses."""
        return next((names for node in reversed(self.nodes) if (names := node.used())), [])

    def variables(self) -> dict[str, Variable]:
        """Map names to variables, in order of definition; a tied weight is its embedding's."""
        return {f"{node.name}/{v.name}": v for node in self.walk() for v in node.variables}


def network(
    layers: Sequence[Any],
    input_shape: Shape,
    num_outputs: int,
    positions: Shape = (),
    num_tokens: int = 0,
    features: Sequence[str] = (),
    ids: Sequence[int] = (),
    has_gaps: bool = False,
) -> Network:
    """Name the layers and compute their shapes. Raises ConfigError with the layer's path if shapes
    do not fit.

    Args:
        layers: the entries of `model.layers`.
        input_shape: of a row.
        num_outputs: for each label or row of targets.
        positions: the shape of a row of labels: () for one label, [T] for one at each step,
            [ANY_STEPS] for sequences of labels that are shorter.
        num_tokens: how many different token ids the rows have; 0 if they are numbers.
        features: the names of a row's values; empty if they have none.
        ids: one more than the largest id of each of the row's values, 0 for numbers; empty if the
            values are all ids or all numbers.
        has_gaps: positions may have no label, such as the padding of a masked sequence.
    """
    _check_tokens(layers, num_tokens)
    is_named = len(features) == math.prod(input_shape) and len(input_shape) == 1
    builder = _Builder(num_outputs, num_tokens, features if is_named else (), ids)
    nodes, output, is_masked = builder.build(layers, input_shape, "model.layers", False, True)
    _check_blanks(nodes, ANY_STEPS in positions)
    wanted = (*positions, num_outputs)
    if not fits_shape(output, wanted):
        raise ConfigError(
            f"model.layers must end in the shape {show_wanted(wanted)} for this data, got "
            f"{_show(output)}"
        )
    if is_masked and ANY_STEPS in positions:
        raise ConfigError(
            "model.layers must end the mask with {layer: blank_padding}, so that the padding has "
            "no labels of a sequence"
        )
    if is_masked and not has_gaps:
        raise ConfigError(
            "model.layers must end the mask, because the padding has labels, too; data.no_label of "
            "data=npz or arrays is the number in y that stands for none"
        )
    return Network(nodes, input_shape)


def _check_blanks(nodes: Sequence[Node], has_blank: bool) -> None:
    """Refuse blank_padding that is not at the end of a network whose last output is a blank."""
    blanks = [node for node in _walk(nodes) if node.spec.ends_mask]
    if blanks and not (has_blank and blanks == [nodes[-1]]):
        raise ConfigError(
            "model.layers: blank_padding must be the last layer of a model for "
            "data.task=transcription"
        )


ANY_STEPS = -1  # in a wanted shape


def fits_shape(found: Shape, wanted: Sequence[int]) -> bool:
    """Return whether a shape is the wanted one, ANY_STEPS standing for any size."""
    if len(found) != len(wanted):
        return False
    return all(size in (a, ANY_STEPS) for a, size in zip(found, wanted, strict=True))


def show_wanted(shape: Sequence[int]) -> str:
    """Show a wanted shape: [steps, 4] for any number of steps."""
    sizes = ("steps" if size == ANY_STEPS else str(size) for size in shape)
    return f"[{', '.join(sizes)}]"


class _Builder:
    """Makes nodes from the entries of model.layers; counts the layers of each kind."""

    def __init__(
        self, num_outputs: int, num_tokens: int, features: Sequence[str], ids: Sequence[int]
    ) -> None:
        self.num_outputs, self.num_tokens, self.features = num_outputs, num_tokens, features
        self.ids = ids
        self.counts: Counter[str] = Counter()
        self.made: dict[str, Shape] = {}  # embeddings so far: name -> [tokens, features]

    def build(
        self, specs: Sequence[Any], shape: Shape, path: str, is_masked: bool, is_row: bool
    ) -> tuple[tuple[Node, ...], Shape, bool]:
        """Return the nodes of the layers, and the shape of their output and whether it is
        masked. `is_row` says whether their input is the data's row."""
        nodes = []
        ids = self.ids if is_row else ()  # of the input
        for i, spec in enumerate(specs):
            where = f"{path}[{i}]"
            self._check_ids(spec, ids, where)
            spec = self._of_data(spec, ids)
            node, is_masked = self._node(spec, shape, where, is_masked, is_row and i == 0)
            nodes.append(node)
            shape = node.output_shape
            ids = [self.ids[column] for column in node.columns] if self.ids else ()
        if any(ids):
            raise ConfigError(f"{path} must not end in ids, which are no numbers; add embedding")
        return tuple(nodes), shape, is_masked

    def _of_data(self, spec: Any, ids: Sequence[int]) -> Any:
        """Return a layer with the sizes that the data has."""
        sizes = {"outputs": self.num_outputs, "tokens": max(ids, default=self.num_tokens)}
        keys = ("units", "filters", "num_embeddings")
        found = {key: getattr(spec, key, None) for key in keys}
        own = {key: sizes[value] for key, value in found.items() if isinstance(value, str)}
        return spec.model_copy(update=own) if own else spec

    def _check_ids(self, spec: Any, ids: Sequence[int], where: str) -> None:
        """Refuse ids as numbers, and numbers as ids. `ids` are those of the input's values."""
        if not self.ids or isinstance(spec, Columns | _Branching):
            return
        if not isinstance(spec, Embedding):
            if any(ids):
                named = zip(self.features, self.ids, strict=True)
                with_ids = dict.fromkeys(name.partition("=")[0] for name, num in named if num)
                raise ConfigError(
                    f"{where} ({spec.layer}): the columns {listed([*with_ids])} are ids, which are "
                    f"no numbers; take them by columns and embedding in a branch of parallel, and "
                    f"the others by columns in another one"
                )
            return
        if not ids or not all(ids):
            raise ConfigError(
                f"{where} (embedding): needs columns of ids alone before it, "
                f"{{layer: columns, names: [...]}}; others have numbers"
            )
        if isinstance(spec.num_embeddings, int) and spec.num_embeddings < max(ids):
            raise ConfigError(
                f"{where} (embedding): num_embeddings must be >= {max(ids)}, the number of ids of "
                f"its columns, got {spec.num_embeddings}"
            )

    def _node(
        self, spec: Any, shape: Shape, where: str, is_masked: bool, is_row: bool
    ) -> tuple[Node, bool]:
        """Return a node and whether its output is masked."""
        _check_mask(spec, where, is_masked)
        name, index = f"{spec.layer}_{self.counts[spec.layer]}", self.counts.total()
        self.counts[spec.layer] += 1
        if isinstance(spec, _Branching):
            built = [
                self.build(layers, shape, f"{where}.{key}", is_masked, is_row)
                for key, layers in spec.paths.items()
            ]
            branches, shapes, masked = zip(*built, strict=True)
            _check_branch_masks(spec, where, is_masked, masked)
            try:
                output = spec.joined(shapes)
            except ValueError as error:
                raise ConfigError(f"{where}: {error}") from None
            return Node(name, spec, shape, output, (), branches, index, is_masked), any(masked)
        columns: tuple[int, ...] = ()
        try:
            output = spec.output_shape(shape)
            if isinstance(spec, Columns):
                columns = self._columns(spec, is_row)
                output = (len(columns),)
        except ValueError as error:
            raise ConfigError(f"{where} ({spec.layer}): {error}") from None
        variables = spec.variables(shape)
        if spec.layer == "embedding":
            self.made[name] = variables[0].shape
        tied = self._tied(spec, shape, where) if getattr(spec, "tie", None) is not None else None
        # a layer that returns no sequence ends the mask
        stays = (is_masked or spec.makes_mask) and len(output) == 2 and not spec.ends_mask
        return Node(
            name, spec, shape, output, variables, (), index, is_masked, tied, columns
        ), stays

    def _columns(self, spec: Columns, is_row: bool) -> tuple[int, ...]:
        if not is_row:
            raise ValueError(
                "only the data's row has names, so this layer must be the first one, also of a "
                "branch; slice takes numbers"
            )
        if not self.features:
            raise ValueError("this data has no names of columns; slice takes numbers")
        return spec.numbers(self.features)

    def _tied(self, spec: Any, shape: Shape, where: str) -> str:
        """Return the name of the weight that a dense layer is tied to. Raises ConfigError if there
        is no such embedding, or if its sizes are others."""
        path = f"{where} (dense): tie"
        if not self.made:
            raise ConfigError(
                f"{path} must be null, as no embedding is before it, got {show(spec.tie)}"
            )
        if spec.tie not in self.made:
            raise ConfigError(
                f"{path} must be {' or '.join(self.made)}, an embedding before it, got "
                f"{show(spec.tie)}{nearest(spec.tie, self.made)}"
            )
        num_tokens, features = self.made[spec.tie]
        if spec.units != num_tokens:
            raise ConfigError(
                f"{path}={spec.tie} needs one unit for each of its {num_tokens} tokens, got "
                f"units={spec.units}"
            )
        if shape[-1] != features:
            raise ConfigError(
                f"{path}={spec.tie} needs an input with its {features} features, got {shape[-1]}"
            )
        return f"{spec.tie}/embedding"


def _check_mask(spec: Any, where: str, is_masked: bool) -> None:
    """Refuse a second mask, and layers that use padding."""
    if spec.ends_mask and not is_masked:
        raise ConfigError(
            f"{where} ({spec.layer}): the sequence has no mask, so no padding to replace; remove "
            f"it, or begin with masking or mask_zero"
        )
    if spec.makes_mask and is_masked:
        raise ConfigError(
            f"{where} ({spec.layer}): the sequence has a mask already; use one, before the other "
            f"layers"
        )
    if is_masked and not spec.ignores_padding:
        raise ConfigError(
            f"{where} ({spec.layer}): this layer would use the padding of a masked sequence; use "
            "layers that ignore it (conv1d with stride 1 and padding same or causal, gru, lstm, "
            "attention, layer_norm, rms_norm), and global_average_pool or global_max_pool at the "
            "end"
        )


def _check_branch_masks(spec: Any, where: str, is_masked: bool, ends: Sequence[bool]) -> None:
    """Refuse a branch that makes a mask and does not end it. `ends` says which outputs of the
    branches have a mask."""
    for path, has_mask in zip(spec.paths, ends, strict=True):
        if has_mask and not is_masked:
            raise ConfigError(
                f"{where}.{path}: a branch that makes a mask must end it, by global_average_pool, "
                f"global_max_pool, gru or lstm"
            )


def _check_tokens(layers: Sequence[Any], num_tokens: int) -> None:
    """Refuse an embedding of numbers, and other layers of token ids."""
    is_embedded = needs_tokens(layers)
    if num_tokens and not is_embedded:
        raise ConfigError(
            f"model.layers must begin with embedding, because this data has token ids; got "
            f"{layers[0].layer if layers else 'no layers'}"
        )
    if is_embedded and isinstance(num := layers[0].num_embeddings, int) and num < num_tokens:
        raise ConfigError(
            f"model.layers[0] (embedding): num_embeddings must be >= {num_tokens}, the number of "
            f"tokens of this data, got {num}"
        )


def needs_tokens(layers: Sequence[Any]) -> bool:
    """True if the first layer takes token ids."""
    return bool(layers) and isinstance(layers[0], Embedding)


_FOR_ROWS_AND_SEQUENCES = (
    Dense, Flatten, Reshape, Conv1D, _Recurrent, Embedding, PositionEmbedding, Attention,
    GatedDense, Masking, SinusoidalPositions, Columns,
)  # fmt: skip


def needs_images(layers: Sequence[Any]) -> bool:
    """True if the first layer that needs a certain number of axes needs an image."""
    for spec in layers:
        if isinstance(spec, _Branching):
            if any(map(needs_images, spec.paths.values())):
                return True
        elif isinstance(spec, (_Conv2D, Conv2DTranspose, UpSampling2D, _Pool, _GlobalPool)):
            return True
        elif isinstance(spec, _FOR_ROWS_AND_SEQUENCES):
            return False
    return False


def initial_variables(net: Network, seed: int) -> dict[str, np.ndarray]:
    """Draw the initial value of every variable, float64, from (seed, name): equal on every backend.

    glorot_uniform: U(-a, a), a = sqrt(6 / (fan_in + fan_out)), Glorot and Bengio (2010), equation
    16. he_uniform: a = sqrt(6 / fan_in), He et al. (2015), equation 10, as a uniform draw. uniform:
    a = 0.05, as for keras.layers.Embedding. unit_uniform: a = sqrt(3), so mean 0 and variance 1, as
    the normal draw of torch.nn.Embedding. fan_in is the number of inputs that an output is a sum
    of, fan_out the number of outputs that an input is in; padding is ignored.
    """
    return {name: _initial(variable, name, seed) for name, variable in net.variables().items()}


def _initial(variable: Variable, name: str, seed: int) -> np.ndarray:
    if variable.init in ("zeros", "ones"):
        return np.full(variable.shape, float(variable.init == "ones"))
    if variable.init == "uniform":
        return (2 * uniform(variable.shape, seed, name) - 1) * 0.05
    if variable.init == "unit_uniform":
        return (2 * uniform(variable.shape, seed, name) - 1) * np.sqrt(3)
    receptive = math.prod(variable.shape[:-2])
    fan_in, fan_out = variable.fans or (size * receptive for size in variable.shape[-2:])
    fan = fan_in + fan_out if variable.init == "glorot_uniform" else fan_in
    return (2 * uniform(variable.shape, seed, name) - 1) * np.sqrt(6 / fan)


def padding_same(size: int, window: int, stride: int) -> tuple[int, int]:
    """The (low, high) padding of one axis that gives ceil(size / stride) windows. If the total is
    odd, `high` gets one more."""
    total = max((-(-size // stride) - 1) * stride + window - size, 0)
    return total // 2, total - total // 2


def with_defaults(layer: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Fill the `layer_defaults` of its kind into an entry of `model.layers`, and into nested
    layers."""

    def nested(branch: Any) -> Any:
        if not isinstance(branch, list):
            return branch
        return [with_defaults(e, defaults) if isinstance(e, Mapping) else e for e in branch]

    filled = {**defaults.get(str(layer.get("layer")), {}), **layer}
    for key in ("layers", "shortcut"):
        if key in filled:
            filled[key] = nested(filled[key])
    if isinstance(filled.get("branches"), list):
        filled["branches"] = [nested(branch) for branch in filled["branches"]]
    return filled


def _walk(nodes: Sequence[Node]) -> Iterator[Node]:
    for node in nodes:
        yield node
        for branch in node.branches:
            yield from _walk(branch)


def _pair(sides: int | list[int]) -> Pair:
    """Both sides of a size that may be one number for both."""
    down, across = (sides, sides) if isinstance(sides, int) else sides
    return down, across


def _check_groups(spec: Any, num_in: int) -> None:
    """Raise ValueError if the groups of a convolution have no equal parts."""
    if num_in % spec.groups:
        raise ValueError(f"groups={spec.groups} does not divide {num_in} channels")
    if int(spec.filters) % spec.groups:
        raise ValueError(f"groups={spec.groups} does not divide filters={spec.filters}")


def _kernel_and_bias(spec: Any, shape: Shape, filters: int, fans: Pair) -> tuple[Variable, ...]:
    kernel = Variable("kernel", shape, spec.init, decays=True, fans=fans)
    return (kernel, Variable("bias", (filters,), "zeros")) if spec.bias else (kernel,)


def _check_rank(shape: Shape, ranks: tuple[int, ...], meaning: str, remedy: str) -> None:
    if len(shape) not in ranks:
        axes = " or ".join(map(str, ranks))
        raise ValueError(
            f"input must have {axes} axes ({meaning}), got {_show(shape)}; {remedy} before it"
        )


def _show_pair(pair: Pair) -> str:
    return str(pair[0]) if pair[0] == pair[1] else _show(pair)


def _show(shape: Shape) -> str:
    return "[" + ", ".join(map(str, shape)) + "]"
