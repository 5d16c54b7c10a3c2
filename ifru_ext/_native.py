"""Loads the compiled libraries and remembers what happened, so that `ifru info` can say it.

The op libraries are independent of the Python version and of torch's version (stable ABI); only
`_host` is an ordinary extension module. Nothing is compiled and no GPU is touched here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

__all__ = ["NativeStatus", "native"]

_FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class NativeStatus:
    """What was loaded.

    Attributes:
        namespace: Of the ops in `torch.ops`.
        isa: Name of the instruction set that the CPU kernels use.
        supported_isas: Names of all that this build has and this processor can run.
        cuda_loaded: Whether the CUDA kernels are registered.
        cuda_reason: Why they are, or are not; one clause for a person.
        build: Versions, compiler and CUDA architectures of the build.
    """

    namespace: str
    isa: str
    supported_isas: str
    cuda_loaded: bool
    cuda_reason: str
    build: dict[str, str | None]


def _load() -> NativeStatus:
    """Loads `_host`, `_ops` and, beside a CUDA build of torch, `_ops_cuda`.

    Raises:
        ImportError: A library is missing or cannot be loaded, or `IFRU_EXT_ISA` names an
            instruction set that this machine does not have.
    """
    try:
        from ifru_ext import _host  # noqa: PLC0415 (a missing build must give our own sentence)
    except ImportError as error:
        raise ImportError(
            f"ifru_ext: the compiled module _host is missing or broken ({error}); "
            "build it with `pip install .` in the source folder"
        ) from error
    try:
        isa = _host.isa()
    except RuntimeError as error:
        raise ImportError(f"ifru_ext: {error}") from None
    _load_library(_FOLDER / "_ops.so")
    cuda_loaded, cuda_reason = _load_cuda(_host.build_info())
    return NativeStatus(
        namespace="ifru_ext",
        isa=isa,
        supported_isas=_host.supported_isas(),
        cuda_loaded=cuda_loaded,
        cuda_reason=cuda_reason,
        build=_host.build_info(),
    )


def _load_library(path: Path) -> None:
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        raise ImportError(f"ifru_ext: cannot load {path.name}: {error}") from error


def _load_cuda(build: dict[str, str | None]) -> tuple[bool, str]:
    if build["cuda"] is None:
        return False, str(build["cuda_reason"])
    if torch.version.cuda is None:
        return False, (
            f"built for CUDA {build['cuda']}, but torch {torch.__version__} is a build without CUDA"
        )
    # A build that was asked for and cannot be loaded is an error, not a slower run.
    _load_library(_FOLDER / "_ops_cuda.so")
    return True, f"loaded (CUDA {build['cuda']}, architectures {build['cuda_architectures']})"


native: NativeStatus = _load()
