"""Callbacks of the frameworks as observers: the part that both frameworks share.

A backend's callbacks.py says which hooks it calls, in which order and with what.
"""

import ast
import inspect
import json
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from runner.errors import ConfigError, RunError
from runner.plan import Plan
from runner.run import callback_state
from runner.run.observer import Observer, label
from runner.user_code import REPLACED, blame


def framework_of(value: Any) -> str | None:
    """Return the backend whose callback a value is; None if it is none. Imports no framework."""
    for cls in type(value).__mro__:
        if cls.__name__ == "Callback":
            package = cls.__module__.partition(".")[0]
            if package in ("pytorch_lightning", "keras"):
                return "keras" if package == "keras" else "lightning"
    return None


def backend_of(target: str) -> str | None:
    """Return the backend that code of a framework needs, by its name; None if it is none."""
    roots = {"pytorch_lightning": "lightning", "torch": "lightning", "keras": "keras"}
    return roots.get(target.partition(".")[0])


def with_single_updates(prepared: Plan, observers: Sequence[Observer]) -> Plan:
    """Return the plan with chunks of one update if a callback has a hook for each of them."""
    trainer = prepared.config.trainer
    for observer in observers:
        if not isinstance(observer, NativeCallback) or not observer.is_per_batch:
            continue
        hook = next(hook for hook in observer.per_batch if hook in observer.hooks)
        if trainer.accumulate_grad_batches != 1:
            raise ConfigError(
                f"trainer.accumulate_grad_batches must be 1 with {observer.name}, which defines "
                f"{hook}, got {trainer.accumulate_grad_batches}"
            )
        if trainer.steps_per_call not in ("auto", 1):
            raise ConfigError(
                f"trainer.steps_per_call must be auto or 1 with {observer.name}, which defines "
                f"{hook}, got {trainer.steps_per_call}"
            )
        trainer = trainer.model_copy(update={"steps_per_call": 1})
    if trainer is prepared.config.trainer:
        return prepared
    return replace(prepared, config=prepared.config.model_copy(update={"trainer": trainer}))


def refuse_states(observers: Sequence[Observer], saved: Mapping[str, Any]) -> None:
    """Refuse to resume with a callback whose state the checkpoint does not hold."""
    states = saved.get("observers", {})
    for i, observer in enumerate(observers):
        if isinstance(observer, NativeCallback):
            observer.refuse_state(states.get(f"{i} {label(observer)}", {}))


def notes(observers: Sequence[Observer]) -> list[str]:
    """Return sentences about hooks that training does not call."""
    return [
        f"callback {observer.label}: training does not call {', '.join(observer.unused)}"
        for observer in observers
        if isinstance(observer, NativeCallback) and observer.unused
    ]


class NativeCallback(Observer):
    """A callback of a framework as an observer.

    Its state is in the checkpoints: what its `state_dict` returns, if it has one, else those of its
    attributes that have changed since it was made. What JSON and arrays cannot hold is named there,
    and the run does not resume.
    """

    base: type  # the framework's class of callbacks
    supported: tuple[str, ...]  # the hooks that are called here
    per_batch: tuple[str, ...]  # those of them that need chunks of one update
    elsewhere: tuple[str, ...]  # prefixes of hooks that training does not call
    not_state: tuple[str, ...]  # attributes that the framework sets

    def __init__(self, native: Any, name: str, has_validation: bool) -> None:
        self.native, self.name, self.has_validation = native, name, has_validation
        self.label = type(native).__qualname__
        self.hooks = {hook for hook in self._hooks_of_base() if self.overrides(hook)}
        self.is_per_batch = any(hook in self.hooks for hook in self.per_batch)
        self.unused = sorted(hook for hook in self.hooks if hook.startswith(self.elsewhere))
        self.is_begun = False
        self._refuse()
        self._first = self._attributes()[0]
        self._loaded: Mapping[str, Any] | None = None
        self._kept: dict[str, Any] | None = None  # the state, while an unfinished epoch ends

    def _hooks_of_base(self) -> Iterator[str]:
        return (name for name, value in vars(self.base).items() if name.startswith("on_"))

    def overrides(self, method: str) -> bool:
        """Return whether the callback's class, or the callback itself, defines a method."""
        if method in vars(self.native):
            return True
        return getattr(type(self.native), method, None) is not getattr(self.base, method, None)

    def _refuse(self) -> None:
        """Refuse a callback that the runner replaces, and hooks that are not called."""
        for cls in type(self.native).__mro__:
            package = cls.__module__.partition(".")[0]
            if cls.__name__ in REPLACED and package in ("pytorch_lightning", "keras"):
                raise ConfigError(f"{self.name} is a {cls.__name__}; {REPLACED[cls.__name__]}")
        wrong = sorted(self.hooks - set(self.supported) - set(self.unused))
        if wrong:
            raise ConfigError(
                f"{self.name} defines {wrong[0]}, which is not called here; the hooks that are "
                f"called: {', '.join(self.supported)}"
            )

    # ---- calls

    def call(self, hook: str, *arguments: Any) -> None:
        """Call a hook, if the callback has it."""
        if hook not in self.hooks and not hasattr(self.native, hook):
            return
        try:
            getattr(self.native, hook)(*arguments)
        except (ConfigError, RunError):
            raise
        except Exception as error:
            reason = blame(error, type(self.native).__module__)
            raise RunError(f"{self.name}: {hook} raised {reason}") from error

    # ---- state

    def state(self) -> dict[str, Any]:
        return self.current_state() if self._kept is None else self._kept

    def keep_state(self) -> None:
        """Keep the present state for the checkpoints: a longer run does not see what follows."""
        self._kept = self.current_state()

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take a checkpoint's state; `restore` gives it to the callback."""
        self._loaded = state

    def refuse_state(self, state: Mapping[str, Any]) -> None:
        """Raise ConfigError if a checkpoint does not hold the whole state of the callback."""
        if state.get("unsaved"):
            raise ConfigError(
                f"{self.name} cannot resume: {'; '.join(state['unsaved'])}, which a checkpoint "
                f"cannot hold; keep numbers, texts, lists, dicts, arrays and tensors, or define "
                f"state_dict and load_state_dict; callbacks=[] resumes without it"
            )

    def current_state(self) -> dict[str, Any]:
        """Return the callback's state for a checkpoint."""
        own = self.own_state()
        if callable(getattr(self.native, "state_dict", None)) and self.has_own_state:
            try:
                values = self.native.state_dict()
                return {**own, "state_dict": callback_state.encode(values, "its state_dict()")}
            except callback_state.UnsavedError as error:
                return {**own, "unsaved": [str(error)]}
        values, unsaved = self._attributes()
        changed = {
            name: value
            for name, value in values.items()
            if name not in self._first or json.dumps(self._first[name]) != json.dumps(value)
        }
        state = {**own, "attributes": changed} if changed else own
        return {**state, "unsaved": unsaved} if unsaved else state

    @property
    def has_own_state(self) -> bool:
        """True if the callback defines state_dict and load_state_dict."""
        return self.overrides("load_state_dict")

    def own_state(self) -> dict[str, Any]:
        """Return what the adapter itself needs when the run resumes."""
        return {}

    def _attributes(self) -> tuple[dict[str, Any], list[str]]:
        """Return the attributes as JSON, and words about those that JSON cannot hold."""
        values, unsaved = {}, []
        for name, value in vars(self.native).items():
            if name in self.not_state or callback_state.is_constant(value):
                continue
            try:
                values[name] = callback_state.encode(value, f"self.{name}")
            except callback_state.UnsavedError as error:
                unsaved.append(str(error))
        return values, unsaved

    def restore(self, to_tensor: Callable[[np.ndarray], Any]) -> None:
        """Give the callback the state of the checkpoint, if there is one."""
        loaded, self._loaded = self._loaded, None
        if loaded is None:
            return
        decoded = callback_state.decode(
            {key: loaded[key] for key in ("state_dict", "attributes") if key in loaded}, to_tensor
        )
        if "state_dict" in decoded:
            self.call("load_state_dict", decoded["state_dict"])
        for name, value in decoded.get("attributes", {}).items():
            setattr(self.native, name, value)

    # ---- source

    def functions(self) -> Iterator[ast.FunctionDef]:
        """Yield the methods of the callback's own classes."""
        for cls in type(self.native).__mro__:
            if cls in self.base.__mro__:
                continue
            try:
                tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
            except (OSError, TypeError, SyntaxError):
                continue  # no source: a wrong attribute ends the run instead
            for node in ast.walk(tree):
                if isinstance(node, ast.FunctionDef):
                    yield node


def attributes_of(node: ast.AST, name: str) -> Iterable[tuple[str, bool]]:
    """Yield the attributes of NAME, such as `trainer` or `self.model`, that code uses, and whether
    it assigns them."""
    for inner in ast.walk(node):
        if isinstance(inner, ast.Attribute) and ast.unparse(inner.value) == name:
            yield inner.attr, not isinstance(inner.ctx, ast.Load)
