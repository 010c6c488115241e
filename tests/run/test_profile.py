"""debug=profile times the parts of a run, and writes a trace and the operations."""

import csv
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import runner
from runner import dispatcher

# a name in each trace: of a layer, of an operation
IN_TRACE = {"lightning": ("dense_0", "aten::addmm"), "keras": ("while", "MatMul")}


def test_it_times_the_parts_and_writes_a_trace_and_the_operations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    dispatcher.load(backend)
    monkeypatch.chdir(tmp_path)
    run = runner.train(f"backend={backend} device=cpu debug=profile", quiet=True)
    assert (run.result["steps"], run.result["stopped_by"]) == (40, "debug")
    (trace,) = (run.folder / "profile").glob("*.trace.json")
    events = json.loads(trace.read_text())["traceEvents"]
    names = " ".join(event["name"] for event in events if event["ph"] == "X")
    assert all(name in names for name in IN_TRACE[backend])
    with (run.folder / "profile" / "operations.csv").open() as file:
        operations = [*csv.DictReader(file)]
    seconds = [float(row["seconds"]) for row in operations]
    assert seconds == sorted(seconds, reverse=True)
    # 10 updates of two dense layers, where a tracer may miss the first one
    found = [int(row["calls"]) for row in operations if IN_TRACE[backend][1] in row["operation"]]
    assert sum(found) >= 2 * 9
    said = [line.split() for line in (run.folder / "run.log").read_text().splitlines()]
    table = {line[2]: line[3:] for line in said if len(line) == 7}
    assert table["updates"][1] == table["data"][1] == "40"  # updates of an epoch
    assert float(table["updates"][0]) > 0
    assert float(table["checkpoint"][0]) > 0
    assert (table["evaluation"][1], table["checkpoint"][1]) == ("1", "1")


def test_the_time_of_an_operation_is_without_those_inside_it() -> None:
    profiler = pytest.importorskip("backends.keras.profiler")

    def event(begin: int, duration: int) -> Any:
        return SimpleNamespace(offset_ps=begin, duration_ps=duration)

    events = [event(0, 100), event(10, 30), event(20, 5), event(40, 10), event(100, 7)]
    own = {each.offset_ps: time for each, time in profiler._own_times(events)}
    assert own == {0: 60, 10: 25, 20: 5, 40: 10, 100: 7}
