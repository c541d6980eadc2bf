"""The kernels as NVRTC compiles them, and as CuPy would launch them. No GPU is needed."""

from __future__ import annotations

import ctypes
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from frcnn_fast import cupy_kernels, ops
from frcnn_fast.cupy_kernels import KERNELS, OPTIONS, SERVED, Launcher, source
from frcnn_fast.ops import _backends
from tests.fake_cupy import fake_array, fake_cupy
from tests.samples import Sample, boxes, samples
from tests.simt.kernel_library import SimtLauncher, build

# launch.cu asks the runtime what a device runs: there is no kernel in it.
SOURCES = sorted(p.relative_to(KERNELS).as_posix() for p in KERNELS.glob("*/*.cu") if p.name != "launch.cu")
OLDEST = 75  # what NVRTC 13 still compiles for


class Nvrtc:
    """libnvrtc, which needs no GPU and no driver."""

    def __init__(self, folder: Path) -> None:
        # By its full name first: libnvrtc asks for it by the short one.
        for library in sorted(folder.glob("libnvrtc-builtins.so*")):
            ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
        self.library = ctypes.CDLL(str(min(folder.glob("libnvrtc.so*"))))

    def compile(self, text: str, kernels: Sequence[str] = ()) -> tuple[dict[str, str], str]:
        """Names in the machine code by the kernels' full names, and PTX."""
        program = ctypes.c_void_p()
        self._check("CreateProgram", ctypes.byref(program), text.encode(), b"source.cu", 0, None, None)
        try:
            for kernel in kernels:
                self._check("AddNameExpression", program, kernel.encode())
            options = [*OPTIONS, f"--gpu-architecture=compute_{OLDEST}"]
            encoded = (ctypes.c_char_p * len(options))(*map(str.encode, options))
            failed = self.library.nvrtcCompileProgram(program, len(options), encoded)
            assert not failed, self._text("ProgramLog", program)
            names = {}
            for kernel in kernels:
                name = ctypes.c_char_p()
                self._check("GetLoweredName", program, kernel.encode(), ctypes.byref(name))
                assert name.value
                names[kernel] = name.value.decode()
            return names, self._text("PTX", program)
        finally:
            self.library.nvrtcDestroyProgram(ctypes.byref(program))

    def _text(self, what: str, program: ctypes.c_void_p) -> str:
        size = ctypes.c_size_t()
        self._check(f"Get{what}Size", program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        self._check(f"Get{what}", program, buffer)
        return buffer.value.decode()

    def _check(self, name: str, *arguments: Any) -> None:
        code = getattr(self.library, f"nvrtc{name}")(*arguments)
        assert code == 0, f"nvrtc{name}: {code}"


def nvrtc_folders() -> Iterator[Path]:
    """Where libnvrtc may be: beside nvcc, and where its package puts it."""
    for root in filter(None, (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"))):
        yield from (Path(root) / "lib64", Path(root) / "lib")
    yield from (Path(place) / "nvidia" / "cu13" / "lib" for place in sys.path if place)


@pytest.fixture(scope="module")
def nvrtc() -> Nvrtc:
    folder = next((folder for folder in nvrtc_folders() if list(folder.glob("libnvrtc.so*"))), None)
    if folder is None:
        message = "no libnvrtc: pip install -r tests/requirements.txt"
        if "nvcc" in os.environ.get("FRCNN_REQUIRE", "").replace(" ", "").split(","):
            pytest.fail(message)
        pytest.skip(message)
    return Nvrtc(folder)


@pytest.mark.parametrize("file", SOURCES)
def test_every_kernel_is_nvrtcs_language(nvrtc: Nvrtc, file: str) -> None:
    nvrtc.compile(source(file))


def test_a_mistake_is_noticed(nvrtc: Nvrtc) -> None:
    with pytest.raises(AssertionError, match=r"nms/box_iou\.cu\(\d+\): error.*no_such_thing"):
        nvrtc.compile(source("nms/box_iou.cu").replace("kWarps = 8", "kWarps = no_such_thing"))


def test_structures_are_laid_out_as_in_cpp(nvrtc: Nvrtc) -> None:
    places = {
        "decode_params": ("anchor_decode/anchor_decode.cu", "frcnn_fast::anchor_decode::DecodeParams<U>"),
        "anchors": ("anchor_decode/anchor_decode.cu", "frcnn_fast::Anchors<U>"),
        "decode_inputs": ("anchor_decode/anchor_decode.cu", "frcnn_fast::anchor_decode::DecodeInputs<U>"),
        "soft_rule": ("nms/soft_nms.cu", "frcnn_fast::nms::SoftRule<U>"),
        "segments": ("nms/nms.cu", "frcnn_fast::nms::Segments<U>"),
    }
    constants = {
        "nms/box_iou.cu": {"nms::kColumns": cupy_kernels.IOU_COLUMNS, "nms::kRows": cupy_kernels.IOU_ROWS},
        "anchor_decode/anchor_decode.cu": {"anchor_decode::kThreads": cupy_kernels.THREADS},
        "nms/nms_padded.cu": {"nms::kThreads": cupy_kernels.THREADS, "kWarp": cupy_kernels.WARP},
        "nms/soft_nms.cu": {"nms::kSoftThreads": cupy_kernels.SOFT_THREADS},
        "nms/nms.cu": {
            "nms::kWord": cupy_kernels.NMS_WORD, "nms::kWords": cupy_kernels.NMS_WORDS,
            "nms::kRows": cupy_kernels.NMS_ROWS, "nms::kKeptTiles": cupy_kernels.NMS_KEPT_TILES,
        },
    }  # fmt: skip
    for file in {*constants, *(place for place, _ in places.values())}:
        lines = [f"static_assert(frcnn_fast::{name} == {value});" for name, value in constants.get(file, {}).items()]
        expected: dict[str, list[int]] = {}
        for name, (place, struct) in places.items():
            for u, number in (("float", np.float32), ("double", np.float64)) if place == file else ():
                dtype = getattr(cupy_kernels, name)(number)
                lines.append(f"using {name}_{u} = {struct.replace('<U>', f'<{u}>')};")
                lines.append(f"static_assert(sizeof({name}_{u}) == {dtype.itemsize});")
                stores = [f"out[{i}] = (char*)&at->{field} - (char*)at;" for i, field in enumerate(dtype.names)]
                lines.append(f'extern "C" __global__ void of_{name}_{u}({name}_{u}* at, long* out)')
                lines.append(f"{{ {' '.join(stores)} }}")
                expected[f"of_{name}_{u}"] = [dtype.fields[field][1] for field in dtype.names]
        _, ptx = nvrtc.compile("\n".join([source(file), *lines]))
        for name, offsets in expected.items():
            assert stored(ptx, name) == dict(enumerate(offsets)), name


def stored(ptx: str, kernel: str) -> dict[int, int]:
    """The whole numbers that a kernel stores, by their place."""
    (body,) = re.findall(rf"\.entry {kernel}\(.*?\n{{(.*?)\n}}", ptx, re.DOTALL)
    constants = dict(re.findall(r"mov\.[bu]64\s+(%rd\d+), (\d+);", body))
    stores = re.findall(r"st\.global\.[bu]64\s+\[%rd\d+(?:\+(\d+))?\], (%rd\d+|\d+);", body)
    return {int(place or 0) // 8: int(constants.get(value, value)) for place, value in stores}


class Recorder(Launcher):
    """Launches nothing, and keeps what it was told. Every array of the calls counts as 0 afterwards."""

    launches: list[tuple[str, str, list[int], int, list[Any]]]

    def __init__(self, library: Any) -> None:
        super().__init__(library)
        self.launches = []

    def address(self, array: Any) -> int:
        return 0 if array is None else array.ctypes.data

    def launch(self, file: str, kernel: str, grid: Sequence[int], block: int, arguments: Sequence[Any]) -> None:
        self.launches.append((file, kernel, list(grid), block, list(arguments)))
        for a in arguments:
            if isinstance(a, np.ndarray) and a.dtype.names is None and a.flags.writeable:
                a[...] = 0


def launch_by(launcher: Launcher, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ops on CuPy's arrays, on a device that the binary has no code for, go to that launcher."""
    monkeypatch.setitem(sys.modules, "cupy", launcher.library)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(_backends, "why_no_cuda", lambda capability: f"no code for sm_{capability[0]}{capability[1]}")
    monkeypatch.setattr(cupy_kernels, "Launcher", lambda library: launcher)


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder(fake_cupy("75"))
    launch_by(recorder, monkeypatch)
    return recorder


def bytes_of(argument: Any) -> int:
    """How many of a kernel's parameters it takes: an array and None are pointers."""
    if argument is None or (isinstance(argument, np.ndarray) and argument.dtype.names is None):
        return 8
    return argument.itemsize


def parameters(ptx: str, name: str) -> list[int]:
    """The bytes of each parameter of a kernel."""
    (text,) = re.findall(rf"\.entry {re.escape(name)}\((.*?)\n\)", ptx, re.DOTALL)
    found = []
    for bits, size in re.findall(r"\.param (?:\.align \d+ )?\.[bu](\d+) [^,\[]+(?:\[(\d+)\])?", text):
        found.append(int(bits) // 8 * int(size or 1))
    return found


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("op", sorted(SERVED))
def test_kernels_exist_and_take_these_arguments(nvrtc: Nvrtc, recorder: Recorder, op: str, dtype: torch.dtype) -> None:
    sample = samples(dtype=dtype)[op]
    sample.function(*(fake_array(tensor.clone()) for tensor in sample.tensors), **sample.scalars)
    assert recorder.launches
    for file in {launch[0] for launch in recorder.launches}:
        kernels = {launch[1]: launch[4] for launch in recorder.launches if launch[0] == file}
        names, ptx = nvrtc.compile(source(file), list(kernels))
        for kernel, arguments in kernels.items():
            assert parameters(ptx, names[kernel]) == [bytes_of(a) for a in arguments], kernel


def test_what_is_not_served_says_what_is(recorder: Recorder) -> None:
    scores = fake_array(torch.zeros(1, 4))
    with pytest.raises(RuntimeError, match=r"top_n: no code for sm_75; without it, NVRTC serves .*nms_padded.*Triton"):
        ops.top_n(scores, 2)
    assert recorder.launches == []


def test_ranks_are_those_of_the_oracle() -> None:
    from frcnn_fast.reference import top_n

    g = np.random.default_rng(0)
    scores = g.integers(-3, 4, (3, 200)).astype(np.float32) / 2
    scores[g.random(scores.shape) < 0.1] = np.nan
    scores[g.random(scores.shape) < 0.1] = -0.0
    scores[0, :4] = [np.inf, -np.inf, np.inf, 0.0]
    competes = (g.random(scores.shape) < 0.8).astype(np.uint8)
    order = np.full(scores.shape, 7, np.int32)
    ranked = cupy_kernels._rank(np, scores, competes, order)
    masked = np.where(competes == 1, scores, np.nan)
    _, indices, counts = top_n(masked, scores.shape[1])
    assert np.array_equal(order, indices)
    assert np.array_equal(ranked, counts)


def calls() -> Iterator[Sample]:
    """Every op that is served, in the forms that its launch tells apart."""
    yield from (samples()[op] for op in sorted(SERVED))
    g = torch.Generator().manual_seed(1)
    # One box, a word and one more, and more than a chunk of boxes, with equal scores and one that is none.
    for B, N, kept in ((1, 1, 1), (3, 65, 20), (2, 2100, 1500)):
        box, scores = boxes(g, B, N, high=300), (torch.rand(B, N, generator=g) * 50).round() / 50
        scores[0, N // 2 :][1:2] = float("nan")
        ids, counts = torch.randint(0, 3, (B, N), generator=g), torch.tensor([N, N // 2, 0][:B])
        for more in ({}, {"class_ids": ids}, {"counts": counts, "legacy": True}):
            yield Sample(ops.nms_padded, [box, scores], {"iou_threshold": 0.4, "max_output": kept, **more})
    for method in ("linear", "hard"):
        yield Sample(
            ops.soft_nms, [boxes(g, 2, 40), torch.rand(2, 40, generator=g)], {"max_output": 9, "method": method}
        )
    cells = ops.generate_anchors((16, 32), (0.5, 1.0))
    grids = ops.AnchorGrids([(cells, (5, 6), 16), (cells * 2, (2, 3), (32, 30))], offset=0.5)
    deltas = torch.randn(2, grids.num_anchors, 4, generator=g)
    scales = torch.tensor([1.0, 2.0])
    for dtype, legacy in ((torch.float32, False), (torch.float16, True)):
        scalars = {"anchors": grids, "image_sizes": [(80, 90), (70, 60)], "image_scales": scales, "min_size": 4.0}
        yield Sample(ops.decode_clip, [deltas.to(dtype)], {**scalars, "legacy": legacy})


def called(sample: Sample) -> Any:
    """With arrays that stand for CuPy's."""
    scalars = {n: fake_array(v.clone()) if isinstance(v, torch.Tensor) else v for n, v in sample.scalars.items()}
    return sample.function(*(fake_array(tensor.clone()) for tensor in sample.tensors), **scalars)


def test_launches_do_what_the_op_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels run on the processor, thread by thread, launched as from CuPy; the answer is the op's to the bit."""
    recorder = Recorder(fake_cupy("75"))
    with monkeypatch.context() as patch:
        launch_by(recorder, patch)
        for sample in calls():
            called(sample)
    kernels = build({launch[:2] for launch in recorder.launches})
    launch_by(SimtLauncher(recorder.library, kernels), monkeypatch)
    for sample in calls():
        found, wanted = called(sample), sample()
        for array, tensor in zip(found, wanted) if isinstance(wanted, tuple) else [(found, wanted)]:
            assert np.array_equal(array, tensor.numpy()), (sample.function.__name__, sample.scalars)
