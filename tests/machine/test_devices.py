"""The device that a run uses, on invented machines."""

import os
from pathlib import Path

import pytest

from runner.errors import ConfigError
from runner.machine import devices
from runner.machine.devices import resolve

LAPTOP = ["cpu"]
MAC = ["cpu", "mps"]
SERVER = ["cpu", "cuda:0", "cuda:1"]
OTHER_ORDER = ["cuda:0", "cuda:1", "cpu"]


@pytest.mark.parametrize(
    ("requested", "available", "device"),
    [
        ("auto", LAPTOP, "cpu"),
        ("auto", MAC, "mps"),
        ("auto", SERVER, "cuda:0"),
        ("auto", OTHER_ORDER, "cuda:0"),
        ("cpu", LAPTOP, "cpu"),
        ("cpu", SERVER, "cpu"),
        ("cuda", SERVER, "cuda:0"),
        ("cuda:0", SERVER, "cuda:0"),
        ("cuda:1", SERVER, "cuda:1"),
        ("mps", MAC, "mps"),
    ],
)
def test_the_device_that_is_asked_for_is_the_device_used(
    requested: str, available: list[str], device: str
) -> None:
    assert resolve(requested, available) == device


@pytest.mark.parametrize(
    ("requested", "available"),
    [
        ("cuda", LAPTOP),
        ("cuda", MAC),
        ("cuda:0", LAPTOP),
        ("cuda:2", SERVER),
        ("cuda:99", SERVER),
        ("mps", SERVER),
        ("tpu", SERVER),
        ("gpu", SERVER),
        ("", LAPTOP),
        ("CPU", LAPTOP),
        ("cuda:", SERVER),
        ("cuda:-1", SERVER),
        ("cuda:00", SERVER),
    ],
)
def test_a_device_that_is_not_there_is_refused_and_what_is_there_is_listed(
    requested: str, available: list[str]
) -> None:
    with pytest.raises(ConfigError) as refused:
        resolve(requested, available)
    said = str(refused.value)
    assert said.startswith("device must be ")
    assert said.endswith(f"got {requested}")
    assert ", ".join(available) in said
    assert len(said.splitlines()) == 1


def test_several_processes_share_no_accelerator() -> None:
    assert resolve("cpu", SERVER, 2) == "cpu"
    with pytest.raises(ConfigError, match=r"^devices must be 1 on cuda:0, got 2; device=cpu takes"):
        resolve("auto", SERVER, 2)


@pytest.mark.skipif(devices.fcntl is None, reason="without locks, auto is the first accelerator")
def test_auto_is_the_accelerator_that_the_fewest_runs_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Jobs side by side have a device each, also where CUDA_VISIBLE_DEVICES numbers the devices in
    another order; then they share them evenly."""
    monkeypatch.setattr(devices, "_folder", lambda: tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    first, second, third = (devices.keep(["cuda:0", "cuda:1"]) for _ in range(3))
    assert [device for device, _ in (first, second, third)] == ["cuda:0", "cuda:1", "cuda:0"]
    assert devices.pin("auto", SERVER) == "cuda:1"
    assert devices.pin("auto", SERVER) == "cuda:1"  # it has given back the one that it had
    assert second[1] is not None
    os.close(second[1])  # that run has ended
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,0")
    assert devices.pin("auto", SERVER) == "cuda:0"
    assert devices.pin("cuda:1", SERVER) == "cuda:1"
    assert devices.pin("auto", ["cpu"]) == "cpu"
    assert devices._kept is None
    for _, descriptor in (first, third):
        assert descriptor is not None
        os.close(descriptor)
