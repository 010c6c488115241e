"""Compose configs from overrides. All values are checked before Hydra acts on any of them."""

import pickle
import shlex
from collections.abc import Mapping, Sequence
from copy import deepcopy
from functools import cache
from typing import Any

import numpy as np
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from runner.cli import hydra_bridge
from runner.cli.hydra_bridge import Composition
from runner.cli.overrides import explained, first_line, parse_overrides, with_force_add
from runner.config import trust
from runner.config.conf_folder import CONF, with_callback_defaults, with_schedule_defaults
from runner.data import splits
from runner.errors import ConfigError, show

__all__ = ["CONF", "Composer", "compose", "rates", "to_values"]


def compose(overrides: Sequence[str], config_dir: str | None = None) -> dict[str, Any]:
    """Compose one run's config as plain values: interpolations resolved, without hydra.*."""
    return Composer(config_dir).values(overrides)


class Composer:
    """Composes the configs of all runs of one command.

    Caches the composition per group choice, which takes most of Hydra's time, and sets each run's
    values on a copy. Values of hydra.* are not set on it; they are checked and go to `hydra_part`.
    """

    def __init__(self, config_dir: str | None = None) -> None:
        self.config_dir = config_dir
        # Choices of groups -> pickled Composition; copy.deepcopy takes six times as long.
        self._known: dict[tuple[str, ...], bytes] = {}
        self._hydra: dict[str, DictConfig] = {}  # choices and values of hydra.* -> its config

    def __getstate__(self) -> dict[str, Any]:
        """Pickle without the caches."""
        return {"config_dir": self.config_dir, "_known": {}, "_hydra": {}}

    def values(self, overrides: Sequence[str]) -> dict[str, Any]:
        """Compose one run's config as plain values, and check both parts."""
        return to_values(self._checked(overrides).own)

    def whole(self, overrides: Sequence[str]) -> DictConfig:
        """Compose one run's config as Hydra shows it, including hydra.*, and check both parts."""
        own, hydra = self._checked(overrides)
        return OmegaConf.create({**plain(own), "hydra": plain(hydra)})

    def _checked(self, overrides: Sequence[str]) -> Composition:
        """Compose and check both parts; interpolations are not resolved."""
        composition, hydra_values = self._composed(overrides)
        if hydra_values or self.config_dir:
            self._hydra_part(composition.hydra, hydra_values)
        trust.check_values(plain(composition.own))
        return composition

    def hydra_part(self, overrides: Sequence[str]) -> DictConfig:
        """The hydra.* config that Hydra may act on: the chosen launcher and sweeper with their own
        defaults and with the allowed keys set. Any other key is refused."""
        (_, hydra), hydra_values = self._composed(overrides)
        return deepcopy(self._hydra_part(hydra, hydra_values))

    def _hydra_part(self, hydra: DictConfig, hydra_values: Mapping[str, Any]) -> DictConfig:
        choices = {group: hydra.runtime.choices.get(group) for group in trust.CHOICES}
        chosen = [f"{group}={choice}" for group, choice in choices.items() if choice]
        key = repr((chosen, plain(hydra), hydra_values))
        if key not in self._hydra:
            for group, choice in choices.items():
                if choice:
                    trust.check_choice(group, choice)
            own = deepcopy(_hydra_defaults(tuple(chosen)))
            changed = trust.allowed(plain(hydra), hydra_values, plain(own))
            params = changed.pop("sweeper.params", None)
            conditions = changed.pop("sweeper.conditions", None)
            objectives = changed.pop("sweeper.objectives", None)
            for name, value in changed.items():
                OmegaConf.update(own, name, value, force_add=True)
            if params is not None:
                parse_overrides([f"{name}={v}" for name, v in params.items()], self.config_dir)
                own.sweeper.params = params
            if conditions is not None:
                own.sweeper.conditions = conditions
            if objectives is not None:
                own.sweeper.objectives = objectives
            self._hydra[key] = own
        return self._hydra[key]

    def _composed(self, overrides: Sequence[str]) -> tuple[Composition, dict[str, Any]]:
        """Compose; return both parts, and the values of hydra.* from the overrides."""
        parsed = parse_overrides(overrides, self.config_dir)
        for override in parsed:
            if override.is_sweep_override():
                raise ConfigError(
                    f"{show(override.input_line)} has several values and needs -m (--multirun); "
                    f"write a list as [a,b]"
                )
        hydra_values = {o.key_or_group: o for o in parsed if o.key_or_group.startswith("hydra.")}
        for key, override in hydra_values.items():
            if override.is_delete():
                raise ConfigError(f"{key} cannot be removed")
        forced = OverridesParser.create().parse_overrides(
            [
                with_force_add(override)
                for override in parsed
                if override.key_or_group not in hydra_values
            ]
        )
        values = [o for o in forced if o.is_force_add() and o.package is None]
        choices = tuple(o.input_line or "" for o in forced if o not in values)
        try:
            if choices not in self._known:
                loaded = hydra_bridge.load(self.config_dir, choices)
                self._known[choices] = pickle.dumps(loaded)
            own, hydra = pickle.loads(self._known[choices])
            hydra_bridge.apply(values, own)
            _replace_fractions(values, own)
        except ConfigError:
            raise
        except Exception as error:  # Hydra, OmegaConf, and errors that these do not catch
            raise explained(error) from None
        given = {key.removeprefix("hydra."): o.value() for key, o in hydra_values.items()}
        return Composition(own, hydra), given


@cache
def _hydra_defaults(choices: tuple[str, ...]) -> DictConfig:
    """Compose the hydra.* config of these choices alone."""
    return hydra_bridge.load(None, choices).hydra


def _replace_fractions(values: Sequence[Override], config: DictConfig) -> None:
    """Set the fraction to 0 that a key such as data.fold takes the place of. If the user sets both,
    the schema refuses them."""
    given = {override.key_or_group: override.value() for override in values}
    for key, fraction in splits.REPLACES.items():
        is_replaced = given.get(f"data.{key}") is not None and f"data.{fraction}" not in given
        if is_replaced and OmegaConf.select(config, f"data.{fraction}") is not None:
            OmegaConf.update(config, f"data.{fraction}", 0.0)


def plain(config: DictConfig) -> dict[str, Any]:
    """Convert to plain values; interpolations are not resolved."""
    values: Any = OmegaConf.to_container(config)
    return values


def to_values(config: DictConfig) -> dict[str, Any]:
    """Convert to plain values: resolve interpolations, refuse a missing `???`."""
    try:
        values: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        raise ConfigError(f"{error.full_key} is missing; it needs a value") from None
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key}: {first_line(error)}") from None
    return with_callback_defaults(with_schedule_defaults(values))


def rates(
    overrides: str,
    total_steps: int,
    lr: float | None = None,
    steps_per_epoch: int | None = None,
    tokens_per_row: int = 1,
) -> np.ndarray:
    """The table of rates that a run trains with, eta(t) for t = 0 ... total_steps - 1.

    Args:
        overrides: as on the command line, such as "schedule=cosine schedule.warmup=5%".
        total_steps: the number of updates of the run.
        lr: the base rate `optimizer.lr`; by default that of the config.
        steps_per_epoch: updates of one epoch; by default `total_steps`.
        tokens_per_row: tokens of a row, for schedule=power_tokens.

    Returns:
        float64[total_steps]
    """
    from runner import schedules
    from runner.config.schema import parse

    base = [] if lr is None else [f"optimizer.lr={lr!r}"]
    config = parse(compose([*shlex.split(overrides), *base]))
    rows = config.batch_rows * config.trainer.accumulate_grad_batches
    clock = schedules.Clock(total_steps, steps_per_epoch or total_steps, rows, tokens_per_row)
    return schedules.table(config.schedule, clock, config.optimizer.lr)
