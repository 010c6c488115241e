"""Everything private of torch and Lightning that this room uses, and what each gains.

Each function has a stock fallback, which TWINRUN_STOCK=1 in the environment selects. Canary tests
in tests/backends/test_lightning.py fail where a release changes what is used here.
"""

import os
import signal
from collections.abc import Callable, Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.optim import Optimizer

STOCK = os.environ.get("TWINRUN_STOCK") == "1"


def backward(loss: Tensor, one: Tensor) -> None:
    """`loss.backward()`, calling the engine itself. `backward` first examines its arguments, a
    fifth of the pass of a small network. `one` is the gradient of the loss by itself."""
    if STOCK:
        loss.backward()
        return
    torch.autograd.Variable._execution_engine.run_backward(
        (loss,), (one,), False, False, (), allow_unreachable=True, accumulate_grad=True
    )


def scale(tensors: list[Tensor], factor: Any) -> None:
    """Multiply tensors in place: one call for all of them."""
    if STOCK:
        for tensor in tensors:
            tensor.mul_(factor)
    else:
        torch._foreach_mul_(tensors, factor)


def norms(tensors: list[Tensor]) -> list[Tensor]:
    """The Euclidean norm of each tensor: one call for all of them."""
    if STOCK:
        return [torch.linalg.vector_norm(tensor) for tensor in tensors]
    return list(torch._foreach_norm(tensors))


def keep_signal_handlers(trainer: pl.Trainer) -> None:
    """Keep the runner's signal handlers: it saves between two chunks, as under Keras, where
    Lightning's handler for SIGTERM would end the process."""
    if STOCK:
        trainer.callbacks.append(_Handlers())  # type: ignore[attr-defined]
    else:
        trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]


class _Handlers(pl.Callback):
    """Put the handlers back that were in force before `fit`."""

    def __init__(self) -> None:
        self.before = {number: signal.getsignal(number) for number in signal.valid_signals()}

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        for number, handler in self.before.items():
            if handler is not None and signal.getsignal(number) is not handler:
                signal.signal(number, handler)


def count(trainer: pl.Trainer, num_steps: int) -> None:
    """Add updates to `trainer.global_step`. The Trainer counts calls of its own wrapper around the
    optimizer, which these updates do not go through; without this the count stays 0."""
    if STOCK:
        return
    progress = trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress
    for tracker in (progress.total, progress.current):
        tracker.ready += num_steps
        tracker.completed += num_steps


def update(spec: Any, optimizer: Optimizer) -> Callable[[], Any]:
    """Return what applies the gradients: `optimizer.step`, or for Adam, AdamW and SGD on the CPU
    the fused kernel that a `step` ends in. A `step` examines its groups and tensors every time,
    which takes longer than the kernel does on a small model."""
    if STOCK:
        return optimizer.step
    groups = optimizer.param_groups
    on_cpu = all(p.device.type == "cpu" for group in groups for p in group["params"])
    if not (on_cpu and all(group.get("fused") for group in groups)):
        return optimizer.step
    # the first one has the rate eta(t) and may be empty
    groups = [group for group in groups if group["params"]]
    if spec.name in ("adam", "adamw"):
        return _fused_adam(groups, optimizer.state)
    # by a hook, which goes before a `step`
    shrinks = spec.decays and groups[0]["decays_by"] == "shrinks"
    if spec.name == "sgd" and not shrinks:
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
        own = [states[p] for p in group["params"]]
        kernel = torch._fused_adamw_ if group["decoupled_weight_decay"] else torch._fused_adam_
        largest = [state["max_exp_avg_sq"] for state in own] if group["amsgrad"] else []
        tensors = (
            [state["exp_avg"] for state in own],
            [state["exp_avg_sq"] for state in own],
            largest,
        )
        calls.append((group, kernel, _unwatched(group), tensors, [state["step"] for state in own]))
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
        (group, _unwatched(group), [m for p in group["params"] for m in states[p].values()])
        for group in groups
    ]
    return apply


def _unwatched(group: Mapping[str, Any]) -> list[Tensor]:
    """The parameters' memory, outside of autograd."""
    return [p.detach() for p in group["params"]]
