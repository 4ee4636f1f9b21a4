"""Makes torch's C++ core believe that CUDA is its accelerator, so that autograd accepts fake CUDA tensors.

The autograd engine asks for a device guard and for streams of every device that it meets, and a CPU build has none for
CUDA. `hooks.cpp` registers a guard that does nothing. Torch looks the hooks up once, at its import, and keeps the
answer: the library must be loaded before. It is compiled once per torch version, with the compiler that Inductor uses.
"""

import ctypes
import hashlib
import importlib.util
import os
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

_SOURCE = Path(__file__).with_name("hooks.cpp")


def load() -> None:
    """Build the library if needed and load it, then torch. Does nothing where torch was imported before."""
    if "torch" in sys.modules:
        return
    library = ctypes.CDLL(str(_build()), ctypes.RTLD_GLOBAL)
    importlib.import_module("torch")
    library.install_guard()


def require() -> None:
    """Raise where `load` came too late.

    Raises:
        RuntimeError: torch was imported before this package.
    """
    import torch

    if torch.accelerator.current_accelerator() != torch.device("cuda"):
        raise RuntimeError(
            "no fake GPU: torch was imported before tests.support.gpu_rig. Use a process of its own: "
            "python -m tests.support.gpu_rig, or a program that imports the package first."
        )


def _build() -> Path:
    torch_folder = _torch_folder()
    digest = hashlib.sha256(_SOURCE.read_bytes() + str(torch_folder).encode()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"remat_gpu_rig_{os.getuid()}"
    library = folder / f"hooks-{version('torch')}-{digest}.so"
    if not library.exists():
        folder.mkdir(exist_ok=True)
        unfinished = library.with_suffix(f".{os.getpid()}")
        subprocess.run(_compile_command(torch_folder, unfinished), check=True)
        unfinished.replace(library)  # at once, for processes that start together
    return library


def _compile_command(torch_folder: Path, output: Path) -> list[str]:
    libraries = torch_folder / "lib"
    return [
        os.environ.get("CXX", "g++"),
        *("-std=c++20", "-O1", "-fPIC", "-shared"),
        f"-I{torch_folder / 'include'}",
        *("-o", str(output), str(_SOURCE)),
        *(f"-L{libraries}", "-lc10", "-ltorch_cpu", f"-Wl,-rpath,{libraries}", "-Wl,--no-as-needed"),
    ]


def _torch_folder() -> Path:
    spec = importlib.util.find_spec("torch")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent
