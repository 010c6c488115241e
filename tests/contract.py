"""The promises of every backend. A backend's test module subclasses `RunContract`,
`CallContract` and `UpdateContract`, and names itself."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from runner import dispatcher
from runner.data.order import Chunk, Chunks
from runner.evaluation import values
from runner.random import keep, layer_key
from runner.run import validation
from runner.spec import Live, Report, TrainState, World
from tests.rows import slow_but
from tests.training import Trained, difference, differences, first, prepare, train

SCHEDULE = ["schedule=exponential", "schedule.decay_rate=0.5"]
SMALL = ["trainer.max_steps=90", *SCHEDULE]
F64 = [*SMALL, "trainer.precision=float64"]
CNN = ["model=cnn", "data.images=true"]

RESUMED = [
    "sgd",
    "adam",
    "nadam",
    "rmsprop",
    "adafactor",
    "lamb",
    "muon",
    "schedule_free_adamw",
    "prodigy",
]  # optimizers


def assert_same_bits(a: Trained, b: Trained) -> None:
    np.testing.assert_array_equal(a.losses, b.losses)
    np.testing.assert_array_equal(a.rates, b.rates)
    assert max(differences(a, b).values()) == 0.0


class _Contract:
    name: str

    trained: dict[tuple[str, ...], Trained]  # whole runs that several tests look at

    def __init_subclass__(cls) -> None:
        cls.trained = {}

    def train(self, overrides: list[str], **how: object) -> Trained:
        if how:
            return train(self.name, overrides, **how)  # type: ignore[arg-type]
        key = tuple(overrides)
        if key not in self.trained:
            self.trained[key] = train(self.name, overrides)
        return self.trained[key]


class RunContract(_Contract):
    """Runs: their bits, states, rates and chunks."""

    def test_it_calls_itself_by_its_name_and_finds_the_cpu(self) -> None:
        backend = dispatcher.load(self.name)
        assert backend.name == self.name
        assert "cpu" in backend.devices()

    @pytest.mark.parametrize("precision", slow_but(["float32", "float64"], "float32"))
    @pytest.mark.parametrize("length", slow_but([1, 2, 7], 7))
    def test_the_result_does_not_depend_on_the_length_of_the_chunk(
        self, precision: str, length: int
    ) -> None:
        overrides = [*SMALL, f"trainer.precision={precision}"]
        whole = self.train(overrides)
        assert_same_bits(self.train([*overrides, f"trainer.steps_per_call={length}"]), whole)

    @pytest.mark.slow
    def test_nor_with_convolutions_batch_norm_dropout_and_accumulation(self) -> None:
        overrides = [*SCHEDULE, *CNN, "trainer.accumulate_grad_batches=3", "trainer.max_steps=30"]
        assert_same_bits(
            self.train([*overrides, "trainer.steps_per_call=4"]), self.train(overrides)
        )

    # the framework's flags that let GPUs round the inputs of float32 products
    tf32: Callable[..., tuple[bool, ...]]

    @pytest.mark.parametrize("is_on", [False, True])
    def test_tf32_is_off_unless_asked_and_as_before_afterwards(self, is_on: bool) -> None:
        """Both frameworks have it on for convolutions, which parts their float32 on a GPU."""
        before, during = self.tf32(), []
        prepared = prepare([*SMALL, f"trainer.tf32={str(is_on).lower()}"])

        def on_chunk(chunk: Chunk, report: Report, live: Live) -> bool:
            during.append(self.tf32())
            return False  # stop

        chunks = prepared.chunks(0, prepared.checkpoints(), adapt=False)
        backend = dispatcher.load(self.name)
        backend.train(prepared.run_spec(), first(prepared), chunks, on_chunk)
        assert True in before
        assert {flag for flags in during for flag in flags} == {is_on}
        assert self.tf32() == before

    def test_the_same_run_twice_gives_the_same_bits(self) -> None:
        overrides = [*SMALL, *CNN]
        assert_same_bits(train(self.name, overrides), train(self.name, overrides))

    @pytest.mark.parametrize("optimizer", slow_but(RESUMED, "nadam"))
    def test_a_run_goes_on_from_its_state_to_the_same_bits(self, optimizer: str) -> None:
        momentum = ["optimizer.momentum=0.9"] if optimizer in ("sgd", "rmsprop") else []
        overrides = [*F64, f"optimizer={optimizer}", *momentum, "trainer.steps_per_call=10"]
        self._assert_goes_on(overrides, at=50)

    @pytest.mark.slow
    @pytest.mark.parametrize("average", ["ema=0.9", "swa=60%", "lawa=2"])
    def test_a_run_with_an_average_goes_on_to_the_same_bits(self, average: str) -> None:
        overrides = [*F64, f"optimizer.{average}", "trainer.steps_per_call=10"]
        self._assert_goes_on(overrides, at=70)

    def _assert_goes_on(self, overrides: list[str], at: int) -> None:
        """Train 90 updates, and as many in two parts."""
        whole, half = self.train(overrides), self.train(overrides, stop_after=at)
        rest = self.train(overrides, start=half.state)
        assert (half.state.step, rest.state.step) == (at, 90)
        assert_same_bits(half.then(rest), whole)

    @pytest.mark.slow
    def test_the_order_of_a_state_s_mappings_reaches_no_sum(self) -> None:
        """The norm of all gradients is a sum over weights. A TrainState sorts its mappings: here
        they are put in another order behind its back, and chunks of another length see to it that
        Keras compiles anew."""
        overrides = [
            *SCHEDULE,
            "trainer.max_steps=40",
            "optimizer=nadam",
            "trainer.gradient_clip_norm=0.5",
        ]
        turned = first(prepare(overrides))
        for name in ("weights", "slots", "buffers"):
            object.__setattr__(turned, name, dict(reversed(getattr(turned, name).items())))
        assert_same_bits(
            self.train([*overrides, "trainer.steps_per_call=20"], start=turned),
            self.train(overrides),
        )

    def test_digits_are_learnt_with_the_defaults(self) -> None:
        """The mean test accuracy of 5 seeds is at least 0.94."""
        prepared = prepare([])
        x, y = np.ascontiguousarray(prepared.data.test.x, dtype=np.float32), prepared.data.test.y
        accuracies = []
        for seed in range(5):
            state: TrainState = self.train([f"seed={seed}"]).state
            outputs = dispatcher.load(self.name).predict(
                replace(prepared.model, device="cpu"), state, {"x": x}
            )
            accuracies.append(np.mean(outputs.argmax(axis=1) == y))
        assert np.mean(accuracies) >= 0.94

    def test_the_rate_is_read_back_and_is_the_table_rounded_once(self) -> None:
        overrides = [*SMALL, "trainer.precision=float32", "schedule.warmup=10%"]
        trained = self.train(overrides)
        assert trained.rates.dtype == np.float32
        np.testing.assert_array_equal(trained.rates, prepare(overrides).rates().astype(np.float32))

    def test_the_loss_is_that_of_the_batch_before_the_update(self) -> None:
        """Its oracle: the NumPy loss of the network's outputs on the first batch, with the first
        weights."""
        prepared, trained = prepare(F64), self.train(F64)
        rows, start = prepared.order.chunk(0, 1).rows, first(prepared)
        x = np.ascontiguousarray(prepared.data.train.x[rows])
        outputs = dispatcher.load(self.name).predict(prepared.model, start, {"x": x})
        expected = prepared.loss.rows(outputs, prepared.data.train.y[rows]).mean()
        # float64 rounding of a mean over 32 rows
        assert trained.losses[0] == pytest.approx(expected, rel=1e-14)

    @pytest.mark.parametrize(
        "precision", slow_but(["float32", "float64", "exact"], "float32", "exact")
    )
    def test_processes_that_share_an_evaluation_find_the_bits_of_one(self, precision: str) -> None:
        """256 validation rows in batches of 40. F1 needs the outputs of all rows at once."""
        overrides = ["trainer.batch_size=5", "trainer.max_steps=2", "metrics=[accuracy,f1_macro]"]
        prepared = prepare([*overrides, f"trainer.precision={precision}"])
        val, found = validation.split(prepared), []

        def on_chunk(chunk: Chunk, report: Report, live: Live) -> bool:
            found.append(validation.validate(prepared, live))
            for num in (2, 3):
                worlds = [World(rank, num) for rank in range(num)]
                parts = [validation.own_results(prepared, live, world) for world in worlds]
                assert all(len(part.by_row["loss"]) > 64 for part in parts)
                whole = validation.of_all(prepared, worlds[0], parts)
                found.append(values(prepared, val, whole, "val/"))
            return False

        chunks = prepared.chunks(0, prepared.checkpoints(), adapt=False)
        dispatcher.load(self.name).train(prepared.run_spec(), first(prepared), chunks, on_chunk)
        assert found[0].keys() == {"val/loss", "val/accuracy", "val/f1_macro"}
        assert found == found[:1] * 3


class CallContract(_Contract):
    """Calls: what they take, stop at and leave as it was."""

    def test_another_seed_gives_another_run(self) -> None:
        assert differences(self.train(SMALL), self.train([*SMALL, "seed=1"]))["weights"] > 1e-3

    def test_it_stops_when_it_is_told_to(self) -> None:
        stopped = self.train([*SMALL, "trainer.steps_per_call=5"], stop_after=20)
        assert stopped.state.step == 20
        assert len(stopped.losses) == 20

    def test_what_it_starts_from_is_left_as_it_was(self) -> None:
        start = first(prepare(F64))
        copy = {name: value.copy() for name, value in start.weights.items()}
        self.train(F64, start=start)
        assert difference(start.weights, copy) == 0

    def test_predictions_between_chunks_are_those_from_the_state(self) -> None:
        prepared = prepare([*F64, *CNN])
        x, seen = np.ascontiguousarray(prepared.data.val.x), []

        def on_chunk(chunk: Chunk, report: Report, live: Live) -> bool:
            seen.append((live.state(), live.predict({"x": x})))
            return True

        chunks = Chunks(prepared.order, 0, 40, None, adapt=False)
        backend = dispatcher.load(self.name)
        backend.train(prepared.run_spec(), first(prepared), chunks, on_chunk)
        for state, outputs in seen:
            np.testing.assert_array_equal(outputs, backend.predict(prepared.model, state, {"x": x}))

    def test_predictions_do_not_depend_on_the_rows_of_a_forward_pass(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A pass has eight batches of 32 rows, or one if a layer's output would take more than the
        limit. Float64's sums may have another order: 10 outputs of order 1, 1e-12."""
        prepared = prepare([*F64, *CNN])
        start, x, found = first(prepared), np.ascontiguousarray(prepared.data.val.x), {}
        for limit in (1, 2**22):
            monkeypatch.setattr("runner.spec._LARGEST_OUTPUT", limit)
            outputs = dispatcher.load(self.name).predict(prepared.model, start, {"x": x})
            found[prepared.model.rows_per_pass] = outputs
        assert [*found] == [32, 256]
        np.testing.assert_allclose(found[32], found[256], rtol=0, atol=1e-12)


class UpdateContract(_Contract):
    """The arithmetic of an update."""

    @pytest.mark.parametrize(
        "loss", slow_but(["mean_squared_error", "huber"], "mean_squared_error")
    )
    def test_losses_on_targets_are_numpys(self, loss: str) -> None:
        overrides = [*F64, "data=diabetes", f"loss={loss}"]
        prepared, trained = prepare(overrides), self.train(overrides)
        rows = prepared.order.chunk(0, 1).rows
        expected = prepared.loss.rows(
            trained.outputs[: len(rows)], prepared.data.train.y[rows]
        ).mean()
        assert trained.losses[0] == pytest.approx(expected, rel=1e-14)  # as above

    def test_accumulated_batches_are_one_large_batch(self) -> None:
        """1e-13: sums of the same products in another order, over 13 updates, all of whole
        batches."""
        overrides = ["trainer.precision=float64", "trainer.max_steps=13"]
        large = self.train([*overrides, "trainer.batch_size=96"])
        small = self.train([*overrides, "trainer.accumulate_grad_batches=3"])
        assert max(differences(large, small).values()) < 1e-13

    def test_the_last_update_of_an_epoch_takes_what_is_left(self) -> None:
        """1,280 rows in batches of 100, 4 to an update: 3 updates of 400, one of 80, whose mean is
        over 80 rows."""
        batches = ["trainer.batch_size=100", "trainer.accumulate_grad_batches=4"]
        overrides = ["trainer.precision=float64", "trainer.max_steps=4", *batches]
        trained = self.train(overrides)
        assert len(trained.losses) == 4
        assert len(trained.outputs) == 1280
        prepared = prepare(overrides)
        labels = prepared.data.train.y[prepared.order.epoch(0)]
        expected = prepared.loss.rows(trained.outputs[1200:], labels[1200:]).mean()
        assert trained.losses[3] == pytest.approx(expected, rel=1e-14)

    def test_clipping_bounds_the_norm_of_all_gradients_together(self) -> None:
        """Plain SGD at rate 1 moves the weights by the clipped gradient: its norm is the bound.
        1e-12: its rounding."""
        overrides = [
            "trainer.precision=float64",
            "trainer.max_steps=1",
            "optimizer=sgd",
            "optimizer.lr=1.0",
        ]
        start = first(prepare(overrides))

        def moved(extra: list[str]) -> float:
            end = self.train([*overrides, *extra]).state.weights
            return float(
                np.sqrt(sum(np.sum((end[name] - start.weights[name]) ** 2) for name in end))
            )

        free = moved([])
        assert moved(["trainer.gradient_clip_norm=0.01"]) == pytest.approx(0.01, rel=1e-12)
        assert moved([f"trainer.gradient_clip_norm={2 * free}"]) == pytest.approx(free, rel=1e-12)

    def test_clipping_by_value_bounds_each_entry_of_the_gradient(self) -> None:
        """Each weight moves by its entry of the gradient, clipped. 1e-15: the rounding
        of weights below 1."""
        overrides = ["optimizer=sgd", "optimizer.lr=1.0", "trainer.accumulate_grad_batches=2"]
        overrides += ["trainer.precision=float64", "trainer.max_steps=1"]
        start = first(prepare(overrides))
        free = self.train(overrides).state.weights
        clipped = self.train([*overrides, "trainer.gradient_clip_value=1e-3"]).state.weights
        for name, before in start.weights.items():
            step = np.clip(free[name] - before, -1e-3, 1e-3)
            np.testing.assert_allclose(clipped[name] - before, step, rtol=0, atol=1e-15)

    @pytest.mark.parametrize("mode", slow_but(["coupled", "decoupled"], "decoupled"))
    def test_weight_decay_spares_what_it_is_told_to(self, mode: str) -> None:
        """One step of SGD: kernels move by a further lr * lambda * p, biases and norms as without
        decay."""
        layers = (
            "model.layers=[{layer: dense, units: 8},{layer: layer_norm},"
            "{layer: activation, function: tanh},{layer: dense, units: outputs}]"
        )
        overrides = [
            "trainer.precision=float64",
            "trainer.max_steps=1",
            "optimizer=sgd",
            "optimizer.lr=0.5",
            layers,
        ]
        decay = ["optimizer.weight_decay=0.1", f"optimizer.weight_decay_mode={mode}"]
        start, plain = first(prepare(overrides)).weights, self.train(overrides).state.weights
        decayed = self.train(
            [*overrides, *decay, "optimizer.decay_exclude=bias_and_norm"]
        ).state.weights
        for name, value in decayed.items():
            expected = plain[name] - 0.5 * 0.1 * start[name] * name.endswith("kernel")
            np.testing.assert_allclose(value, expected, rtol=0, atol=1e-15)  # one rounding

    def test_dropout_uses_the_masks_of_the_core(self) -> None:
        """A row of ones through dropout alone: kept values are 1 / (1 - rate), where
        runner.random.keep says so."""
        layers = (
            "model.layers=[{layer: dropout, rate: 0.25},{layer: dense, units: outputs, bias: "
            "false}]"
        )
        overrides = ["trainer.precision=float64", "trainer.max_steps=3", layers, "seed=3"]
        prepared = prepare([*overrides, "optimizer=sgd", "optimizer.lr=1e-30"])
        trained = self.train([*overrides, "optimizer=sgd", "optimizer.lr=1e-30"])
        kernel, rows = first(prepared).weights["dense_0/kernel"], prepared.order.epoch(0)
        for step in range(3):
            x = prepared.data.train.x[rows[32 * step : 32 * step + 32]]
            mask = keep(x.size, 0.25, layer_key(3, 0), step, 0).reshape(x.shape)
            expected = (x * mask / 0.75) @ kernel
            np.testing.assert_allclose(
                trained.outputs[32 * step : 32 * step + 32], expected, rtol=0, atol=1e-13
            )

    def test_running_statistics_follow_their_formula(self) -> None:
        """One update: mean = 0.1 batch mean; variance = 0.9 + 0.1 n / (n - 1) biased batch
        variance."""
        layers = "model.layers=[{layer: batch_norm, momentum: 0.9},{layer: dense, units: outputs}]"
        overrides = ["trainer.precision=float64", "trainer.max_steps=1", layers]
        prepared = prepare(overrides)
        buffers = self.train(overrides).state.buffers
        x = prepared.data.train.x[prepared.order.chunk(0, 1).rows]
        np.testing.assert_allclose(
            buffers["batch_norm_0/mean"], 0.1 * x.mean(0), rtol=0, atol=1e-15
        )
        np.testing.assert_allclose(
            buffers["batch_norm_0/variance"], 0.9 + 0.1 * x.var(0, ddof=1), rtol=0, atol=1e-15
        )

    def test_bf16_mixed_trains_with_weights_and_rates_in_float32(self) -> None:
        trained = self.train([*SMALL, "trainer.precision=bf16-mixed"])
        assert {value.dtype for value in trained.state.weights.values()} == {np.dtype(np.float32)}
        exact = self.train(SMALL)
        np.testing.assert_array_equal(trained.rates, exact.rates)
        # bfloat16 has 8 bits: the loss follows that of float32 within a few per cent, and is not
        # the same
        np.testing.assert_allclose(
            trained.losses[-20:].mean(), exact.losses[-20:].mean(), rtol=0.05
        )
        assert not np.array_equal(trained.losses, exact.losses)
