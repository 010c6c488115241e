"""The contract on Lightning, and that its optimizers are torch's own."""

import importlib
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch

from backends.lightning import fast, lean
from runner import dispatcher
from runner.data.order import Chunk
from runner.spec import Live, Report, TrainState, Weights
from tests.contract import F64, CallContract, RunContract, UpdateContract
from tests.training import first, prepare, train


class TestRuns(RunContract):
    name = "lightning"

    def tf32(self) -> tuple[bool, ...]:
        return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


class TestCalls(CallContract):
    name = "lightning"


class TestUpdates(UpdateContract):
    name = "lightning"


class _ByStockCalls:
    """The same without anything private of torch and Lightning."""

    @pytest.fixture(autouse=True)
    def stock(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(fast, "STOCK", True)


@pytest.mark.slow
class TestRunsByStockCalls(_ByStockCalls, TestRuns):
    pass


@pytest.mark.slow
class TestUpdatesByStockCalls(_ByStockCalls, TestUpdates):
    pass


VERSIONS = f"torch {torch.__version__}, pytorch-lightning {pl.__version__}"
PRIVATE = {
    "the engine of autograd": lambda: torch.autograd.Variable._execution_engine.run_backward,
    "a number added to many tensors": lambda: torch._foreach_add_,
    "a product with many tensors": lambda: torch._foreach_mul_,
    "the norms of many tensors": lambda: torch._foreach_norm,
    "the fused kernel of Adam": lambda: torch._fused_adam_,
    "the fused kernel of AdamW": lambda: torch._fused_adamw_,
    "the fused kernel of SGD": lambda: torch._fused_sgd_,
    "the kernel of the cross-entropy": lambda: fast.cross_entropy(
        torch.zeros(2, 3), torch.tensor([0, 1]), 0.1
    ),
    "Lightning's signal handlers": lambda: (
        pl.Trainer(logger=False)._signal_connector.register_signal_handlers
    ),
    "Lightning's counts of updates": lambda: (
        pl.Trainer(
            logger=False
        ).fit_loop.epoch_loop.manual_optimization.optim_step_progress.total.completed
        + 0
    ),
    "Lightning's search for callbacks of other packages": lambda: (
        fast.make_trainer(logger=False, callbacks=[]).callbacks
    ),
    "torchmetrics' own order of imports": lambda: [
        importlib.import_module(f"torchmetrics.{name}") for name in lean._IMPORT_ORDER
    ],
}


@pytest.mark.parametrize("name", PRIVATE)
def test_what_is_private_of_other_libraries_is_still_there(name: str) -> None:
    try:
        PRIVATE[name]()
    except (AttributeError, TypeError, ImportError) as error:
        pytest.fail(f"{name} has changed in {VERSIONS}: {error}; see backends/lightning/fast.py")


def test_the_trainer_counts_every_update() -> None:
    """By `trainer.global_step`, which fast.count keeps."""
    prepared, seen = prepare(["trainer.max_steps=50", "device=cpu"]), []

    def on_chunk(chunk: Chunk, report: Report, live: Live) -> bool:
        seen.append((chunk.first_step + chunk.num_steps, live.trainer.global_step))  # type: ignore[attr-defined]
        return True

    chunks = prepared.chunks(0, None, adapt=False)
    dispatcher.load("lightning").train(prepared.run_spec(), first(prepared), chunks, on_chunk)
    assert [global_step for _, global_step in seen] == [step for step, _ in seen]
    assert seen[-1][0] == 50


STOCK: dict[str, Any] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=1.0, momentum=0.9, weight_decay=0.01),
    "adam": lambda p: torch.optim.Adam(p, lr=1.0, weight_decay=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1.0, weight_decay=0.01),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1.0, momentum=0.9, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=1.0),
    "adadelta": lambda p: torch.optim.Adadelta(p, lr=1.0),
    "adamax": lambda p: torch.optim.Adamax(p, lr=1.0),
    "nadam": lambda p: torch.optim.NAdam(p, lr=1.0),
}
KEYS = {
    "sgd": ["optimizer.momentum=0.9", "optimizer.weight_decay=0.01"],
    "adam": ["optimizer.weight_decay=0.01"],
    "rmsprop": ["optimizer.momentum=0.9", "optimizer.centered=true"],
}


@pytest.mark.parametrize("name", STOCK)
def test_a_run_is_what_a_plain_torch_loop_with_the_stock_optimizer_gives(name: str) -> None:
    """Independent of this project's loop: nn.Linear, cross_entropy, the stock class, the rate set
    by hand.

    1e-7: NAdam's stock class keeps the product of its momenta in float32, ours in float64; the
    others agree to 1e-13.
    """
    overrides = [*F64, f"optimizer={name}", *KEYS.get(name, [])]
    prepared = prepare(overrides)
    weights, rates, trained = (
        first(prepared).weights,
        prepared.rates(),
        train("lightning", overrides),
    )
    model = torch.nn.Sequential(
        torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10)
    ).double()
    with torch.no_grad():
        for layer, linear in (("dense_0", model[0]), ("dense_1", model[2])):
            linear.weight.copy_(torch.from_numpy(weights[f"{layer}/kernel"].T))
            linear.bias.copy_(torch.from_numpy(weights[f"{layer}/bias"]))
    optimizer = STOCK[name](model.parameters())
    x, y = torch.from_numpy(prepared.data.train.x), torch.from_numpy(prepared.data.train.y)
    losses = []
    for step, rate in enumerate(rates):
        epoch, batch = divmod(step, 40)
        rows = torch.from_numpy(prepared.order.epoch(epoch)[32 * batch : 32 * batch + 32].copy())
        optimizer.param_groups[0]["lr"] = float(rate)
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(x[rows]), y[rows])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    tolerance = 1e-7 if name == "nadam" else 1e-13
    np.testing.assert_allclose(trained.losses, losses, rtol=0, atol=tolerance)
    kernel = model[2].weight.detach().numpy().T
    np.testing.assert_allclose(
        trained.state.weights["dense_1/kernel"], kernel, rtol=0, atol=tolerance
    )


@pytest.mark.parametrize(
    "overrides",
    [
        ["optimizer=adam", "optimizer.weight_decay=0.01"],
        ["optimizer=adamw", "optimizer.amsgrad=true"],
        [
            "optimizer=sgd",
            "optimizer.momentum=0.9",
            "optimizer.nesterov=true",
            "optimizer.weight_decay=0.01",
        ],
        ["optimizer=sgd"],
        [
            "optimizer=adamw",
            "optimizer.groups=[{match: '*/bias', lr_factor: 0.1}]",
            "trainer.gradient_clip_norm=0.1",
        ],
    ],
    ids=lambda said: "-".join(said),
)
def test_private_kernels_give_the_bits_of_the_stock_calls(
    overrides: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the bit, in float32: weights and slots after 50 updates."""
    said = ["trainer.max_steps=50", "device=cpu", *overrides]
    directly = train("lightning", said).state
    monkeypatch.setattr(fast, "STOCK", True)
    stepped = train("lightning", said).state
    for found, expected in ((directly.weights, stepped.weights), *zip_slots(directly, stepped)):
        for name, value in expected.items():
            np.testing.assert_array_equal(found[name], value)


def zip_slots(a: TrainState, b: TrainState) -> list[tuple[Weights, Weights]]:
    assert a.slots.keys() == b.slots.keys()
    return [(a.slots[slot], b.slots[slot]) for slot in a.slots]


def test_lion_is_its_papers_algorithm() -> None:
    """Chen et al. (2023), algorithm 2, in NumPy, on the gradients that plain SGD reveals."""
    layers = "model.layers=[{layer: dense, units: outputs}]"
    shared = ["trainer.precision=float64", "trainer.max_steps=2", layers]
    prepared = prepare(shared)
    x, y = prepared.data.train.x, prepared.data.train.y
    w, b = (first(prepared).weights[f"dense_0/{name}"].copy() for name in ("kernel", "bias"))
    m = np.zeros_like(w)
    for step in range(2):
        rows = prepared.order.epoch(0)[32 * step : 32 * step + 32]
        z = x[rows] @ w + b
        p = np.exp(z - z.max(1, keepdims=True))
        error = (p / p.sum(1, keepdims=True) - np.eye(10)[y[rows]]) / 32
        g, gb = x[rows].T @ error, error.sum(0)
        mb = np.zeros_like(b) if step == 0 else mb  # noqa: F821
        w -= 1e-3 * np.sign(0.9 * m + 0.1 * g)
        b -= 1e-3 * np.sign(0.9 * mb + 0.1 * gb)
        m, mb = 0.99 * m + 0.01 * g, 0.99 * mb + 0.01 * gb
    trained = train("lightning", [*shared, "optimizer=lion", "optimizer.lr=1e-3"]).state
    np.testing.assert_allclose(trained.weights["dense_0/kernel"], w, rtol=0, atol=1e-15)
    np.testing.assert_allclose(
        trained.slots["first_moment"]["dense_0/kernel"], m, rtol=0, atol=1e-15
    )


def test_attention_is_torch_s_own() -> None:
    """nn.MultiheadAttention without biases, given the same kernels, which torch keeps as [out, in].
    float64: a few ulp."""
    layers = "{layer: reshape, shape: [8, -1]}, {layer: attention, num_heads: 4}, {layer: flatten}"
    prepared = prepare(
        ["trainer.precision=float64", f"model.layers=[{layers}, {{layer: dense, units: outputs}}]"]
    )
    x, state = np.asarray(prepared.data.test.x[:9], np.float64), first(prepared)
    kernels = {
        name: torch.from_numpy(state.weights[f"attention_0/{name}"].T)
        for name in ("query", "key", "value", "output")
    }
    stock = torch.nn.MultiheadAttention(8, 4, bias=False, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        stock.in_proj_weight.copy_(torch.cat([kernels["query"], kernels["key"], kernels["value"]]))
        stock.out_proj.weight.copy_(kernels["output"])
        steps = torch.from_numpy(x).reshape(-1, 8, 8)
        heads = stock(steps, steps, steps)[0].flatten(1).numpy()
    expected = heads @ state.weights["dense_0/kernel"] + state.weights["dense_0/bias"]
    found = dispatcher.load("lightning").predict(prepared.model, state, {"x": x})
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-13)
