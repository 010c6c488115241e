"""The marks of the schema's keys: what the hash leaves out, what may change on resume, what a task
on a finished run takes. The lists are written out, so that a mark set by mistake shows."""

import pytest
from pydantic_core import PydanticUndefined

from runner.config.explain import every_key
from runner.config.schema import Config, marked

MARKED = {
    "outside_hash": "task logger tracker answer race output print_config find_lr forecast clean "
    "run runs where sort format checkpoint weights push trusted_modules steps resume",
    "on_resume": "backend device devices num_nodes strategy logger tracker callbacks "
    "trainer.max_epochs trainer.max_steps trainer.max_time trainer.steps_per_call trainer.threads "
    "trainer.process_timeout trainer.gradient_checkpointing trainer.checkpoint_every "
    "trainer.keep_checkpoints "
    "trainer.early_stopping_patience trainer.early_stopping_min_delta trainer.strict print_config "
    "checkpoint trusted_modules",
    "on_run": (
        "task backend device data.path data.val_path data.test_path run format checkpoint "
        "weights push trusted_modules steps"
    ),
    "command_line_only": (
        "forecast clean run runs where sort format checkpoint weights push trusted_modules steps "
        "resume"
    ),
    "needs_run": "format checkpoint weights push steps",
}


@pytest.mark.parametrize(("mark", "names"), MARKED.items())
def test_the_keys_of_a_mark(mark: str, names: str) -> None:
    assert marked(mark) == tuple(names.split())


def test_no_key_has_a_default_in_its_class() -> None:
    """Keys in lists are not walked: an entry of optimizer.groups may leave out a factor. The first
    weights of a model and the name of an own metric may be left out in a user's own section, and
    optimizer=module has no target."""
    found = {
        name
        for name, field in every_key(Config)
        if field.default is not PydanticUndefined or field.default_factory is not None
    }
    optional = ("metrics.name", "model.weights", "model.strict", "optimizer._target_")
    assert found == set(optional)
