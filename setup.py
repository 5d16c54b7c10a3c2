"""Builds the native part with CMake; everything else is in pyproject.toml and CMakeLists.txt."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()


def tool(name: str) -> str:
    """The cmake or ninja of the Python package of that name, else the one on PATH.

    An environment that is not activated has its scripts beside the interpreter, not on PATH.
    """
    if importlib.util.find_spec(name) is not None:
        module = importlib.import_module(name)
        folder = {"cmake": "CMAKE_BIN_DIR", "ninja": "BIN_DIR"}[name]
        return str(Path(getattr(module, folder)) / name)
    return name


class CMakeBuild(build_ext):
    """One CMake run writes all libraries of the package into its folder."""

    def run(self) -> None:
        # Without the base class's copying: it would know of one library, and there are three.
        for ext in self.extensions:
            self.build_extension(ext)

    def build_extension(self, ext: Extension) -> None:
        import pybind11

        torch = importlib.util.find_spec("torch")
        if torch is None or torch.origin is None:
            raise RuntimeError("building ifru-ext needs torch>=2.10 in the build environment")
        in_place = self.inplace or getattr(self, "editable_mode", False)
        package = ROOT / "ifru_ext"
        target = package if in_place else Path(self.get_ext_fullpath(ext.name)).parent.resolve()
        build = Path(os.environ.get("IFRU_EXT_BUILD_DIR") or ROOT / "build" / "cmake").resolve()
        options = {
            "CMAKE_BUILD_TYPE": "Debug" if self.debug else "Release",
            "CMAKE_MAKE_PROGRAM": tool("ninja"),
            "CMAKE_LIBRARY_OUTPUT_DIRECTORY": target,
            "Python_EXECUTABLE": sys.executable,
            "pybind11_DIR": pybind11.get_cmake_dir(),
            "IFRU_TORCH_DIR": Path(torch.origin).parent,
            "IFRU_TORCH_VERSION": importlib.metadata.version("torch"),
            "IFRU_VERSION": self.distribution.get_version(),
            "IFRU_EXT_CUDA": os.environ.get("IFRU_EXT_CUDA", "auto"),
            # In every run, also if empty: CMake would otherwise remember an earlier one.
            "IFRU_CUDA_ARCH_LIST": os.environ.get("TORCH_CUDA_ARCH_LIST", ""),
            "IFRU_WERROR": os.environ.get("IFRU_EXT_WERROR", "OFF"),
        }
        configure = [tool("cmake"), "-S", str(ROOT), "-B", str(build), "-G", "Ninja"]
        configure += [f"-D{name}={value}" for name, value in options.items()]
        jobs = os.environ.get("MAX_JOBS")
        subprocess.check_call(configure)
        subprocess.check_call(
            [tool("cmake"), "--build", str(build), *(["-j", jobs] if jobs else [])]
        )


setup(ext_modules=[Extension("ifru_ext._host", sources=[])], cmdclass={"build_ext": CMakeBuild})
