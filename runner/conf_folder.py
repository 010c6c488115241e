"""conf/: where the choices and every default lie."""

from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

_HERE = Path(__file__).resolve().parent
# in a wheel; in a checkout
CONF = _HERE / "conf" if (_HERE / "conf").is_dir() else _HERE.parent / "conf"


@cache
def schedule_defaults(name: str) -> dict[str, Any]:
    """The keys of conf/schedule/NAME.yaml that have a default."""
    file = CONF / "schedule" / f"{name}.yaml"
    values: Any = OmegaConf.to_container(OmegaConf.load(file)) if file.is_file() else {}
    return {key: value for key, value in values.items() if value != "???"}
