"""task=export: a finished run as a file that loads without this project."""

from dataclasses import replace

from safetensors.numpy import save_file

from runner import dispatcher
from runner.console import capture
from runner.errors import ConfigError
from runner.saved import Run

# format -> the backend that makes it (None: no framework is needed) and the file
_FORMATS = {
    "keras": ("keras", "model.keras"),
    "torch": ("lightning", "model.pt2"),
    "safetensors": (None, "model.safetensors"),
}


def export(run: Run, format: str | None) -> int:
    """FOLDER/model.keras (keras.models.load_model), model.pt2 (torch.export.load) or model.safetensors (canonical)."""
    if format is None:
        raise ConfigError(f"format must be one of {', '.join(_FORMATS)} for task=export, got null")
    with capture() as (console, held):
        backend, name = _FORMATS[format]
        place = run.folder / name
        held.into(run.folder / "run.log")
        if backend is None:
            save_file(dict(run.weights), place)
        else:
            run = replace(run, config=run.config.model_copy(update={"backend": backend}))
            dispatcher.load(backend).export(run.model_spec, run.state, place)
        console.say(f"file     {place}")
        return 0
