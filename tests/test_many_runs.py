"""Runs that one process trains one after another share what was compiled, and are what they would
be alone."""

import json
import re
from pathlib import Path

import pytest

from tests.command_line import BACKENDS, forked

SLOW = pytest.mark.slow
KEYS = ("schedule", "seed", "trainer.batch_size")


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("model", "precision"),
    [
        pytest.param("mlp", "float32", marks=SLOW),
        ("dropout", "float32"),
        pytest.param("dropout", "exact", marks=SLOW),
    ],
)
def test_jobs_of_a_multirun_have_the_hashes_of_runs_of_their_own(
    tmp_path: Path, backend: str, model: str, precision: str
) -> None:
    """The jobs mix schedules and seeds, have masks, which the seed draws, and a batch size that
    asks for another compilation."""
    masks = (
        "model.layers=[{layer: dense, units: 16},{layer: dropout, rate: 0.4},{layer: dense, "
        "units: outputs}]"
    )
    common = [
        f"backend={backend}",
        "trainer.max_epochs=2",
        "device=cpu",
        f"trainer.precision={precision}",
    ]
    common += [masks] if model == "dropout" else []
    (swept,) = forked(
        tmp_path,
        (
            "-m",
            "trainer.batch_size=32,64",
            "schedule=constant,cosine",
            "seed=0,1",
            *common,
        ),
    )
    assert swept.status == 0
    found = {}
    for path in (tmp_path / swept.folder).glob("*/result.json"):
        result = json.loads(path.read_text())
        said = dict(override.split("=", 1) for override in result["overrides"])
        found[tuple(said[key] for key in KEYS)] = result["weights_sha256"]
    assert len(set(found.values())) == len(found) == 8
    for values in (
        ("cosine", "1", "32"),
        ("constant", "1", "64"),
        ("constant", "0", "32"),
    ):
        (alone,) = forked(tmp_path, (*map("=".join, zip(KEYS, values, strict=True)), *common))
        assert (
            found[values]
            == json.loads((tmp_path / alone.folder / "result.json").read_text())["weights_sha256"]
        )


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", pytest.param("exact", marks=SLOW)])
def test_a_keras_job_after_another_of_its_kind_compiles_nothing(
    tmp_path: Path, precision: str
) -> None:
    """Nor where the seed draws masks."""
    masks = (
        "model.layers=[{layer: dense, units: 16},{layer: dropout, rate: 0.4},{layer: dense, "
        "units: outputs}]"
    )
    command = (
        "-m",
        "hydra.launcher.n_jobs=1",  # in one process
        "schedule=constant,cosine",
        "seed=0,1",
        "backend=keras",
        "trainer.max_epochs=2",
        "device=cpu",
        f"trainer.precision={precision}",
        masks,
    )
    (done,) = forked(tmp_path, command)
    seconds = [
        json.loads(path.read_text())["seconds"]
        for path in (tmp_path / done.folder).glob("*/result.json")
    ]
    assert sum(each["compile"] > 0 for each in seconds) == 1
    assert len(re.findall("^completed", done.out, re.MULTILINE)) == 4
