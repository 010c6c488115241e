"""Compose configs from overrides. Everything is checked before Hydra acts on anything."""

import shlex
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import numpy as np
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from runner.cli import hydra_bridge
from runner.cli.overrides import explained, first_line, forced, parse_overrides
from runner.config import trust
from runner.config.conf_folder import CONF, with_schedules_whole
from runner.errors import ConfigError, show

__all__ = ["CONF", "Composer", "compose", "rates", "to_values"]


def compose(overrides: Sequence[str], config_dir: str | None = None) -> dict[str, Any]:
    """One run's config as plain values: interpolations resolved, Hydra's own part left out."""
    return Composer(config_dir).values(overrides)


class Composer:
    """Composes the runs of one command.

    Runs that share their choices of groups share that composition, which takes Hydra most of its
    time; their values are put upon copies of it. Values of Hydra's own part are never put upon it:
    they are checked and go to `hydra_part`.
    """

    def __init__(self, config_dir: str | None = None) -> None:
        self.config_dir = config_dir
        self._known: dict[tuple[str, ...], DictConfig] = {}  # choices of groups -> composition
        self._hydra: dict[str, DictConfig] = {}  # choices and values of Hydra's -> its part

    def __getstate__(self) -> dict[str, Any]:
        """Drop what can be composed again from what another process gets."""
        return {"config_dir": self.config_dir, "_known": {}, "_hydra": {}}

    def values(self, overrides: Sequence[str]) -> dict[str, Any]:
        """Compose one run's config, as `compose` does."""
        return to_values(self.whole(overrides))

    def whole(self, overrides: Sequence[str]) -> DictConfig:
        """The config as Hydra composed it, with Hydra's own part; both are checked."""
        whole, said = self._composed(overrides)
        if said or self.config_dir:
            self._hydra_part(whole, said)
        trust.check_values(plain(own_part(whole)))
        return whole

    def hydra_part(self, overrides: Sequence[str]) -> DictConfig:
        """Hydra's part as it may act on it: what the chosen launcher and sweeper are by themselves,
        with the keys that may be set of them. What else is set there is refused."""
        return deepcopy(self._hydra_part(*self._composed(overrides)))

    def _hydra_part(self, whole: DictConfig, said: Mapping[str, Any]) -> DictConfig:
        choices = {group: whole.hydra.runtime.choices.get(group) for group in trust.CHOICES}
        chosen = [f"{group}={choice}" for group, choice in choices.items() if choice]
        key = repr((chosen, plain(whole.hydra), said))
        if key not in self._hydra:
            for group, choice in choices.items():
                if choice:
                    trust.check_choice(group, choice)
            own = hydra_bridge.load(None, chosen).hydra
            changed = trust.allowed(plain(whole.hydra), said, plain(own))
            params = changed.pop("sweeper.params", None)
            for name, value in changed.items():
                OmegaConf.update(own, name, value, force_add=True)
            if params is not None:
                parse_overrides([f"{name}={v}" for name, v in params.items()], self.config_dir)
                own.sweeper.params = params
            self._hydra[key] = own
        return self._hydra[key]

    def _composed(self, overrides: Sequence[str]) -> tuple[DictConfig, dict[str, Any]]:
        """The composition, and the values of Hydra's own part that were set beside it."""
        parsed = parse_overrides(overrides, self.config_dir)
        for override in parsed:
            if override.is_sweep_override():
                raise ConfigError(
                    f"{show(override.input_line)} gives several values, which needs -m "
                    f"(--multirun); a list is [a,b]"
                )
        said = {o.key_or_group: o for o in parsed if o.key_or_group.startswith("hydra.")}
        for key, override in said.items():
            if override.is_delete():
                raise ConfigError(f"{key} cannot be removed")
        each = OverridesParser.create().parse_overrides(
            [forced(override) for override in parsed if override.key_or_group not in said]
        )
        values = [o for o in each if o.is_force_add() and o.package is None]
        choices = tuple(o.input_line or "" for o in each if o not in values)
        try:
            if choices not in self._known:
                self._known[choices] = hydra_bridge.load(self.config_dir, choices)
            whole = deepcopy(self._known[choices])
            hydra_bridge.apply(values, whole)
        except ConfigError:
            raise
        except Exception as error:  # Hydra's, OmegaConf's, and what these forgot to look for
            raise explained(error) from None
        return whole, {key.removeprefix("hydra."): o.value() for key, o in said.items()}


def own_part(whole: DictConfig) -> DictConfig:
    """All but Hydra's."""
    keys: list[Any] = [key for key in whole if key != "hydra"]  # a file's may be other than text
    own: DictConfig = OmegaConf.masked_copy(whole, keys)
    return own


def plain(config: DictConfig) -> dict[str, Any]:
    """Plain values, interpolations as they are written."""
    values: Any = OmegaConf.to_container(config)
    return values


def to_values(whole: DictConfig) -> dict[str, Any]:
    """Interpolations resolved, Hydra's own part left out; a value that is still `???` is named."""
    try:
        values: Any = OmegaConf.to_container(own_part(whole), resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        raise ConfigError(f"{error.full_key} is missing; it needs a value") from None
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key}: {first_line(error)}") from None
    return with_schedules_whole(values)


def rates(
    overrides: str, total_steps: int, lr: float | None = None, steps_per_epoch: int | None = None
) -> np.ndarray:
    """The table that a run would train with: eta(t) for t = 0 ... total_steps - 1.  #
    float64[total_steps]

    `overrides` as on the command line: "schedule=cosine schedule.warmup=5%". `lr` is
    `optimizer.lr`; an epoch is
    `steps_per_epoch` updates, by default the whole run.
    """
    from runner import schedules
    from runner.config.schema import parse

    base = [] if lr is None else [f"optimizer.lr={lr!r}"]
    config = parse(compose([*shlex.split(overrides), *base]))
    clock = schedules.Clock(total_steps, steps_per_epoch or total_steps)
    return schedules.table(config.schedule, clock, config.optimizer.lr)
