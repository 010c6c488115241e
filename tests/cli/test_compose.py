"""The jobs of a command are composed once for each choice of groups; the claim is that nobody can
tell, and Hydra says what each would be."""

from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from runner.cli.compose import CONF, Composer, to_values

JOBS = [
    ["schedule=cosine", "seed=0"],
    ["schedule=cosine", "seed=1", "optimizer.lr=0.01"],
    ["schedule=cosine", "seed=1", "++schedule.warmup=10%"],
    [
        "schedule=linear",
        "seed=1",
        "trainer.max_epochs=3",
        "model.layers=[{layer: dense, units: outputs}]",
    ],
    ["optimizer=sgd", "optimizer.momentum=0.9", "schedule=cosine"],
    ["experiment=chapter_linear", "seed=5"],
    ["schedule=cosine", "seed=0"],
]


def by_hydra(overrides: list[str]) -> dict[str, Any]:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return to_values(hydra_compose("config", overrides))


def test_the_values_are_those_of_hydra_s_composition() -> None:
    composer = Composer()
    for overrides in JOBS:
        assert composer.values(overrides) == by_hydra(overrides), overrides
    assert len(composer._known) == 4  # cosine, linear, SGD with cosine, the experiment


def test_hydra_s_part_is_its_own_with_what_may_be_set() -> None:
    composer = Composer()
    said = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=3", "seed=1"]
    part = composer.hydra_part(said)
    assert part.launcher.n_jobs == 3
    assert part.launcher._target_.startswith("hydra_plugins.hydra_joblib_launcher.")
    assert composer.values(said) == by_hydra(["seed=1"])
