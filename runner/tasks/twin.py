"""task=twin: run one batch through both models of a twin, with the same weights in float64, and
name the first layer at which they part."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import SequenceMatcher
from itertools import zip_longest
from typing import Any

import numpy as np

from runner import dispatcher
from runner.components.twins import Call, Trace, TwinNetwork
from runner.config.schema import TwinModel, parse
from runner.data.source import Batch
from runner.errors import ConfigError
from runner.plan import Plan, plan
from runner.random import uniform
from runner.spec import TrainState, first_state
from runner.tasks.twin_causes import confirmed

# the largest difference, relative where values exceed 1, that rounding in float64 explains
TOLERANCE = 1e-12
BACKENDS = ("lightning", "keras")
# kind -> usual causes, in the order of their frequency (docs/twins.md)
CAUSES: Mapping[str, str] = {
    "dense": "a transposed kernel, a missing bias, the axis order of a flatten before it",
    "conv": "padding (Keras's same with a stride is asymmetric), a transposed kernel, strides",
    "depthwise_conv": "padding (Keras's same with a stride is asymmetric), the channel multiplier",
    "conv_transpose": "padding and output padding, a transposed kernel",
    "batch_norm": "epsilon (1e-5 in torch, 1e-3 in Keras), momentum (torch's is 1 - Keras's), "
    "the axis of the channels",
    "layer_norm": "epsilon (1e-5 in torch, 1e-3 in Keras), the normalised axes",
    "group_norm": "epsilon (1e-5 in torch, 1e-3 in Keras), the number of groups",
    "rms_norm": "epsilon (the dtype's in torch, 1e-6 in Keras)",
    "embedding": "the padding index, the rows of unknown tokens",
    "lstm": "the order of the gates (i, f, g, o on both), the functions of the gates",
    "gru": "the order of the gates (r, z, n in torch; z, r, n in Keras), reset_after",
    "rnn": "the activation",
    "attention": "the number of heads, the scale, a mask, batch_first",
    "prelu": "shared axes",
    "activation": "the variant of GELU (erf in torch and Keras, tanh elsewhere), the slope of "
    "leaky ReLU (0.01 in torch, 0.2 in Keras), the axis of a softmax",
    "max_pool": "padding (Keras's same is asymmetric), strides, ceil_mode",
    "average_pool": "padding that is counted (torch's default) or not (Keras), strides",
    "flatten": "the axis order: torch has channels first, Keras last",
    "dropout": "the rate",
}

_GRADIENT = "usual causes: a detach or stop_gradient after it, a custom gradient, a frozen weight"
_ORDER = "both outputs have the same values in another order"
_BETWEEN = f"usual causes: {CAUSES['activation']}; {CAUSES['flatten']}"


@dataclass
class Row:
    """A layer of both models. None: nothing to compare."""

    kind: str
    torch: str
    keras: str
    settings: tuple[Mapping[str, Any], Mapping[str, Any]] = ({}, {})
    input: float | None = None
    output: float | None = None
    gradient: float | None = None
    statistics: float | None = None
    notes: set[str] = field(default_factory=set)  # on outputs that differ
    arrays: tuple[np.ndarray, np.ndarray, np.ndarray] | None = (
        None  # input, torch's, Keras's output
    )

    @property
    def name(self) -> str:
        is_layer = self.torch or self.keras
        return f"{self.kind} ({self.torch} / {self.keras})" if is_layer else self.kind

    def differing(self) -> list[str]:
        """Return the settings that differ, torch's first."""
        torch, keras = self.settings
        return [
            f"{key} {_show(torch[key])} / {_show(keras[key])}"
            for key in torch
            if key in keras and torch[key] != keras[key]
        ]


@dataclass(frozen=True)
class Result:
    """The findings of the comparison. `largest` is the largest difference of all."""

    rows: Sequence[Row]
    largest: float
    where: str | None  # the first place at which the models part
    causes: Sequence[str] = ()


def twin(values: Mapping[str, Any]) -> int:
    """Compare the two models of a composed config; print the table. Return 0 if they agree."""
    result = compare(values)
    for line in lines(result):
        print(line)
    return int(result.where is not None)


def compare(values: Mapping[str, Any]) -> Result:
    """Compare the two models of a composed config on its first batch."""
    config = parse(values)
    if not isinstance(config.model, TwinModel):
        raise ConfigError(f"task=twin needs model=twin, got model={config.model.name}")
    plans = _plans(values, config.loss.name == "custom")
    networks = [_network(plans[backend]) for backend in BACKENDS]
    structural = _structure(*networks)
    if structural is not None:
        return structural
    traces = []
    for backend in BACKENDS:
        prepared = plans[backend]
        rows, state = _first_batch(prepared), _checked_state(prepared)
        module = dispatcher.load(backend)
        has_loss = prepared.network.outputs is None or config.loss.name == "custom"
        loss = prepared.loss if has_loss else None
        traces.append(module.trace(prepared.model, state, rows, loss))
    result = _numbers((networks[0], networks[1]), (traces[0], traces[1]))
    return _with_confirmed(result, _checked_state(plans[BACKENDS[0]]))


def _plans(values: Mapping[str, Any], has_own_loss: bool) -> dict[str, Plan]:
    """Plan a run of each backend, in float64."""
    plans = {}
    for backend in BACKENDS:
        trainer = {**values["trainer"], "precision": "float64", "threads": 1}
        try:
            plans[backend] = plan(parse({**values, "backend": backend, "trainer": trainer}))
        except ConfigError as error:
            if not has_own_loss:
                raise
            raise ConfigError(
                f"task=twin calls a loss of your own on both backends, or with loss=auto compares "
                f"without it; on {backend}: {error}"
            ) from error
    return plans


def _with_confirmed(result: Result, state: TrainState) -> Result:
    """Replace the usual causes of a layer by one that NumPy confirms."""
    row = next((row for row in result.rows if row.name == result.where), None)
    if row is None or row.arrays is None or row.differing():
        return result
    weights = {
        name.rpartition("/")[2]: value
        for name, value in state.weights.items()
        if name.startswith(f"{row.kind}/")
    }
    x, *outputs = row.arrays
    both = dict(zip(("torch", "Keras"), outputs, strict=True))
    causes = [*confirmed(row.kind.rpartition("_")[0], weights, x, both)]
    return replace(result, causes=causes or result.causes)


def _network(prepared: Plan) -> TwinNetwork:
    assert isinstance(prepared.network, TwinNetwork)
    return prepared.network


def _first_batch(prepared: Plan) -> Batch:
    """Return the rows of the run's first update."""
    chunk = next(iter(prepared.chunks(0, None, adapt=False, end=1)))
    rows = np.sort(chunk.blocks[0].ravel())
    if prepared.data.stream is not None:
        return {"x": chunk.fields["x"].astype(np.float64), "y": chunk.fields["y"]}
    spec = prepared.run_spec()
    x = prepared.data.train.read(rows)["x"].astype(spec.dtype, copy=False)
    return {"x": np.ascontiguousarray(x, dtype=np.float64), "y": spec.fields["y"][rows]}


def _checked_state(prepared: Plan) -> TrainState:
    """Return the first state with biases, scales and running statistics moved by up to 0.25: at 0
    and 1 they would hide differences."""
    config = prepared.config
    state = first_state(prepared.network, config.optimizer, np.dtype(np.float64), config.seed)

    def moved(values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {
            name: value + (uniform(value.shape, config.seed, f"{name} moved") - 0.5) / 2
            if value.ndim < 2
            else value
            for name, value in values.items()
        }

    return TrainState(0, moved(state.weights), state.slots, moved(state.buffers))


def _structure(torch: TwinNetwork, keras: TwinNetwork) -> Result | None:
    """Compare the lists of layers and tensors. Return None if they fit each other."""
    pairs = zip_longest(torch.layer_names.items(), keras.layer_names.items())
    for i, (a, b) in enumerate(pairs, 1):
        if a is None or b is None or a[0] != b[0]:
            names = [_found(a, torch), _found(b, keras)]
            where = f"layer {i} with weights: torch has {names[0]}, Keras has {names[1]}"
            return Result(
                [], np.inf, where, ["another order of definition: name pairs in model.map"]
            )
    shapes = [
        {name: v.shape for name, v in {**net.built.weights, **net.built.buffers}.items()}
        for net in (torch, keras)
    ]
    for name in {**shapes[0], **shapes[1]}:
        found = [_shape(one.get(name)) for one in shapes]
        if found[0] != found[1]:
            layer = name.partition("/")[0]
            where = f"{layer} ({torch.layer_names[layer]} / {keras.layer_names[layer]})"
            return Result([], np.inf, where, [f"{name} is {found[0]} / {found[1]}"])
    outputs = [_output_names(net) for net in (torch, keras)]
    if outputs[0] != outputs[1]:
        names = [", ".join(one) for one in outputs]
        cause = f"{names[0]} / {names[1]}: give both a dict with equal keys, or tuples"
        return Result([], np.inf, "the outputs", [cause])
    frozen = set(torch.built.buffers) ^ set(keras.built.buffers)
    if frozen:
        name = min(frozen)
        layer = name.partition("/")[0]
        where = f"{layer} ({torch.layer_names[layer]} / {keras.layer_names[layer]})"
        owner = "torch" if name in torch.built.buffers else "Keras"
        return Result([], np.inf, where, [f"{name} is not trained in {owner} only"])
    return None


def _output_names(net: TwinNetwork) -> list[str]:
    """Return the names of several outputs; the order of a dict's keys does not matter."""
    return ["one tensor"] if net.outputs is None else sorted(net.outputs.names)


def _found(entry: tuple[str, str] | None, net: TwinNetwork) -> str:
    return "no more layers" if entry is None else f"{entry[0]} ({entry[1]})"


def _shape(shape: tuple[int, ...] | None) -> str:
    return "missing" if shape is None else str(list(shape))


def _numbers(networks: tuple[TwinNetwork, TwinNetwork], traces: tuple[Trace, Trace]) -> Result:
    """Compare what the models computed."""
    rows = _rows(networks, traces)
    gradients, buffers = (
        [
            net.to_canonical(getattr(trace, name))
            for net, trace in zip(networks, traces, strict=True)
        ]
        for name in ("gradients", "buffers")
    )
    by_layer = {row.kind: row for row in rows}  # the last call of a layer
    for values, column in ((gradients, "gradient"), (buffers, "statistics")):
        for name in values[0]:
            layer = name.partition("/")[0]
            if layer not in by_layer:
                torch, keras = (net.layer_names[layer] for net in networks)
                by_layer[layer] = Row(layer, torch, keras)
                rows.append(by_layer[layer])
            row, apart = by_layer[layer], difference(values[0][name], values[1][name])
            setattr(row, column, max(getattr(row, column) or 0.0, apart))
    loss = difference(np.array(traces[0].loss), np.array(traces[1].loss))
    if networks[0].outputs is None:
        outputs = difference(traces[0].outputs, traces[1].outputs)
        rows.append(Row("outputs and loss", "", "", output=max(outputs, loss)))
    else:
        rows += [*_several(networks, traces), Row("loss", "", "", output=loss)]
    columns = ("output", "gradient", "statistics")
    numbers = [getattr(row, column) for row in rows for column in columns]
    largest = max(number for number in numbers if number is not None)
    where, causes = _first_place(rows)
    return Result(rows, largest, where, causes)


def _rows(networks: tuple[TwinNetwork, TwinNetwork], traces: tuple[Trace, Trace]) -> list[Row]:
    """Pair the calls of both models and compare their outputs, in evaluation and in training."""
    rows: dict[tuple[str, str, int], Row] = {}
    for phase in ("evaluation", "training"):
        calls = [getattr(trace, phase) for trace in traces]
        labels = [[_label(c, net) for c in one] for one, net in zip(calls, networks, strict=True)]
        seen: dict[tuple[str, str], int] = {}
        for i, j in _aligned(*labels):
            a, b = calls[0][i], calls[1][j]
            names = a.name, b.name
            seen[names] = seen.get(names, 0) + 1
            label = labels[0][i]
            known = networks[0].layer_names.get(label), networks[1].layer_names.get(label)
            shown = known[0] or a.name, known[1] or b.name
            row = rows.setdefault(
                (*names, seen[names]), Row(label, *shown, (a.settings, b.settings))
            )
            row.input = max(row.input or 0.0, difference(a.input, b.input))
            output = _like(a, b)
            apart = difference(output, b.output)
            row.output = max(row.output or 0.0, apart)
            row.arrays = row.arrays or (a.input, output, b.output)
            row.notes |= set(_notes(output, b.output)) if _parts(apart) else set()
    return list(rows.values())


def _several(
    networks: tuple[TwinNetwork, TwinNetwork], traces: tuple[Trace, Trace]
) -> Iterator[Row]:
    """Compare several outputs, each by its name."""
    torch, keras = (
        net.outputs.named(trace.outputs) if net.outputs else {}
        for net, trace in zip(networks, traces, strict=True)
    )
    for name, a in torch.items():
        b, notes = keras[name], set[str]()
        apart = difference(a, b) if a.ndim == b.ndim else np.inf
        if a.ndim != b.ndim:
            notes = {f"shape {list(a.shape[1:])} / {list(b.shape[1:])}"}
        elif _parts(apart):
            notes = set(_notes(a, b)) or {"usual causes: a function between the layers and it"}
        yield Row(f"output {name}", "", "", output=apart, notes=notes)


def _label(call: Call, net: TwinNetwork) -> str:
    """Return the canonical name of a layer with tensors, else its kind."""
    names = [part.names[0] for part in net.parts if part.tensor.name in call.tensors]
    return names[-1].partition("/")[0] if names else call.kind


def _aligned(a: Sequence[str], b: Sequence[str]) -> list[tuple[int, int]]:
    """Return the pairs of positions that have the same label, in torch's order. Layers with
    tensors pair in any order of the calls, others between the same neighbours only."""
    blocks = SequenceMatcher(None, a, b, autojunk=False).get_matching_blocks()
    pairs = {block.a + k: block.b + k for block in blocks for k in range(block.size)}
    free = [j for j in range(len(b)) if j not in pairs.values()]
    for i, label in enumerate(a):
        if i not in pairs and label[-1:].isdigit():
            match = next((j for j in free if b[j] == label), None)
            if match is not None:
                pairs[i] = match
                free.remove(match)
    return sorted(pairs.items())


def _like(a: Call, b: Call) -> np.ndarray:
    """Return torch's output; of a recurrent layer only the last step, if Keras returns no more. The
    last step of the backward direction is the first one of the sequence."""
    if a.kind not in ("lstm", "gru", "rnn") or b.output.ndim != a.output.ndim - 1:
        return a.output
    if not a.settings["bidirectional"]:
        return a.output[:, -1]
    forward, backward = np.split(a.output, 2, axis=-1)
    return np.concatenate([forward[:, -1], backward[:, 0]], axis=-1)


def difference(a: np.ndarray, b: np.ndarray) -> float:
    """Return the largest difference, relative to the largest value where that is above 1. Images
    of torch have the channels first; other shapes that differ are infinitely apart."""
    found = [np.abs(x - y).max(initial=0) for x, y in _forms(a, b)]
    scale = max(1.0, float(np.abs(a).max(initial=0)))
    return float(min(found)) / scale if found else np.inf


def _forms(a: np.ndarray, b: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the ways to lay torch's array `a` over Keras's `b`: as it is, and channels last."""
    if a.shape == b.shape:
        yield a, b
    last = np.moveaxis(a, 1, -1) if a.ndim > 2 else a
    if last.shape == b.shape:
        yield last, b
    elif a.ndim != b.ndim and np.squeeze(last).shape == np.squeeze(b).shape:
        yield np.squeeze(last), np.squeeze(b)


def _notes(a: np.ndarray, b: np.ndarray) -> Iterator[str]:
    """Describe how two outputs differ."""
    forms = next(_forms(a, b), None)
    if forms is None:
        yield f"shape {list(a.shape[1:])} / {list(b.shape[1:])}"
        return
    rows = [np.sort(x.reshape(len(x), -1), axis=1) for x in forms]
    if difference(*rows) <= TOLERANCE:
        yield _ORDER


def _first_place(rows: Sequence[Row]) -> tuple[str | None, list[str]]:
    """Name the first place in the forward pass at which the models part, and its causes; if all
    outputs agree, the first statistics, then the last gradient, which is the first one computed."""
    before = "the input"
    for row in rows:
        if _parts(row.output) and _parts(row.input):
            return f"between {before} and {row.name}", [_BETWEEN]
        if _parts(row.output):
            return row.name, _causes(row)
        before = row.name
    for row in rows:
        if _parts(row.statistics):
            return f"{row.name}, running statistics", _causes(row)
    for row in reversed(rows):
        if _parts(row.gradient):
            return f"{row.name}, gradient", row.differing() or [_GRADIENT]
    return None, []


def _parts(number: float | None) -> bool:
    return number is not None and not number <= TOLERANCE


def _causes(row: Row) -> list[str]:
    """Return the settings that differ, else the usual causes of the kind."""
    kind = row.kind if row.kind in CAUSES else row.kind.rpartition("_")[0]
    usual = f"usual causes: {CAUSES[kind]}" if kind in CAUSES else ""
    return row.differing() or [*sorted(row.notes), *([usual] if usual else [])]


def lines(result: Result) -> Iterator[str]:
    """Format the result for the terminal."""
    columns = ("output", "gradient", "statistics")
    table: list[tuple[str, ...]] = [("layer", "torch", "keras", *columns)]
    for row in result.rows:
        numbers = [_number(getattr(row, column)) for column in columns]
        table.append((row.kind, row.torch, row.keras, *numbers))
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    if result.rows:
        for entry in table:
            yield "  ".join(f"{cell:{w}}" for cell, w in zip(entry, widths, strict=True)).rstrip()
    if result.where is None:
        yield f"the models agree: the largest difference is {result.largest:.1e}"
        return
    at = "" if result.where.startswith("between") else "at "
    yield f"the models part {at}{result.where}"
    for cause in result.causes:
        yield f"  torch / Keras: {cause}" if " / " in cause else f"  {cause}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1e}" if value else "0"


def _show(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
