"""conf/: where the choices and every default lie."""

import re
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

_HERE = Path(__file__).resolve().parent
# in a wheel; in a checkout
CONF = _HERE / "conf" if (_HERE / "conf").is_dir() else _HERE.parent / "conf"


@cache
def defaults(group: str, name: str) -> dict[str, Any]:
    """The keys of conf/GROUP/NAME.yaml that have a default; none where there is no such choice.
    conf/config.yaml is in no group, ""."""
    file = CONF / group / f"{name}.yaml"
    if not re.fullmatch(r"\w+", name) or not file.is_file():
        return {}
    values: Any = OmegaConf.to_container(OmegaConf.load(file))
    return {key: value for key, value in values.items() if value != "???"}
