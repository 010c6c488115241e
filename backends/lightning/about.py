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
            "trainer.compile=true needs a C++ compiler on backend=lightning: g++, clang++ "
            "or what CXX names"
        )


def _tune() -> None:
    """Let idle threads sleep. By default OpenMP's threads spin for a while, and where another
    process needs the core, each of thousands of small operations waits for its time slices. The
    variable is read when torch is imported."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from backends.lightning import lean

    lean.put_in_place()


ABOUT = About(
    name="lightning",
    distribution="pytorch-lightning",
    packages=("torch", "pytorch-lightning"),
    precisions=("float32", "float64", "bf16-mixed", "exact"),
    exports={"torch": "model.pt2"},
    refuse=_refuse,
    tune=_tune,
)
