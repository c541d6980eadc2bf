"""What an installation is: one version, an import that costs little, a binary that fits or an error that says why not,
and wheels that work where there is no compiler."""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
import tomlkit
import torch
import yaml
from packaging.requirements import Requirement

import frcnn_fast
from frcnn_fast import _extension, cli, doctor
from tests.make_wheels import MOST_BYTES, pythons

ROOT = Path(__file__).resolve().parents[1]
LONG = bool(os.environ.get("FRCNN_LONG"))
SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")
MOST_OF_TORCHS_IMPORT = 0.25


def elf(machine: int) -> bytes:
    """The head of an ELF file, and nothing behind it."""
    return b"\x7fELF\x02\x01\x01" + bytes(9) + (3).to_bytes(2, "little") + machine.to_bytes(2, "little") + bytes(44)


class TestVersion:
    def test_it_is_said_in_one_place(self):
        version = frcnn_fast.__version__
        tracked = subprocess.run(["git", "ls-files"], text=True, capture_output=True, cwd=ROOT).stdout.split()
        if not tracked:
            pytest.skip("no git checkout")
        literal = re.compile(rf"""version\w* *[:=(] *["']?{re.escape(version)}\b""", re.IGNORECASE)
        kinds = (".py", ".toml", ".txt", ".cff", ".cmake", ".cpp", ".h", ".in")
        files = [name for name in tracked if Path(name).suffix in kinds and (ROOT / name).is_file()]
        places = [name for name in files if literal.search((ROOT / name).read_text(errors="replace"))]
        assert [name for name in places if name != "CITATION.cff"] == ["frcnn_fast/__init__.py"]

    def test_the_citation_has_it(self):
        assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == frcnn_fast.__version__

    def test_the_compiled_half_has_it(self):
        assert _extension.extension().__version__ == frcnn_fast.__version__

    def test_the_command_says_it(self, capsys):
        assert cli.main(["--version"]) == 0
        assert capsys.readouterr().out == f"frcnn_fast {frcnn_fast.__version__}\n"

    def test_the_oldest_torch_is_the_one_of_the_requirements(self):
        text = (ROOT / "pyproject.toml").read_text()
        (bound,) = re.findall(r'"torch>=([\d.]+)"', text)
        assert tuple(map(int, bound.split("."))) == _extension.OLDEST_TORCH


class TestFit:
    @pytest.mark.parametrize("version", ["2.10.1", "1.13.0+cpu", "2.2"])
    def test_torch_that_is_too_old(self, version):
        with pytest.raises(
            ImportError, match=rf"needs torch 2\.11 or later, and this is torch {re.escape(version)} in "
        ):
            _extension.check_torch(version)

    @pytest.mark.parametrize("version", ["2.11.0", "2.14.1+cu130", "2.13.0a0+git1", "3.0"])
    def test_torch_that_is_not(self, version):
        _extension.check_torch(version)

    def test_another_version_of_the_binary(self):
        _extension.check_version("1.2", "1.2")
        with pytest.raises(ImportError, match=r"is version 1\.2, .* was built for 1\.1"):
            _extension.check_version("1.2", "1.1")

    def test_nothing_built_is_no_misfit(self, tmp_path):
        assert _extension.unfit(tmp_path, ImportError("no")) == ""

    def test_another_python(self, tmp_path):
        (tmp_path / "_C.cpython-39-x86_64-linux-gnu.so").write_bytes(elf(62))
        said = _extension.unfit(tmp_path, ImportError("no"))
        assert "its compiled half is for cpython-39-x86_64-linux-gnu; this is Python 3." in said
        assert f"({sysconfig.get_config_var('SOABI')})" in said

    @pytest.mark.parametrize(
        ("data", "named"),
        [(elf(183), "aarch64"), (elf(62), "x86_64"), (elf(9), "ELF machine 9"), (b"", "it is no ELF")],
    )
    def test_another_processor(self, tmp_path, data, named):
        (tmp_path / f"_C{SUFFIX}").write_bytes(data)
        said = _extension.unfit(tmp_path, ImportError("wrong class"))
        assert named in said
        assert "cannot be loaded (wrong class); this is Python" in said
        assert os.uname().machine in said

    def test_the_import_says_it(self, tmp_path):
        """Of the whole package, in a process of its own."""
        shutil.copytree(
            ROOT / "frcnn_fast", tmp_path / "frcnn_fast", ignore=shutil.ignore_patterns("_C*", "__pycache__")
        )
        (tmp_path / f"frcnn_fast/_C{SUFFIX}").write_bytes(elf(183))
        done = subprocess.run(
            [sys.executable, "-c", "import frcnn_fast"], text=True, capture_output=True, cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(tmp_path)},
        )  # fmt: skip
        assert done.returncode == 1
        last = done.stderr.strip().splitlines()[-1]
        assert last.startswith("ImportError: frcnn_fast does not fit: its compiled half ")
        assert "for aarch64, cannot be loaded" in last


def test_the_import_costs_little():
    """Beside torch's own. Both in processor time of one process, so that a slow or busy machine is slow for both."""
    code = (
        "import time\n"
        "begin = time.process_time()\n"
        "import torch\n"
        "middle = time.process_time()\n"
        "import frcnn_fast\n"
        "print((time.process_time() - middle) / (middle - begin))\n"
        "import sys; print(*sorted(m for m in ('PIL', 'matplotlib', 'scipy', 'sklearn', 'triton') if m in sys.modules))"
    )
    shares, loaded = [], ""
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, cwd=ROOT, check=True)
        share, loaded = done.stdout.splitlines()
        shares.append(float(share))
    assert min(shares) < MOST_OF_TORCHS_IMPORT
    assert not loaded, "import frcnn_fast needs torch and numpy only"


# What the commands say of themselves.


class Asked(Exception):
    """Raised in the place of printing the help."""


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_option_says_its_default(command, monkeypatch):
    """In its own text, in brackets, or in the title or the text of its group. Flags are off."""
    seen = []

    def show(parser, file=None):
        seen.append(parser)
        raise Asked

    monkeypatch.setattr(argparse.ArgumentParser, "print_help", show)
    module = importlib.import_module(f"frcnn_fast.{command.replace('-', '_')}")
    with pytest.raises(Asked):
        module.main(["--help"])
    silent = []
    for group in seen[-1]._action_groups:
        said_for_all = "default" in f"{group.title} {group.description}"
        for action in group._group_actions:
            switch = action.nargs == 0 and not isinstance(action, argparse.BooleanOptionalAction)
            if not action.option_strings or action.required or switch or said_for_all:
                continue
            if not re.search(r"default|\[.*\]$", action.help or ""):
                silent.append(action.option_strings[-1])
    assert not silent, f"frcnn-fast {command} --help does not say the defaults of {', '.join(silent)}"


def test_the_doctor_says_how_to_mend_what_it_misses(monkeypatch):
    """Every optional package, by the extra that has it, and each reason why there is no GPU."""
    monkeypatch.setattr(doctor, "_version", lambda package: None)
    said = dict(doctor.report())
    extras = extras_of_the_project()
    for package, extra in doctor._EXTRA_OF.items():
        assert said[package] == f"not installed: pip install 'frcnn_fast[{extra}]'"
        assert any(re.split("[<>=]", requirement)[0] == package for requirement in extras[extra])
    assert "pip install numpy" in said["numpy"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for built, remedy in ((None, "install one that was built with it"), ("13.0", "update its driver")):
        monkeypatch.setattr(torch.version, "cuda", built)
        assert remedy in dict(doctor.report())["gpu"]
    assert "FRCNN_FAST_CUDA_ARCHITECTURES=75-real" in doctor._mended_code((7, 5))
    info = {"cuda": True, "cuda_devices": 0, "cuda_error": "insufficient driver"}
    assert "insufficient driver" in doctor._why_no_cuda(info)
    assert "nvidia-smi" in doctor._why_no_cuda(info)


def extras_of_the_project() -> dict[str, list[str]]:
    """The extras of pyproject.toml."""
    return tomlkit.parse((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"].unwrap()


@pytest.mark.parametrize("path", sorted(ROOT.glob(".github/ISSUE_TEMPLATE/*.yml")), ids=lambda path: path.stem)
def test_issue_templates_are_forms(path):
    form = yaml.safe_load(path.read_text())
    if path.stem == "config":
        assert form == {"blank_issues_enabled": True}
        return
    assert {"name", "description", "body"} <= form.keys()
    for field in form["body"]:
        assert field["type"] in ("textarea", "dropdown", "input", "checkboxes", "markdown")
        assert field["attributes"]["label"]


# Wheels.


def requirements(*names: str) -> set[str]:
    """Distributions that these need, themselves included, as far as they are installed here."""
    found: set[str] = set()
    left = list(names)
    while left:
        name = left.pop()
        if name in found:
            continue
        try:
            needs = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        found.add(name)
        parsed = [Requirement(need) for need in needs]
        left += [one.name for one in parsed if one.marker is None or one.marker.evaluate({"extra": ""})]
    return found


def empty_environment(folder: Path) -> Path:
    """A new environment of this Python with torch, numpy and what they need, linked: its interpreter."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin/python"
    place = "import site; print(site.getsitepackages()[0])"
    site = Path(subprocess.run([python, "-c", place], text=True, capture_output=True, check=True).stdout.strip())
    for name in requirements("torch", "numpy"):
        distribution = importlib.metadata.distribution(name)
        for top in {file.parts[0] for file in distribution.files or []} - {"..", "__pycache__"}:
            source = Path(str(distribution.locate_file(top)))
            if not (site / top).exists() and source.exists():
                (site / top).symlink_to(source)
    return python


USE = """
import sys, torch, frcnn_fast
from frcnn_fast import _C, ops
boxes = torch.tensor([[0.0, 0, 10, 10], [1, 1, 10, 10], [20, 20, 30, 30]])
assert ops.nms(boxes, torch.tensor([0.5, 0.9, 0.7]), 0.5).tolist() == [1, 2]
image = torch.arange(64.0).reshape(1, 1, 8, 8).requires_grad_()
ops.roi_align(image, torch.tensor([[0.0, 0, 0, 8, 8]]), 2).sum().backward()
assert image.grad.sum() == 4
torch.set_num_threads(2)
scores = torch.randn(4, 100000)
assert torch.equal(ops.top_n(scores, 50).values, scores.topk(50).values)
maps = {line.split()[-1] for line in open("/proc/self/maps") if "gomp" in line}
assert len(maps) == 1 and "torch" in maps.pop(), maps
assert not {"PIL", "matplotlib", "scipy"} & set(sys.modules)
print(frcnn_fast.__version__, _C.build_info()["cuda"], frcnn_fast.__file__)
"""


@pytest.mark.skipif(not LONG, reason="builds wheels: FRCNN_LONG=1")
@pytest.mark.parametrize("half", ["cpu", "cuda"])
def test_a_wheel_works_where_there_is_no_compiler(half, tmp_path):
    if half == "cuda" and not shutil.which("nvcc"):
        pytest.skip("needs nvcc")
    here = f"3.{sys.version_info.minor}"
    assert here in pythons()
    arguments = ["--out", str(tmp_path / "dist"), "--pythons", here, "--halves", half]
    subprocess.run([sys.executable, "-m", "tests.make_wheels", *arguments], cwd=ROOT, check=True)
    (wheel,) = (tmp_path / "dist" / half).glob("*.whl")
    assert wheel.stat().st_size < MOST_BYTES
    assert "manylinux" in wheel.name
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        assert not [name for name in names if "gomp" in name], "torch's OpenMP runtime is to be the only one"
        assert not [name for name in names if name.endswith((".cpp", ".pyc"))]
        assert "frcnn_fast/kernels/nms/nms.cu" in names  # cupy_kernels compiles it where there is no binary for the GPU
        assert any(name.endswith(".a") for name in names) is (half == "cpu")
        (binary,) = [archive.getinfo(name) for name in names if re.search(r"/_C\..*\.so$", name)]
        assert binary.file_size < MOST_BYTES

    python = empty_environment(tmp_path / "empty")
    install = ["-m", "pip", "install", "-q", "--no-index", "--no-deps", "--disable-pip-version-check", str(wheel)]
    subprocess.run([python, *install], check=True)
    (tmp_path / "elsewhere").mkdir()
    bare = {"PATH": str(python.parent), "HOME": str(tmp_path)}
    for command in (
        [python, "-c", USE],
        [python.parent / "frcnn-fast", "--version"],
        [python.parent / "frcnn-fast", "doctor"],
    ):
        done = subprocess.run(command, text=True, capture_output=True, cwd=tmp_path / "elsewhere", env=bare)
        assert done.returncode == 0, done.stderr
        assert frcnn_fast.__version__ in done.stdout
    assert "backend cpu       available" in done.stdout
    carried = "CUDA for" if half == "cuda" else "no CUDA half"
    assert carried in done.stdout
