"""Read the points of a run from its records, trace.csv and metrics.csv, while they grow."""

from collections.abc import Callable, Iterator
from pathlib import Path

from runner.run.callbacks import memory, norms, throughput
from runner.run.run_folder import read_columns
from runner.run.trackers.tracker import Point, order

LEARNING_RATE = "learning_rate"
STEP_LOSS = "train/loss_step"
# files of callbacks, with rows of evaluations and of updates
OF_EVALUATIONS, OF_UPDATES = (throughput.FILE, memory.FILE), (norms.FILE,)
_MOST_UPDATES = 1000  # points of updates; trace.csv has all updates


def spacing(total_steps: int) -> int:
    """Return k: trackers get the updates 0, k, 2 k, .... It is the smallest of 1, 2, 5, 10, 20, ...
    that leaves at most 1,000 of them."""
    scale = 1
    while True:
        for factor in (1, 2, 5):
            if -(-total_steps // (factor * scale)) <= _MOST_UPDATES:
                return factor * scale
        scale *= 10


class Points:
    """The points of the run in a folder, each read once. The files of callbacks have further
    values."""

    def __init__(self, path: Path, total_steps: int) -> None:
        self._path = path
        self._others: dict[str, _Rows] = {}  # of callbacks
        self._values: dict[int, dict[str, float]] = {}  # of these files, by Point.order
        self._every = spacing(total_steps)
        self._trace = _Rows(path / "trace.csv")
        self._metrics = _Rows(path / "metrics.csv")
        self._before: tuple[int, float] | None = None  # step, seconds of the last evaluation

    def close(self) -> None:
        for rows in (self._trace, self._metrics, *self._others.values()):
            rows.close()

    def until(self, step: int | None) -> list[Point]:
        """Return the points that have come: those of the first `step` updates; None: all."""
        if step != 0:  # callbacks write their headers when the first update begins
            self._read_others(step)
        updates = self._trace.until(None if step is None else step - 1, self._is_point)
        points = [self._update(row) for row in updates]
        points += [self._evaluation(row) for row in self._metrics.until(step)]
        return sorted(points, key=lambda point: point.order)

    def _read_others(self, step: int | None) -> None:
        """Read the new rows of the callbacks' files."""
        for name in (*OF_EVALUATIONS, *OF_UPDATES):
            if name not in self._others and (self._path / name).is_file():
                self._others[name] = _Rows(self._path / name)
        for name, rows in self._others.items():
            of_updates = name in OF_UPDATES
            for row in rows.until(step - 1 if of_updates and step is not None else step):
                values = {name: value for name, value in row.items() if name != "step"}
                place = order(int(row["step"]), of_updates)
                self._values.setdefault(place, {}).update(values)

    def _is_point(self, step: int) -> bool:
        """Return whether trackers get an update: also one with values of a callback."""
        return step % self._every == 0 or order(step, is_update=True) in self._values

    def _update(self, row: dict[str, float]) -> Point:
        names = {"loss": STEP_LOSS}
        values = {names.get(name, name): value for name, value in row.items() if name != "step"}
        values |= self._values.pop(order(int(row["step"]), is_update=True), {})
        return Point(int(row["step"]), values, is_update=True)

    def _evaluation(self, row: dict[str, float]) -> Point:
        """Make the point of an epoch. `seconds_per_step` needs an epoch before it: the seconds of
        the first one include the start of the program."""
        step, seconds = int(row["step"]), row["seconds"]
        values = {name: value for name, value in row.items() if name not in ("step", "seconds")}
        values |= self._values.pop(order(step, is_update=False), {})
        if self._before is not None and step > self._before[0]:
            num_steps = step - self._before[0]
            values["seconds_per_step"] = (seconds - self._before[1]) / num_steps
        self._before = step, seconds
        return Point(step, values, is_update=False)


class _Rows:
    """The whole rows of a growing CSV file with a column `step`, each read once. An empty cell is
    left out."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self._names = self._file.readline().decode().rstrip("\n").split(",")
        self._column = self._names.index("step")

    def close(self) -> None:
        self._file.close()

    def until(
        self, step: int | None, is_wanted: Callable[[int], bool] = lambda step: True
    ) -> Iterator[dict[str, float]]:
        """Yield the next rows with at most this step; None: with any. Rows of steps that are not
        wanted are passed over; only their step is read, as a run may have thousands of them a
        second."""
        while True:
            begin = self._file.tell()
            line = self._file.readline()
            is_whole = line.endswith(b"\n")
            own = int(line.split(b",", self._column + 1)[self._column]) if is_whole else 0
            if not is_whole or (step is not None and own > step):
                self._file.seek(begin)
                return
            if not is_wanted(own):
                continue
            cells = line.decode().rstrip("\n").split(",")
            yield {
                name: float(cell)
                for name, cell in zip(self._names, cells, strict=True)
                if cell != ""
            }


def last(path: Path) -> int:
    """Return the order of the last point in a run's records; -1 if they have none."""
    ends = []
    for name, is_update in (("trace.csv", True), ("metrics.csv", False)):
        steps = read_columns(path / name, most=2)["step"]  # the first row and the last one
        ends += [order(int(step), is_update) for step in steps[-1:]]
    return max(ends, default=-1)
