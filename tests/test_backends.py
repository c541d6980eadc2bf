"""Which backend serves a call, what is refused, and that Triton is needed only where it runs."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator

import pytest
import torch

import frcnn_fast
from frcnn_fast import _extension
from frcnn_fast.ops import _backends
from frcnn_fast.ops._operator import Operator
from tests.samples import operator_of, samples

CPU, GPU, OTHER_GPU = torch.device("cpu"), torch.device("cuda", 0), torch.device("cuda", 1)


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """GPUs of sm_90 that need not be there, nothing worked out before, no interpreter."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(_backends, "why_no_cuda", lambda capability: "")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    _backends._default_on.cache_clear()
    yield
    _backends._default_on.cache_clear()


def lacks_cuda(monkeypatch: pytest.MonkeyPatch, reason: str = "no code for sm_90") -> None:
    monkeypatch.setattr(_backends, "why_no_cuda", lambda capability: reason)


def lacks_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)  # its import fails


def test_the_device_decides() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert _backends.choose("op", None, CPU) == "cpu"
        assert _backends.choose("op", None, GPU) == "cuda"


def test_a_gpu_without_cuda_kernels_falls_to_triton_with_one_warning_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    lacks_cuda(monkeypatch)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert [_backends.choose("op", None, GPU) for _ in range(3)] == ["triton"] * 3
        assert len(caught) == 1
        assert _backends.choose("op", None, OTHER_GPU) == "triton"
    assert [str(w.message) for w in caught] == [
        f"frcnn_fast runs its Triton kernels on cuda:{i}: no code for sm_90" for i in (0, 1)
    ]
    assert all(w.category is RuntimeWarning for w in caught)


def test_a_gpu_without_cuda_kernels_and_without_triton_names_both_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    lacks_cuda(monkeypatch)
    lacks_triton(monkeypatch)
    for _ in range(2):  # an error is not remembered as an answer
        with pytest.raises(RuntimeError, match=r"cuda:0: no code for sm_90, and triton is .*frcnn_fast\[triton\]"):
            _backends.choose("op", None, GPU)


def test_other_devices_have_no_backend() -> None:
    with pytest.raises(ValueError, match="no backend serves tensors on 'meta'"):
        _backends.choose("op", None, torch.device("meta"))


@pytest.mark.parametrize("device", [CPU, GPU])
@pytest.mark.parametrize("backend", ["cpu", "cuda", "triton", "reference"])
def test_a_named_backend_serves_its_devices_and_refuses_others(backend: str, device: torch.device) -> None:
    if backend == "reference" or backend == device.type or (backend == "triton" and device == GPU):
        assert _backends.choose("op", backend, device) == backend
    else:
        with pytest.raises(ValueError, match=f"op: backend '{backend}' cannot serve tensors on '{device.type}'; move"):
            _backends.choose("op", backend, device)


def test_triton_takes_cpu_tensors_in_its_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="TRITON_INTERPRET=1"):
        _backends.choose("op", "triton", CPU)
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(ValueError, match="TRITON_INTERPRET=1"):
        _backends.choose("op", "triton", CPU)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert _backends.choose("op", "triton", CPU) == "triton"
    assert _backends.choose("op", None, CPU) == "cpu"


def test_the_call_goes_before_the_block_and_the_block_before_the_device() -> None:
    with frcnn_fast.use_backend("reference"):
        assert _backends.choose("op", None, GPU) == "reference"
        assert _backends.choose("op", "cuda", GPU) == "cuda"
        with frcnn_fast.use_backend("triton"):
            assert _backends.choose("op", None, GPU) == "triton"
            with frcnn_fast.use_backend(None):
                assert _backends.choose("op", None, GPU) == "cuda"
        assert _backends.choose("op", None, CPU) == "reference"
    assert _backends.choose("op", None, CPU) == "cpu"


def test_a_block_that_fails_leaves_no_choice_behind() -> None:
    with pytest.raises(KeyError), frcnn_fast.use_backend("reference"):
        raise KeyError
    assert _backends.choose("op", None, CPU) == "cpu"


@pytest.mark.parametrize("name", ["CUDA", "gpu", ""])
def test_unknown_names_are_refused(name: str) -> None:
    expected = f"backend: expected one of cpu, cuda, triton, reference or None, got '{name}'"
    with pytest.raises(ValueError, match=expected):
        _backends.choose("op", name, CPU)
    with pytest.raises(ValueError, match=expected), frcnn_fast.use_backend(name):
        pass


class _Binary:
    """An extension that was built so."""

    def __init__(self, cuda: bool, architectures: str) -> None:
        self.info = {"cuda": cuda, "cuda_architectures": architectures}

    def build_info(self) -> dict[str, object]:
        return self.info


def test_why_the_cuda_kernels_cannot_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the real why_no_cuda
    monkeypatch.setattr(_extension, "missing_reason", "no binary")
    assert _backends.why_no_cuda((9, 0)) == "no binary"

    monkeypatch.setattr(_extension, "missing_reason", "")
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(_extension, "extension", lambda: _Binary(False, ""))
    assert "built without its CUDA half" in _backends.why_no_cuda((9, 0))

    monkeypatch.setattr(_extension, "extension", lambda: _Binary(True, "80-real 90-real"))
    assert _backends.why_no_cuda((9, 0)) == ""
    assert _backends.why_no_cuda((8, 9)) == ""
    assert _backends.why_no_cuda((10, 0)) == "the binary (80-real 90-real) carries no code for sm_100"
    assert "carries no code for sm_75" in _backends.why_no_cuda((7, 5))

    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert "carries no code for an AMD GPU" in _backends.why_no_cuda((9, 0))


def run_python(code: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_the_package_imports_no_triton_kernel() -> None:
    """Nor Triton itself: torch may, for reasons of its own, so what torch brings along is no matter here."""
    code = (
        "import sys, torch; before = set(sys.modules); import frcnn_fast, frcnn_fast.ops; "
        "frcnn_fast.ops.top_n(torch.zeros(1, 3), 2); "
        "print(sorted(m for m in set(sys.modules) - before if 'triton' in m))"
    )
    assert run_python(code) == "[]"


def test_works_where_triton_is_not_installed() -> None:
    code = """
import os, sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] == 'triton':
            raise ModuleNotFoundError(f'No module named {name!r}', name=name)
sys.meta_path.insert(0, Blocker())
os.environ['TRITON_INTERPRET'] = '1'
import torch
from frcnn_fast import ops
scores = torch.tensor([[1.0, 3.0, 2.0]])
print(ops.top_n(scores, 2)[1].tolist())
try:
    ops.top_n(scores, 2, backend='triton')
except ImportError as error:
    print(error)
"""
    served, refused = run_python(code).splitlines()
    assert served == "[[1, 2]]"
    assert refused == "triton is needed here and is not installed: pip install 'frcnn_fast[triton]'"


def record_runs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every run of an operator from here on, as "name on backend"."""
    ran: list[str] = []
    run = Operator.run

    def watched(self: Operator, backend: str | None, *args: object) -> object:
        ran.append(f"{self.name} on {_backends.asked_for(backend)}")
        return run(self, backend, *args)

    monkeypatch.setattr(Operator, "run", watched)
    return ran


WITH_GRADIENT = ["decode_clip", "box_iou", "roi_pool", "roi_align", "prroi_pool", "multiscale_roi_align"]
WITH_GRADIENT += ["complete_box_iou", "generalized_box_iou_loss", "sigmoid_focal_loss"]


def total_of(name: str) -> tuple[Callable[[torch.Tensor], torch.Tensor], torch.Tensor]:
    """The sum of the op's first result, as a function of its first argument; and that argument."""
    sample = samples()[name]

    def call(leaf: torch.Tensor) -> torch.Tensor:
        result = sample(leaf, *sample.tensors[1:])
        return (result[0] if isinstance(result, tuple) else result).sum()

    return call, sample.tensors[0].clone().requires_grad_()


@pytest.mark.parametrize(("inside", "outside"), [("reference", None), (None, "reference")])
@pytest.mark.parametrize("name", WITH_GRADIENT)
def test_the_backward_pass_takes_the_backend_of_the_forward_pass(
    name: str, inside: str | None, outside: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is saved for it may be in that backend's own form; and autograd's threads are in no block."""
    call, leaf = total_of(name)
    ran = record_runs(monkeypatch)
    with frcnn_fast.use_backend(inside):
        total = call(leaf)
    with frcnn_fast.use_backend(outside):
        total.backward()
    assert ran == [f"{operator_of(name)} on {inside}", f"{operator_of(name)}_backward on {inside}"]


@pytest.mark.parametrize("name", WITH_GRADIENT)
def test_compiled_code_keeps_the_backend_of_its_block(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    call, leaf = total_of(name)
    ran = record_runs(monkeypatch)
    torch.compiler.reset()
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    with frcnn_fast.use_backend("reference"):
        compiled(leaf)
    ran.clear()
    compiled(leaf).backward()
    assert ran == [f"{operator_of(name)} on reference", f"{operator_of(name)}_backward on reference"]
