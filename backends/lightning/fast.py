"""Uses of private torch and Lightning APIs, and what each one gains.

Each function has a fallback to the public API, which TWINRUN_STOCK=1 in the environment selects.
Canary tests in tests/backends/test_lightning.py fail if a release changes these private APIs.
"""

import os
import signal
from collections.abc import Callable, Mapping
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from pytorch_lightning.trainer.connectors import callback_connector
from torch import Tensor
from torch.optim import Optimizer

STOCK = os.environ.get("TWINRUN_STOCK") == "1"


def backward(loss: Tensor, one: Tensor) -> None:
    """Run the backward pass with autograd's engine. `loss.backward()` first checks its arguments,
    which takes a fifth of a small network's backward pass. `one` is d loss / d loss = 1."""
    if STOCK:
        loss.backward()
        return
    torch.autograd.Variable._execution_engine.run_backward(
        (loss,), (one,), False, False, (), allow_unreachable=True, accumulate_grad=True
    )


def cross_entropy(z: Tensor, y: Tensor, label_smoothing: float) -> Tensor:
    """Return the mean cross-entropy of outputs z [B, C] and labels y [B]. The public function looks
    for tensors of other libraries and translates its arguments, which takes 1 us."""
    if STOCK:
        return F.cross_entropy(z, y, label_smoothing=label_smoothing)
    kernel: Any = torch._C._nn.cross_entropy_loss
    mean, ignored_label = 1, -100
    loss: Tensor = kernel(z, y, None, mean, ignored_label, label_smoothing)
    return loss


def scale(tensors: list[Tensor], factor: Any) -> None:
    """Multiply tensors in place, with one call for all of them."""
    if STOCK:
        for tensor in tensors:
            tensor.mul_(factor)
    else:
        torch._foreach_mul_(tensors, factor)


def add(tensors: list[Tensor], number: float) -> None:
    """Add a number to tensors in place, with one call for all of them."""
    if STOCK:
        for tensor in tensors:
            tensor.add_(number)
    else:
        torch._foreach_add_(tensors, number)


def lerp(tensors: list[Tensor], ends: list[Tensor], share: float) -> None:
    """Move tensors in place by a share of the way to others, with one call for all of them."""
    if STOCK:
        for tensor, end in zip(tensors, ends, strict=True):
            tensor.lerp_(end, share)
    else:
        torch._foreach_lerp_(tensors, ends, share)


def norms(tensors: list[Tensor]) -> list[Tensor]:
    """Return the Euclidean norm of each tensor, with one call for all of them."""
    if STOCK:
        return [torch.linalg.vector_norm(tensor) for tensor in tensors]
    return list(torch._foreach_norm(tensors))


def make_trainer(**arguments: Any) -> pl.Trainer:
    """Make a Trainer without the callbacks that installed packages have registered: a run has those
    of its config. To look for them, Lightning reads a file of every installed package, which takes
    6 ms of CPU for two hundred packages."""
    if STOCK:
        return pl.Trainer(**arguments)
    module: Any = callback_connector
    find = module._load_external_callbacks
    module._load_external_callbacks = lambda group: []
    try:
        return pl.Trainer(**arguments)
    finally:
        module._load_external_callbacks = find


def keep_signal_handlers(trainer: pl.Trainer) -> None:
    """Keep the runner's signal handlers, so that it saves a checkpoint between two chunks, as with
    Keras. Lightning's SIGTERM handler would end the process."""
    if STOCK:
        trainer.callbacks.append(_Handlers())  # type: ignore[attr-defined]
    else:
        trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]


class _Handlers(pl.Callback):
    """Restores the signal handlers that were set before `fit`."""

    def __init__(self) -> None:
        self.before = {number: signal.getsignal(number) for number in signal.valid_signals()}

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        for number, handler in self.before.items():
            if handler is not None and signal.getsignal(number) is not handler:
                signal.signal(number, handler)


def count(trainer: pl.Trainer, num_steps: int) -> None:
    """Add `num_steps` updates to `trainer.global_step`. The Trainer counts calls of its wrapper
    around the optimizer; these updates bypass the wrapper, so the count would stay 0."""
    if STOCK:
        return
    progress = trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress
    for tracker in (progress.total, progress.current):
        tracker.ready += num_steps
        tracker.completed += num_steps


def update(spec: Any, optimizer: Optimizer) -> Callable[[], Any]:
    """Return the function that applies the gradients: `optimizer.step`, or for Adam, AdamW and SGD
    on the CPU the fused kernel that `step` calls in the end. `step` checks its groups and tensors
    on every call; for a small model, this takes longer than the kernel."""
    if STOCK:
        return optimizer.step
    groups = optimizer.param_groups
    on_cpu = all(p.device.type == "cpu" for group in groups for p in group["params"])
    if not (on_cpu and all(group.get("fused") for group in groups)):
        return optimizer.step
    # the first group has the rate eta(t) and may be empty
    groups = [group for group in groups if group["params"]]
    if spec.name in ("adam", "adamw"):
        return _fused_adam(groups, optimizer.state)
    # this decay is a hook that runs before `step`; the kernel alone would skip it
    needs_hook = spec.decays and groups[0]["decay_key"] == "hook_decay"
    if spec.name == "sgd" and not needs_hook:
        return _fused_sgd(groups, optimizer.state)
    return optimizer.step


def _fused_adam(groups: list[dict[str, Any]], states: Mapping[Tensor, Any]) -> Callable[[], None]:
    def apply() -> None:
        for group, kernel, values, tensors, steps in calls:
            for step in steps:
                step += 1
            beta1, beta2 = group["betas"]
            kernel(
                values,
                [p.grad for p in group["params"]],
                *tensors,
                steps,
                amsgrad=group["amsgrad"],
                lr=group["lr"],
                beta1=beta1,
                beta2=beta2,
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                maximize=False,
            )

    calls: list[Any] = []
    for group in groups:
        group_states = [states[p] for p in group["params"]]
        kernel = torch._fused_adamw_ if group["decoupled_weight_decay"] else torch._fused_adam_
        max_exp_avg_sqs = (
            [state["max_exp_avg_sq"] for state in group_states] if group["amsgrad"] else []
        )
        tensors = (
            [state["exp_avg"] for state in group_states],
            [state["exp_avg_sq"] for state in group_states],
            max_exp_avg_sqs,
        )
        calls.append(
            (group, kernel, _detached(group), tensors, [state["step"] for state in group_states])
        )
    return apply


def _fused_sgd(groups: list[dict[str, Any]], states: Mapping[Tensor, Any]) -> Callable[[], None]:
    def apply() -> None:
        for group, values, momenta in calls:
            torch._fused_sgd_(
                values,
                [p.grad for p in group["params"]],
                momenta if group["momentum"] else [],
                weight_decay=group["weight_decay"],
                momentum=group["momentum"],
                lr=group["lr"],
                dampening=0.0,
                nesterov=group["nesterov"],
                maximize=False,
                is_first_step=False,
            )

    calls = [
        (group, _detached(group), [m for p in group["params"] for m in states[p].values()])
        for group in groups
    ]
    return apply


def _detached(group: Mapping[str, Any]) -> list[Tensor]:
    """Return the parameters, detached from autograd; they share their memory."""
    return [p.detach() for p in group["params"]]
