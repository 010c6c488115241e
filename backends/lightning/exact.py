"""Exact mode in torch: the primitives of runner.exact, and the network and the optimizer
that use them."""

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backends.lightning import distributed, layers
from backends.lightning.average import swapped
from backends.lightning.schedule import hyperparameters, read
from runner.components.layers import Pads, Window
from runner.components.optimizers import AVERAGE_WEIGHTS, BASE_WEIGHTS, Group
from runner.errors import IF_DIVERGED, RunError
from runner.exact import gradient, optimizers, self_test
from runner.exact.hyperparameters import Hyperparameters
from runner.exact.layers import Pass
from runner.exact.network import Layout, forward
from runner.exact.primitives import Place, Together
from runner.exact.reference import positions, sliding
from runner.exact.rules import TINY
from runner.exact.state import StateLayout, evaluated
from runner.exact.tables import table
from runner.random import layer_key
from runner.spec import ModelSpec, RunSpec, TrainState

_EXPONENT = 0x7FF0000000000000  # mask of the exponent's bits in a float64
_SLICE = 1 << 15  # elements per call of an optimizer's update; so many stay in the cache


class Torch:
    """The primitives on one device. On the CPU, `grid` computes its unit in Python: reading two
    scalars costs less than six kernel calls. `together` are the processes of a run of several."""

    def __init__(self, device: torch.device, together: Together | None = None) -> None:
        self.device, self.on_cpu, self.together = device, device.type == "cpu", together
        self._tables: dict[str, Tensor] = {}
        self._eyes: dict[int, Tensor] = {}
        self._windows: dict[tuple[Any, ...], Tensor] = {}

    def constant(self, value: np.ndarray) -> Tensor:
        return torch.from_numpy(value).to(self.device)

    def r(self, x: Any) -> Any:
        if isinstance(x, float):
            rounded = float(np.float32(x))
            return rounded if abs(rounded) > TINY else 0.0
        return F.hardshrink(x.float(), TINY).double()

    def rint(self, x: Tensor) -> Tensor:
        return torch.round(x)

    def grid(
        self, x: Tensor, bits: int, per_row: bool = False, of_all: bool = False
    ) -> tuple[Tensor, Any]:
        together = self.together if of_all else None
        if self.on_cpu and not per_row:
            bound = _bound(x)
            if together is not None:
                # what is not finite is so in all processes: a maximum can lose NaN
                bound = bound if math.isfinite(bound) else math.inf
                bound = together.largest(torch.tensor([bound], dtype=x.dtype)).item()
            if not math.isfinite(bound):
                raise RunError(
                    f"a value is not finite: an update went beyond the range of float32; "
                    f"{IF_DIVERGED}"
                )
            exponent = math.frexp(bound)[1] - bits
            return (x * 2.0**-exponent).round_(), 2.0**exponent
        largest = x.abs() if x.numel() else x.new_zeros((*x.shape[:1], *(1 for _ in x.shape[1:])))
        largest = largest.amax(tuple(range(1, x.ndim)), keepdim=True) if per_row else largest.amax()
        largest = largest if together is None else together.largest(largest)
        power, _ = self.power(largest.clamp_min(2.0**-200))
        return (x * (2.0 ** (bits - 1) / power)).round_(), power * 2.0 ** (1 - bits)

    def over_all(self, x: Tensor) -> Tensor:
        return x if self.together is None else self.together.sum(x)

    def plus(self, a: Tensor, b: Tensor, scale: Any) -> Tensor:
        return (
            torch.add(a, b, alpha=scale) if isinstance(scale, float) else torch.addcmul(a, b, scale)
        )

    def sqrt(self, x: Tensor) -> Tensor:
        return torch.sqrt(x)

    def abs(self, x: Tensor) -> Tensor:
        return torch.abs(x)

    def maximum(self, a: Tensor, b: Any) -> Tensor:
        return a.clamp_min(b) if isinstance(b, float) else torch.maximum(a, b)

    def where(self, condition: Tensor, a: Any, b: Any) -> Tensor:
        return torch.where(condition, a, b)

    def gate(self, g: Tensor, y: Tensor) -> Tensor:
        return torch.ops.aten.threshold_backward(g, y, 0.0)

    def sum(self, x: Tensor, axes: tuple[int, ...], keep: bool = False) -> Tensor:
        return x.sum(axes, keepdim=keep)

    def largest(self, x: Tensor) -> Tensor:
        return x.amax(-1, keepdim=True)

    def matmul(self, a: Tensor, b: Tensor) -> Tensor:
        # MKL is faster if the long axis is the last one
        if a.ndim == 2 and a.shape[0] >= 4 * b.shape[1]:
            return (b.t() @ a.t()).t()
        return a @ b

    def transpose(self, a: Tensor) -> Tensor:
        return a.transpose(-1, -2)

    def permute(self, a: Tensor, axes: Sequence[int]) -> Tensor:
        return a.permute(*axes)

    def reverse(self, a: Tensor) -> Tensor:
        return a.flip(0)

    def spread(self, x: Tensor, shape: Sequence[int]) -> Tensor:
        return x.expand(shape)

    def reshape(self, x: Tensor, shape: Sequence[int]) -> Tensor:
        return x.reshape(tuple(shape))

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        return torch.cat([part.reshape(-1) for part in parts])

    def pad(self, x: Tensor, pads: Pads, value: float) -> Tensor:
        return F.pad(x, (0, 0, *pads[1], *pads[0]), value=value)

    def patches(self, x: Tensor, window: Window, pads: Pads) -> Tensor:
        *images, channels = x.shape
        key = (*images, window, pads)
        if key not in self._windows:
            self._windows[key] = self.constant(_windows(images, window, pads))
        pixels = x.new_empty((math.prod(images) + 1, channels))
        pixels[:-1] = x.reshape(-1, channels)
        pixels[-1] = 0.0
        num = math.prod(window.size) * channels
        return pixels.index_select(0, self._windows[key]).view(-1, num)

    def fold(self, parts: Sequence[Tensor], window: Window, shape: tuple[int, int]) -> Tensor:
        num, height, width, channels = parts[0].shape
        # channels first in memory, as in the results of `matmul`
        images = parts[0].new_zeros((channels, num, *shape)).movedim(0, -1)
        for i, part in enumerate(parts):
            a, b = positions(window, i, height, width)
            images[:, a, b] += part
        return images

    def power(self, x: Tensor) -> tuple[Tensor, Tensor]:
        bits = x.view(torch.int64) & _EXPONENT
        return bits.view(torch.float64), (bits >> 52).double() - 1023.0

    def split(self, x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
        integers = x.long()
        return integers >> bits, integers & ((1 << bits) - 1)

    def real(self, index: Tensor) -> Tensor:
        return index.double()

    def take(self, name: str, index: Tensor) -> Tensor:
        if name not in self._tables:
            self._tables[name] = self.constant(table(name))
        return self._tables[name].take(index)

    def one_hot(self, labels: Tensor, num: int) -> Tensor:
        if num not in self._eyes:
            self._eyes[num] = torch.eye(num, dtype=torch.float64, device=self.device)
        return self._eyes[num][labels.long()]

    def keep(
        self, x: Tensor, rate: float, layer_index: int, where: Place, is_masked: bool = False
    ) -> Tensor:
        key = layer_key(where.seed, layer_index)
        place = (where.step, where.micro_batch, self.device, where.first_row)
        return layers.keep(x.shape, rate, key, *place, is_masked)


def _bound(x: Tensor) -> float:
    """Return max |x|, at least 2^-200."""
    if not x.numel():
        return 2.0**-200
    # reduce in memory order
    low, high = torch.aminmax(x if x.is_contiguous() else x.movedim(-1, 0))
    return max(-low.item(), high.item(), 2.0**-200)


def _windows(images: Sequence[int], window: Window, pads: Pads) -> np.ndarray:
    """Return the index into all pixels [N, H, W] at each position of each window, in the order of
    `patches`. The padding has the index N * H * W."""
    num = math.prod(images)
    indices = np.pad(
        np.arange(num, dtype=np.int32).reshape(images), ((0, 0), *pads), constant_values=num
    )
    return np.array(sliding(indices, window), order="C").reshape(-1)


class Network(nn.Module):
    """All weights as one float64 vector, and the running statistics. `forward` is evaluation: no
    row depends on another."""

    def __init__(
        self,
        model: ModelSpec,
        state: TrainState,
        device: torch.device,
        groups: Sequence[Group] = (),
        together: Together | None = None,
    ) -> None:
        super().__init__()
        self.nodes, self.layout, self.o = (
            model.network.nodes,
            Layout.of(model.network, groups),
            Torch(device, together),
        )
        self.takes_tokens = model.network.takes_tokens
        self.weights = nn.Parameter(
            self.o.r(self.o.constant(self.layout.pack(state.weights))), requires_grad=False
        )
        self.statistics = {
            name: self.o.r(self.o.constant(v.astype(np.float64)))
            for name, v in state.buffers.items()
        }

        self._views: tuple[int, dict[str, Tensor]] = (0, {})

    def values(self) -> dict[str, Tensor]:
        """Return canonical name -> view of the weights. Makes new views only if the weights' memory
        has moved."""
        if self._views[0] != self.weights.data_ptr():
            self._views = (self.weights.data_ptr(), self.layout.views(self.o, self.weights))
        return self._views[1]

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        p = Pass(self.o, {**self.values(), **self.statistics})
        x = x if self.takes_tokens else self.o.r(x.double())
        return forward(p, self.nodes, x)[0].float()


class Optimizer(torch.optim.Optimizer):
    """Any optimizer of the config, on the vector of all weights. Each parameter group is a slice of
    the vector; the state holds the slots by their standard names."""

    def __init__(self, run: RunSpec, network: Network, start: TrainState) -> None:
        parts, hyper = network.layout.parts, hyperparameters(run.optimizer)
        size = network.layout.size
        groups = [
            {
                **hyper,
                "params": [network.weights.data[part]],
                "rate": group.rate,
                "decay_factor": group.decay_factor,
            }
            for group, part in parts
        ]
        super().__init__(groups, {"lr": run.optimizer.lr})
        self.spec, self.network, self.scheduled = run.optimizer, network, [*run.scheduled]
        self.tables = optimizers.tables_of(run)
        self.num_updates = start.step
        self.layout = StateLayout.of(network.layout, start.slots)
        packed = self.layout.pack(start.slots)
        self.slots = {slot: network.o.constant(values) for slot, values in packed.items()}
        # what an update changes together: the unit, and views of its weights and slots
        self.units = [
            (
                unit,
                network.weights.data[unit.weights],
                {slot: self.slots[slot][part] for slot, part in unit.slots.items()},
            )
            for unit in self.layout.units(run.optimizer, _SLICE)
        ]
        for group, (_, part) in zip(self.param_groups, parts, strict=True):
            self.state[group["params"][0]] = {
                slot: value[part] for slot, value in self.slots.items() if len(value) == size
            }

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        self.apply()

    def apply(self) -> None:
        """Make one update without torch's wrapper around `step`. The caller must disable
        autograd."""
        gradients: Any = self.network.weights.grad
        h = Hyperparameters(
            self.network.o,
            self.spec,
            {name: read(self.param_groups[0], name) for name in self.scheduled},
            {name: float(values[self.num_updates]) for name, values in self.tables.items()},
        )
        rates = [native["lr"] for native in self.param_groups]
        w = self.network.weights
        h, changed = optimizers.before(h, self.layout.weights, w, gradients, self.slots, rates[0])
        for slot, value in changed.items():
            self.slots[slot].copy_(value)
        for unit, weights, slots in self.units:
            g, rate = gradients[unit.weights], rates[unit.number]
            new, new_slots = optimizers.update(h, unit, weights, g, slots, rate)
            weights.copy_(new)
            for slot, value in new_slots.items():
                slots[slot].copy_(value)
        self.num_updates += 1


class Engine:
    """Trains all weights as one float64 vector, with the updates of runner.exact."""

    compile_seconds = 0.0  # nothing is compiled

    def __init__(self, run: RunSpec, start: TrainState, device: torch.device) -> None:
        together = distributed.connect(run.world) if run.world.size > 1 else None
        self.run = run
        self.network = Network(run, start.for_training(), device, run.groups, together)
        self_test.check(str(device), self._run_self_test)
        self.optimizer = Optimizer(run, self.network, start)
        o = self.network.o
        self.fields = {
            name: self._field(name, o.constant(values)) for name, values in run.fields.items()
        }

    def _field(self, name: str, values: Tensor) -> Tensor:
        """Return a field's integers, or its numbers rounded by R."""
        is_integer = name in gradient.integer_fields(self.run)
        return values if is_integer else self.network.o.r(values.double())

    def evaluation(self) -> AbstractContextManager[None]:
        """Return a context in which the network has its weights for evaluation."""
        slots, network = self.optimizer.slots, self.network
        if BASE_WEIGHTS not in slots:
            return nullcontext()
        x = evaluated(network.o, self.run.optimizer, network.weights.data, slots[BASE_WEIGHTS])
        return swapped({"weights": network.weights}, {"weights": x})

    def averaged(self) -> AbstractContextManager[None]:
        """Return a context in which the network has the average of the weights."""
        average = self.optimizer.slots[AVERAGE_WEIGHTS]
        return swapped({"weights": self.network.weights}, {"weights": average})

    def close(self) -> None:
        """End the run; nothing is to undo."""

    def _run_self_test(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        o = self.network.o
        return [tensor.cpu().numpy() for tensor in self_test.results(o, *map(o.constant, inputs))]

    @torch.inference_mode()
    def update(
        self,
        step: int,
        batches: Sequence[Mapping[str, Tensor]],
        num_rows: int,
        sizes: Sequence[int] = (),
    ) -> tuple[list[tuple[Tensor, ...]], list[Tensor]]:
        """Make one update. Return each micro-batch's outputs, targets and any weights, for
        `losses`, and its float32 outputs, both from before the update."""
        n, self.sizes = self.network, sizes or [len(batch["x"]) for batch in batches]
        batches = self._rounded(batches)
        n.weights.grad, n.statistics, outputs = gradient.gradient(
            n.o,
            self.run,
            n.layout,
            n.values(),
            n.statistics,
            batches,
            self.sizes,
            self.run.seed,
            step,
        )
        self.optimizer.apply()
        terms = [gradient.loss_terms(z, batch) for z, batch in zip(outputs, batches, strict=True)]
        return terms, [z.float() for z in outputs]

    def _rounded(self, batches: Sequence[Mapping[str, Tensor]]) -> list[dict[str, Tensor]]:
        """Return the batches with R of the numbers that are not in memory."""
        streamed = self.run.streamed
        return [
            {name: self._field(name, v) if name in streamed else v for name, v in batch.items()}
            for batch in batches
        ]

    @torch.inference_mode()
    def gradient_norms(
        self,
        step: int,
        batches: Sequence[Mapping[str, Tensor]],
        num_rows: int,
        sizes: Sequence[int] = (),
    ) -> dict[str, float]:
        """Compute the gradient of an update without making it. Return its norm for each weight."""
        n, run, rounded = self.network, self.run, self._rounded(batches)
        sizes = sizes or [len(batch["x"]) for batch in batches]
        vector, _, _ = gradient.gradient(
            n.o,
            run,
            n.layout,
            n.values(),
            n.statistics,
            rounded,
            sizes,
            run.seed,
            step,
            clips=False,
        )
        return gradient.norms(run, n.layout, vector.cpu().numpy())

    @torch.inference_mode()
    def losses(self, loss_terms: Sequence[list[tuple[Tensor, ...]]]) -> Tensor:
        """Compute the updates' losses, all with one call.  # float32[K]"""
        # per micro-batch: outputs, targets and weights of all K updates
        by_micro_batch = [zip(*terms, strict=True) for terms in zip(*loss_terms, strict=True)]
        batches = [tuple(map(torch.cat, tensors)) for tensors in by_micro_batch]
        o, num_steps = self.network.o, len(loss_terms)
        return gradient.losses(o, self.run, batches, self.sizes, num_steps).float()

    def state(self, step: int) -> TrainState:
        n = self.network
        return self.optimizer.layout.state(
            self.run.optimizer,
            step,
            n.weights.detach().cpu().numpy(),
            {slot: value.cpu().numpy() for slot, value in self.optimizer.slots.items()},
            {name: value.float().cpu().numpy() for name, value in n.statistics.items()},
        )
