"""A lean torchmetrics, before pytorch_lightning is imported. The command line uses it: it takes
0.9 s off the start. Keras's room has no counterpart: TensorFlow's start is its own.

pytorch_lightning uses `Metric` and `MetricCollection` of torchmetrics, whose `__init__` imports
every metric there is with what those need (scipy.signal, and transformers where it is installed):
the larger half of the time that the import takes. Here the package first has these two alone. Its
own `__init__` runs as soon as anything else of it is asked for, so nothing is missing, in this
process or in code that shares it.
"""

import importlib
import importlib.util
import logging
import sys
from types import ModuleType
from typing import Any

# utilities and metric import each other, which works this way round
_IN_ORDER = ("__about__", "utilities", "metric", "collections")


class _Lazy(ModuleType):
    """A package whose `__init__` has not run yet."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__all__":  # what others look for in any module
            raise AttributeError(name)
        self.__class__ = ModuleType  # type: ignore[assignment]
        self.__spec__.loader.exec_module(self)  # type: ignore[union-attr]
        return getattr(self, name)


def put_in_place() -> None:
    """Put `Metric` and `MetricCollection` where torchmetrics would be."""
    spec = importlib.util.find_spec("torchmetrics")
    if "torchmetrics" in sys.modules or spec is None:
        return
    lazy: Any = importlib.util.module_from_spec(spec)
    lazy.__class__ = _Lazy
    lazy._logger = logging.getLogger("torchmetrics")
    sys.modules["torchmetrics"] = lazy
    parts = {name: importlib.import_module(f"torchmetrics.{name}") for name in _IN_ORDER}
    lazy.__version__ = parts["__about__"].__version__
    lazy.Metric, lazy.MetricCollection = (
        parts["metric"].Metric,
        parts["collections"].MetricCollection,
    )
