"""The engine of every precision but exact: updates by autograd and the optimizers' own kernels."""

import time
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from backends.lightning import fast, layers, losses, optimizers
from runner.spec import RunSpec, TrainState


class Engine:
    """torch.nn, autograd, stock optimizers: every precision but exact."""

    def __init__(self, run: RunSpec, start: TrainState, where: torch.device) -> None:
        self.run = run
        self.place = layers.Place(run.seed)
        dtype = torch.from_numpy(np.empty(0, run.dtype)).dtype
        self.network = layers.Network(run.network, self.place).to(where, dtype)
        layers.load_state(self.network, start)
        tensors = self.network.named()
        self.weights = {name: tensors[name] for name in start.weights}
        self.buffer_names, self.slot_names = list(start.buffers), list(start.slots)
        self.loss = losses.build(run.loss)
        self.call = layers.direct(self.network)
        self.forward = (
            layers.compiled(self._forward, self.network) if run.compile else self._forward
        )
        self.compile_seconds, self._compiled_for = 0.0, set[torch.Size]()
        self.one = torch.ones((), dtype=dtype, device=where)
        self.fields = {name: torch.from_numpy(v).to(where) for name, v in run.fields.items()}
        flats = optimizers.flatten(self.weights, run.groups)
        self.flats = [flat for own in flats for flat in own]
        self.optimizer = optimizers.build(run.optimizer, flats, run.groups)
        optimizers.load_slots(run.optimizer, self.optimizer, self.flats, start.slots, start.step)
        self.apply = fast.update(run.optimizer, self.optimizer)

    def _forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        z = self.call(x)
        return z, self.loss(z, y)

    def update(
        self, step: int, batches: Sequence[Mapping[str, Tensor]], num_rows: int
    ) -> tuple[Tensor, list[Tensor]]:
        """Make an update; the mean loss and the outputs of each micro-batch before it."""
        outputs = []
        self.place.step, self.place.micro_batch = step, 0
        for flat in self.flats:
            flat.forget()
        before = (
            [buffer.clone() for buffer in self.network.buffers()] if self.run.skip_nonfinite else []
        )
        shares = []
        for batch in batches:
            x = batch["x"]
            began = time.perf_counter()
            z, share = self.forward(x, batch["y"])
            if num_rows != len(x):
                share = share * (len(x) / num_rows)
            fast.backward(share, self.one)
            if self.run.compile and x.shape not in self._compiled_for:
                self._compiled_for.add(x.shape)
                self.compile_seconds += time.perf_counter() - began
            shares.append(share.detach())
            outputs.append(z.detach())
            self.place.micro_batch += 1
        total = sum(shares[1:], shares[0])
        if self.run.skip_nonfinite and not bool(torch.isfinite(total)):
            for buffer, value in zip(self.network.buffers(), before, strict=True):
                buffer.copy_(value)
            optimizers.pass_over(self.optimizer)
            return total, outputs
        if self.run.gradient_clip_norm is not None:
            optimizers.clip_by_global_norm(
                [flat.gradient for flat in self.flats], self.run.gradient_clip_norm
            )
        self.apply()
        return total, outputs

    def losses(self, shares: Sequence[Tensor]) -> Tensor:
        """Updates' losses.  # dtype[K]"""
        return torch.stack(list(shares))

    def state(self, step: int) -> TrainState:
        slots = optimizers.save_slots(
            self.run.optimizer, self.optimizer, self.flats, self.slot_names
        )
        weights, buffers = (
            layers.save(self.network, names) for names in (list(self.weights), self.buffer_names)
        )
        return TrainState(step, weights, slots, buffers)
