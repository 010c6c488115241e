"""What the runner knows of this backend."""

from typing import Any

from runner.errors import ConfigError
from runner.spec import About


def _refuse(config: Any) -> None:
    if config.trainer.precision not in ABOUT.precisions:
        raise ConfigError(
            "backend=witness trains with trainer.precision=exact alone, got "
            f"{config.trainer.precision}"
        )


def _tune() -> None:
    """Do nothing: NumPy is imported already."""


ABOUT = About(
    name="witness",
    distribution="twinrun",
    packages=(),
    precisions=("exact",),
    exports={},
    refuse=_refuse,
    tune=_tune,
)
