"""The claim: the command notices a process that is stopped or stuck, and no other one."""

from collections.abc import Iterator

import pytest

from runner.run import pulse
from runner.run.pulse import START_SECONDS, Watch

LIMIT = 20.0


class Clock:
    """A clock that the test sets."""

    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds

    def until(self, end: float) -> Iterator[float]:
        """Yield every second until `end`."""
        while self.seconds < end:
            self.seconds += 1
            yield self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def watch(clock: Clock) -> Watch:
    """A run of three processes that have ended a first chunk of updates."""
    watch = Watch(3, LIMIT, clock)
    for rank in range(3):
        watch.hear(rank, 1, 1, rank == 0)
    return watch


def test_a_process_that_tells_nothing_is_named(watch: Watch, clock: Clock) -> None:
    for second in clock.until(LIMIT):
        watch.hear(0, 5, 1, True)
        watch.hear(2, 5, 1, False)
        assert watch.fault() is None, second
    assert [*clock.until(LIMIT + 1)]
    watch.hear(0, 5, 1, True)
    assert watch.fault() == "rank 1 gave no sign of life for 20 s (trainer.process_timeout)"


@pytest.mark.parametrize(
    ("events", "says"),
    [
        ((7, 7, 6), "rank 2 made no progress for 20 s (trainer.process_timeout), and the others "
         "wait"),
        ((7, 7, 7), "no process made progress for 20 s (trainer.process_timeout); all wait at the "
         "same place"),
    ],
)  # fmt: skip
def test_a_process_that_does_not_come_to_a_sum_is_named(
    watch: Watch, clock: Clock, events: tuple[int, ...], says: str
) -> None:
    for _ in clock.until(LIMIT + 1):
        assert watch.fault() is None
        for rank, num in enumerate(events):
            watch.hear(rank, num, 1, rank == 0)
    assert watch.fault() is None  # it made progress 20 s ago
    assert [*clock.until(LIMIT + 2)]
    for rank, num in enumerate(events):
        watch.hear(rank, num, 1, rank == 0)
    assert watch.fault() == says


def test_rank_0_may_take_any_time_between_two_chunks(watch: Watch, clock: Clock) -> None:
    """It evaluates and saves, and the others wait for it."""
    for _ in clock.until(10 * LIMIT):
        for rank in range(3):
            watch.hear(rank, 5, 1, False)
        assert watch.fault() is None


def test_the_start_of_a_run_may_take_minutes(clock: Clock) -> None:
    watch = Watch(2, LIMIT, clock)
    assert [*clock.until(START_SECONDS)]
    assert watch.fault() is None
    assert [*clock.until(START_SECONDS + 1)]
    assert watch.fault() == "rank 0 gave no sign of life for 300 s (trainer.process_timeout)"


def test_rank_0_tells_when_it_waits_for_the_others() -> None:
    """It does not between two chunks, so that it may take any time."""
    with pulse.waiting():
        assert pulse.now()[2]
    assert not pulse.now()[2]
