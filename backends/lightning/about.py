"""Facts about this backend that the runner needs before it imports the framework."""

import os
import shutil
from typing import Any

from runner.components.layers import Network
from runner.errors import ConfigError
from runner.machine.work import products
from runner.spec import About


def _refuse(config: Any) -> None:
    if config.trainer.compile is True and not _has_compiler():
        raise ConfigError(
            "trainer.compile=true with backend=lightning needs a C++ compiler: install g++ or "
            "clang++, or set CXX"
        )


def _has_compiler() -> bool:
    compilers = [os.environ.get("CXX", ""), "g++", "clang++", "c++", "cl"]
    return any(map(shutil.which, filter(None, compilers)))


# Updates after which torch.compile has paid for 16 s of compilation, on one core without programs
# of earlier runs: 20,000 for a small transformer (python -m benchmarks.compiling). A run must have
# twice as many.
_PAYS_AFTER = 40_000
_SMALL = 2**20  # multiplications of a row; the transformer has 2^18


def _pays_to_compile(net: Network, num_steps: int) -> bool:
    """Return whether torch.compile pays. It fuses the small operations around attention; other
    networks were slower with it, and so was a GPT, where large products take the time."""
    nodes = [*net.walk()]
    has_attention = any(node.spec.layer == "attention" for node in nodes)
    is_small = sum(num for node in nodes for num in products(node)) <= _SMALL
    return has_attention and is_small and num_steps >= _PAYS_AFTER and _has_compiler()


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
    pays_to_compile=_pays_to_compile,
    tune=_tune,
)
