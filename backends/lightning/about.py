"""Facts about this backend that the runner needs before it imports the framework."""

import os
import shutil
from typing import Any

from runner.errors import ConfigError
from runner.spec import About


def _refuse(config: Any) -> None:
    compilers = [os.environ.get("CXX", ""), "g++", "clang++", "c++", "cl"]
    if config.trainer.compile and not any(map(shutil.which, filter(None, compilers))):
        raise ConfigError(
            "trainer.compile=true with backend=lightning needs a C++ compiler: install g++ or "
            "clang++, or set CXX"
        )


def _tune() -> None:
    """Let idle OpenMP threads sleep. By default they spin; if another process needs the core, each
    of thousands of small operations then waits for a time slice. torch reads the variable on
    import."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from backends.lightning import lean

    lean.install()


ABOUT = About(
    name="lightning",
    distribution="pytorch-lightning",
    packages=("torch", "pytorch-lightning"),
    precisions=("float32", "float64", "bf16-mixed", "16-mixed", "exact"),
    exports={"torch": "model.pt2", "onnx": "model.onnx"},
    refuse=_refuse,
    tune=_tune,
)
