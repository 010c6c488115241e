"""Between the canonical state of a twin and the tensors of a framework: wrappers for a backend's
functions. Other models pass through unchanged."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any

import numpy as np

from runner.components import averages
from runner.components.loss_scale import SLOT
from runner.components.optimizers import NUMBERS, TRAINING_WEIGHTS, Custom, Group
from runner.components.twins import TwinNetwork
from runner.data.order import Chunk
from runner.data.source import Batch
from runner.errors import ConfigError
from runner.spec import (
    Live,
    Measured,
    ModelSpec,
    OnChunk,
    OnChunkStart,
    Report,
    RunSpec,
    Tables,
    TrainState,
    ignore,
)


def trains(train: Callable[..., TrainState]) -> Callable[..., TrainState]:
    """Wrap a backend's `train`, which knows only the framework's names and layouts."""

    @wraps(train)
    def wrapped(
        run: RunSpec,
        start: TrainState,
        chunks: Iterable[Chunk],
        on_chunk: OnChunk,
        on_chunk_start: OnChunkStart = ignore,
    ) -> TrainState:
        twin = run.network
        if not isinstance(twin, TwinNetwork):
            return train(run, start, chunks, on_chunk, on_chunk_start)

        is_own = isinstance(run.optimizer, Custom)

        def on_native_chunk(chunk: Chunk, report: Report, live: Live) -> bool:
            return on_chunk(chunk, report, _Live(live, twin, is_own))

        def on_native_start(chunk: Chunk, live: Live) -> None:
            on_chunk_start(chunk, _Live(live, twin, is_own))

        native_start = native_state(twin, start, is_own)
        native = _native_run(run, twin)
        state = train(native, native_start, chunks, on_native_chunk, on_native_start)
        return canonical_state(twin, state, is_own)

    return wrapped


def checks(check: Callable[..., None]) -> Callable[..., None]:
    """Wrap a backend's `check_optimizer`."""

    @wraps(check)
    def wrapped(optimizer: Any, model: ModelSpec, groups: Iterable[Group]) -> None:
        twin = model.network
        if isinstance(twin, TwinNetwork):
            model, groups = replace(model, network=twin.native), _native_groups(groups, twin)
        check(optimizer, model, groups)

    return wrapped


def takes_state(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a backend's function of a model, its state and other arguments."""

    @wraps(function)
    def wrapped(model: Any, state: TrainState, *args: Any, **kwargs: Any) -> Any:
        twin = model.network
        if isinstance(twin, TwinNetwork):
            state = native_state(twin, replace(state, slots={}))
            model = replace(model, network=twin.native)
        return function(model, state, *args, **kwargs)

    return wrapped


@dataclass(frozen=True)
class _Live:
    """The model during training, with the canonical state."""

    live: Live
    twin: TwinNetwork
    has_own_optimizer: bool

    def state(self) -> TrainState:
        return canonical_state(self.twin, self.live.state(), self.has_own_optimizer)

    def predict(self, rows: Batch) -> np.ndarray:
        return self.live.predict(rows)

    def measure(
        self, batches: Iterable[Batch], keeps_outputs: bool, numbers: Iterable[int] | None = None
    ) -> Measured:
        return self.live.measure(batches, keeps_outputs, numbers)

    def gradient_norms(self, chunk: Chunk) -> Mapping[str, float]:
        raise AssertionError("a plan of a twin has no norms")

    def averaged(self) -> AbstractContextManager[None]:
        return self.live.averaged()

    def end_epoch(self, is_whole: bool) -> Mapping[str, float]:
        return self.live.end_epoch(is_whole)

    def use_tables(self, tables: Tables) -> None:
        self.live.use_tables(tables)


def _native_run(run: RunSpec, twin: TwinNetwork) -> RunSpec:
    return replace(run, network=twin.native, groups=_native_groups(run.groups, twin))


def _native_groups(groups: Iterable[Group], twin: TwinNetwork) -> tuple[Group, ...]:
    return tuple(replace(group, names=twin.native_names(group.names)) for group in groups)


def native_state(
    twin: TwinNetwork, state: TrainState, has_own_optimizer: bool = False
) -> TrainState:
    """Convert a canonical state to the framework's names and layouts. The slots of the user's own
    optimizer have these already."""
    built = twin.native.built
    return TrainState(
        state.step,
        twin.to_native(state.weights, {}),
        _each_slot(lambda slot: twin.to_native(slot, {}), state, has_own_optimizer),
        twin.to_native(state.buffers, built.buffers),
    )


def canonical_state(
    twin: TwinNetwork, state: TrainState, has_own_optimizer: bool = False
) -> TrainState:
    """Convert a framework's state to canonical names and layouts."""
    return TrainState(
        state.step,
        twin.to_canonical(state.weights),
        _each_slot(twin.to_canonical, state, has_own_optimizer),
        twin.to_canonical(state.buffers),
    )


def _each_slot(
    convert: Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]],
    state: TrainState,
    has_own_optimizer: bool,
) -> dict[str, Mapping[str, np.ndarray]]:
    if has_own_optimizer:
        return {
            slot: (
                convert(values) if slot == TRAINING_WEIGHTS or averages.is_slot(slot) else values
            )
            for slot, values in state.slots.items()
        }
    for slot, values in state.slots.items():
        for name, value in values.items():
            if slot not in (NUMBERS, SLOT) and value.shape != state.weights[name].shape:
                raise ConfigError(
                    f"model=twin needs an optimizer whose slots have the shapes of the weights; "
                    f"{slot} of {name} has {list(value.shape)}, the weight "
                    f"{list(state.weights[name].shape)}"
                )
    return {
        slot: values if slot in (NUMBERS, SLOT) else convert(values)
        for slot, values in state.slots.items()
    }
