"""The jobs of a multirun are composed once for each choice of groups; the claim is that nobody can tell, and Hydra says what
each would be."""

from pathlib import Path
from typing import Any

import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import OmegaConf

from runner.compose import CONF, _Loader, compose_each, to_values

JOBS = [
    ["schedule=cosine", "seed=0"],
    ["schedule=cosine", "seed=1", "optimizer.lr=0.01"],
    ["schedule=cosine", "seed=1", "++schedule.warmup=10%"],
    ["schedule=linear", "seed=1", "trainer.max_epochs=3", "model.layers=[{layer: dense, units: outputs}]"],
    ["optimizer=sgd", "optimizer.momentum=0.9", "schedule=cosine"],
    ["experiment=chapter_linear", "seed=5"],
    ["schedule=cosine", "seed=0"],
]


@pytest.fixture
def loader() -> Any:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield GlobalHydra.instance().config_loader()


def test_the_values_are_those_of_hydra_s_composition() -> None:
    each = compose_each(JOBS)
    for overrides, found in zip(JOBS, each, strict=True):
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(CONF), version_base="1.3"):
            assert found == to_values(hydra_compose("config", overrides)), overrides


def test_a_launcher_gets_what_hydra_would_give_it(loader: ConfigLoaderImpl, tmp_path: Path) -> None:
    """All of it, Hydra's own part, and what it knows of a job's overrides and choices, included."""
    said = [f"hydra.sweep.dir={tmp_path}", "backend=keras"]
    master = loader.load_configuration("config", said, RunMode.MULTIRUN)
    ours = _Loader(loader.config_search_path)
    for overrides in JOBS:
        expected, found = (which.load_sweep_config(master, [*said[1:], *overrides]) for which in (loader, ours))
        assert OmegaConf.to_container(found) == OmegaConf.to_container(expected), overrides
        assert OmegaConf.is_struct(found) == OmegaConf.is_struct(expected)
    assert len(ours._known) == 4
