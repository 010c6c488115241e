"""Runs' folders without any training: what a comparison reads, with the values that a test
needs."""

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from runner.cli.compose import compose
from runner.run.run_folder import write_config

ROWS = {"train": 1280, "val": 256, "test": 261}


@cache
def _config(overrides: tuple[str, ...]) -> dict[str, Any]:
    return compose(list(overrides))


def write_run(
    parent: Path,
    choices: Sequence[str],
    seed: int,
    last: float | None = 0.5,
    monitor: str = "val/loss",
    **more: Any,
) -> Path:
    """A run of two epochs that ended with `last`; None: it failed. `more`: result.json's keys,
    and data: data.json's. `choices` are the overrides that its config comes from."""
    folder = parent / f"{'_'.join(choices).replace('/', '-')[:80]}_{seed}"
    folder.mkdir(parents=True)
    mode = "max" if "accuracy" in monitor else "min"
    own = (*choices, f"trainer.monitor={monitor}", f"trainer.monitor_mode={mode}")
    config = {**_config(own), "seed": seed}
    write_config(folder, config)
    data = {"task": "classification", "rows": ROWS, "sha256": "0" * 64, **more.pop("data", {})}
    (folder / "data.json").write_text(json.dumps(data))
    result = {
        "status": "failed" if last is None else "completed",
        "backend": config["backend"],
        "schedule": config["schedule"]["name"],
        "seed": seed,
        "overrides": [*choices, f"seed={seed}"],
        "steps": 80,
        "epochs": 2,
        "metrics": {} if last is None else {monitor: last},
        "best": None
        if last is None
        else {"metric": monitor, "value": last, "epoch": 2, "step": 80},
        "seconds": {"startup": 1.0, "train": 2.0, "compile": 0.0, "total": 3.0},
        "weights_sha256": f"{choices} {seed}",
        **({"error": "RunError: out of luck"} if last is None else {}),
        **more,
    }
    (folder / "result.json").write_text(json.dumps(result))
    trace = [f"{step},0.001,{2 - step / 80}" for step in range(80)]
    (folder / "trace.csv").write_text("\n".join(["step,learning_rate,loss", *trace]) + "\n")
    first = 1.0 if last is None else last + 0.5
    epochs = [f"1,40,1.0,{first},2.0", f"2,80,0.5,{'' if last is None else last},3.0"]
    header = f"epoch,step,train/loss,{monitor},seconds"
    (folder / "metrics.csv").write_text("\n".join([header, *epochs]) + "\n")
    return folder
