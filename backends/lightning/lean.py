"""Makes the import of pytorch_lightning faster: torchmetrics loads lazily. The command line uses
it, which saves 0.9 s at startup. The Keras backend has no counterpart.

pytorch_lightning needs only `Metric` and `MetricCollection` of torchmetrics. torchmetrics'
`__init__` imports all metrics and their dependencies (scipy.signal, and transformers if it is
installed), which takes more than half of pytorch_lightning's import time. `install` makes a
torchmetrics package that has only these two classes. The first access to any other attribute runs
the real `__init__`, so nothing is missing for any code in this process.
"""

import importlib
import importlib.util
import logging
import sys
from types import ModuleType
from typing import Any

# utilities and metric import each other; only this order works
_IMPORT_ORDER = ("__about__", "utilities", "metric", "collections")


class _Lazy(ModuleType):
    """A package that runs its `__init__` on the first access to an attribute."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__all__":  # other code probes any module for these
            raise AttributeError(name)
        self.__class__ = ModuleType  # type: ignore[assignment]
        self.__spec__.loader.exec_module(self)  # type: ignore[union-attr]
        return getattr(self, name)


def install() -> None:
    """Install the lazy torchmetrics in sys.modules, unless torchmetrics is already imported."""
    spec = importlib.util.find_spec("torchmetrics")
    if "torchmetrics" in sys.modules or spec is None:
        return
    lazy: Any = importlib.util.module_from_spec(spec)
    lazy.__class__ = _Lazy
    lazy._logger = logging.getLogger("torchmetrics")
    sys.modules["torchmetrics"] = lazy
    modules = {name: importlib.import_module(f"torchmetrics.{name}") for name in _IMPORT_ORDER}
    lazy.__version__ = modules["__about__"].__version__
    lazy.Metric, lazy.MetricCollection = (
        modules["metric"].Metric,
        modules["collections"].MetricCollection,
    )
