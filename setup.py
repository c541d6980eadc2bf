"""Builds frcnn_fast._C with CMake: the CUDA half when nvcc is found, unless FRCNN_FAST_CUDA=ON|OFF decides."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()


class CMakeBuild(build_ext):
    """Hands the extension to CMake and Ninja."""

    # One folder for every kind of install, so that a second build compiles only what changed.
    build = ROOT / "build" / sys.implementation.cache_tag

    def run(self) -> None:
        super().run()
        if not self.inplace:  # the package for C++ goes into the wheel: see frcnn_fast.cmake_prefix
            prefix = Path(self.build_lib).resolve() / "frcnn_fast"
            subprocess.check_call(["cmake", "--install", str(self.build), "--prefix", str(prefix)])

    def build_extension(self, ext: Extension) -> None:
        import pybind11

        output = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        build = self.build
        build.mkdir(parents=True, exist_ok=True)
        cuda = os.environ.get("FRCNN_FAST_CUDA", "AUTO")
        extra = shlex.split(os.environ.get("CMAKE_ARGS", ""))
        self._forget_other_tools(build, [cuda, *extra])
        subprocess.check_call(
            [
                "cmake", "-S", str(ROOT), "-B", str(build), "-G", "Ninja",
                "-DCMAKE_BUILD_TYPE=Release",
                f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={output}",
                f"-DPython_EXECUTABLE={sys.executable}",
                f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
                "-DPYBIND11_FINDPYTHON=ON",
                f"-DFRCNN_FAST_CUDA={cuda}",
                *extra,
            ]
        )  # fmt: skip
        subprocess.check_call(["cmake", "--build", str(build), "--target", "_C"])

    @staticmethod
    def _forget_other_tools(build: Path, options: list[str]) -> None:
        """Drops CMake's cache when it was made by other tools: an isolated build's ninja is gone by the next one."""
        tools = [shutil.which(name) or "" for name in ("cmake", "ninja", "nvcc", "c++")]
        environment = [os.environ.get(name, "") for name in ("CXX", "CUDACXX", "CUDA_HOME")]
        key = "\n".join([sys.executable, *tools, *environment, *options])
        stamp = build / "tools.txt"
        if not stamp.exists() or stamp.read_text() != key:
            (build / "CMakeCache.txt").unlink(missing_ok=True)
            shutil.rmtree(build / "CMakeFiles", ignore_errors=True)
            stamp.write_text(key)


setup(ext_modules=[Extension("frcnn_fast._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
