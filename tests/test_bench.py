"""The benchmark's own promises: it knows every op, times no wrong answer, and writes files that its report can read."""

from __future__ import annotations

import functools
import gzip
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from bench import (
    checks,
    depth,
    environment,
    kernels,
    measure,
    nsight,
    profile,
    report,
    resources,
    row_timing,
    run,
    schema,
)
from bench.case import Case, Competitor, Row
from bench.registry import rows
from bench.workloads import FIELDS, FPN, VGG, flat_boxes, scene, snake
from frcnn_fast import ops, reference
from frcnn_fast._extension import extension
from frcnn_fast.model import build_detector, preset, save_detector
from frcnn_fast.ops._backends import asked_for

QUICK = row_timing.Options(seconds=0.01, against=("",))

# Ops that no row times by themselves: shapes and constants, and steps that are timed inside others.
UNTIMED = {"generate_anchors", "grid_anchors", "sample_anchors", "use_backend"}


@pytest.fixture(autouse=True)
def _roofs_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "roofs", _roofs)


_roofs = functools.cache(environment.roofs)


def small_case(wrong: bool = False) -> Case:
    boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0], [1.0, 1.0, 3.0, 3.0]])

    def check(got: Any) -> None:
        assert not wrong, "not the reference's"
        assert torch.equal(got, ops.box_iou(boxes, boxes, backend="reference"))

    rivals = {"slow": Competitor(lambda: ops.box_iou(boxes, boxes)), "told": Competitor(lambda: None, note="told")}
    return Case(lambda: ops.box_iou(boxes, boxes), check, rivals, bytes=64, flops=48, facts={"of": 2})


def small_row(wrong: bool = False, op: str = "box_iou") -> Row:
    return Row(op, "2x2", lambda _: small_case(wrong), {"cpu": 1.0}, headline=True, axis=("boxes (box_iou)", 2))


def small_report(options: row_timing.Options = QUICK) -> dict[str, Any]:
    found = run.new_report("cpu")
    found["rows"].append(row_timing.measure_row(small_row(), "cpu", options))
    return found


def test_a_row_is_added_to_the_report_of_the_same_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "rows", lambda *_: [small_row(op="box_iou"), small_row(op="encode")])
    path = tmp_path / "report.json"
    arguments = ["--backend", "cpu", "--seconds", "0.01", "--json", str(path)]
    assert run.main([*arguments, "--add"]) == 2
    assert "--add: name the report" in capsys.readouterr().err
    old = small_report()
    old["rows"][0]["facts"] = {"of": 3}
    old["skipped"] = [{"op": op, "workload": "2x2", "why": "no time"} for op in ("encode", "decode")]
    schema.save(old, path)
    assert run.main([*arguments, "--add"]) == 0
    found = schema.load(path)
    assert [(row["op"], row["facts"]) for row in found["rows"]] == [("box_iou", {"of": 2}), ("encode", {"of": 2})]
    assert all(set(row["measured"]) == {"date", "commit", "changed"} for row in found["rows"])
    assert [each["op"] for each in found["skipped"]] == ["decode"]
    assert found["environment"] == old["environment"]

    schema.save({**found, "environment": {**found["environment"], "cpu": "another"}}, path)
    assert run.main([*arguments, "--add"]) == 2
    assert "the report's cpu is 'another'" in capsys.readouterr().err


def test_every_public_op_has_a_row() -> None:
    timed = {r.op for r in rows()}
    missing = {name for name in ops.__all__ if name.islower()} - timed - UNTIMED
    assert not missing, f"no row for {sorted(missing)}"


def test_rows_are_unique_and_cover_the_workloads() -> None:
    names = [r.name for r in rows()]
    assert len(names) == len(set(names))
    for wanted in ("b8 trained", "vgg 100 gt", "fpn 20 gt", "2000 rois", "6000 boxes identical", "1 boxes", "10 boxes"):
        assert any(wanted in name for name in names), wanted
    for field in FIELDS:
        assert rows("rpn_proposals", f"vgg test 6000->300 b1 {field}"), field


def test_shapes_are_those_of_the_detectors() -> None:
    assert sum(VGG.level_sizes) == 37 * 62 * 9 == len(VGG.anchors())
    assert sum(FPN.level_sizes) == 268569


@pytest.mark.parametrize("field", FIELDS)
def test_scenes_are_made_of_finite_numbers(field: str) -> None:
    s = scene(VGG, field)
    assert s.logits.isfinite().all()
    assert s.deltas.isfinite().all()


def test_the_snake_is_one_chain() -> None:
    boxes = snake(2000).numpy()
    overlaps = reference.box_iou(boxes, boxes) > 0.7
    assert overlaps.sum() == 2000 + 2 * 1999  # itself, and its two neighbours
    assert depth.rounds(boxes, 0.7) == 1000  # a round keeps one box and drops the next


def test_depth_counts_what_nms_needs() -> None:
    boxes, scores = flat_boxes("identical", 50)
    facts = depth.of_nms(boxes, scores, ops.nms(boxes, scores, 0.7), 0.7)
    assert facts == {"of": 50, "kept": 1, "depth": 1, "rounds": 1}
    assert depth.pairs(kept=3, depth=10) == 3 + 7


def test_a_row_is_measured_and_fits_the_schema(tmp_path: Path) -> None:
    found = small_report(row_timing.Options(seconds=0.01))
    schema.save(found, tmp_path / "r.json")
    entry = schema.load(tmp_path / "r.json")["rows"][0]
    whos = {t["who"] for t in entry["times"]}
    assert whos == {"frcnn_fast", "slow", "told"}
    assert entry["ratio"]["over"] == "slow"  # who was told the answer counts in no ratio
    assert {t["threads"] for t in entry["times"]} == {1, torch.get_num_threads()}


def test_a_cold_call_comes_after_other_work(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    convolution = torch.nn.functional.conv2d

    def noted(*args: Any, **kwargs: Any) -> torch.Tensor:
        order.append("work")
        return convolution(*args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "conv2d", noted)
    found = measure.cold_clock(seconds=0.002)(lambda: order.append("call"), 3)
    assert len(found) == 3
    assert [name for name, before in zip(order, ["call", *order], strict=False) if name != before] == [
        "work",
        "call",
    ] * 3
    assert order.count("call") == 3


def test_cold_calls_have_a_factor_of_their_own() -> None:
    quantiles = {"p10": 1.0, "p90": 1.0, "samples": 1, "repeats": 1}
    times = [
        {"who": who, "how": how, "threads": 1, "counts": who == "rival" and how == "call", "p50": p50, **quantiles}
        for who, how, p50 in (
            ("frcnn_fast", "call", 2.0), ("frcnn_fast", "call, cold", 4.0),
            ("rival", "call", 6.0), ("rival", "call, cold", 40.0),
            ("told more", "call", 1.0), ("told more", "call, cold", 1.0),
        )
    ]  # fmt: skip
    warm, cold = row_timing.ratio(times), row_timing.ratio(times, row_timing.COLD)
    assert warm
    assert cold
    assert (warm["p50"], cold["p50"]) == (3.0, 10.0)
    assert row_timing.ratio(times[:1], row_timing.COLD) is None


def test_a_wrong_answer_is_not_timed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(run, "rows", lambda *_: [small_row(wrong=True), small_row(op="other")])
    out = tmp_path / "r.json"
    assert run.main(["--backend", "cpu", "--seconds", "0.01", "--against", "", "--json", str(out)]) == 1
    found = schema.load(out)
    assert [entry["op"] for entry in found["rows"]] == ["other"]
    assert [entry["op"] for entry in found["wrong"]] == ["box_iou"]


def test_an_answer_that_changes_is_not_timed() -> None:
    results = iter(torch.arange(10.0))
    row = Row("x", "y", lambda _: Case(lambda: next(results), lambda got: None))
    with pytest.raises(AssertionError, match="its own first answer"):
        row_timing.measure_row(row, "cpu", QUICK)


@pytest.mark.usefixtures("gpu_clocks")
def test_an_answer_that_timing_spoils_has_no_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"spoilt": False}
    row = Row("x", "y", lambda _: Case(lambda: torch.ones(1) * (2 if answers["spoilt"] else 1), lambda got: None))
    entry = row_timing.measure_row(row, "cuda", QUICK)
    assert entry["facts"]["clock_ghz"] == [1.98, 1.98]

    def spoil(spin_cycles: int = 0) -> float:
        answers["spoilt"] = not spin_cycles  # after the last of the timing
        return 1.98

    monkeypatch.setattr(measure, "clock_after", spoil)
    with pytest.raises(AssertionError, match="its own first answer, before it was timed"):
        row_timing.measure_row(row, "cuda", QUICK)


def test_a_broken_competitor_is_named() -> None:
    def fails() -> None:
        raise RuntimeError("no such thing")

    row = Row("x", "y", lambda _: Case(lambda: torch.ones(1), lambda got: None, {"rival": Competitor(fails)}))
    entry = row_timing.measure_row(row, "cpu", row_timing.Options(seconds=0.01))
    assert entry["ratio"] is None
    assert entry["notes"] == {"rival": "missing: RuntimeError: no such thing"}


@pytest.mark.parametrize("damage", ["schema", "op", "p50", "extra", "twice", "threads"])
def test_the_schema_refuses(damage: str) -> None:
    found = small_report()
    entry = found["rows"][0]
    if damage == "schema":
        found["schema"] = 0
    elif damage == "op":
        del entry["op"]
    elif damage == "p50":
        entry["times"][0]["p50"] = 1e9
    elif damage == "extra":
        entry["times"][0]["speed"] = 1.0
    elif damage == "twice":
        found["rows"].append(entry)
    else:
        entry["times"][0]["threads"] = True
    with pytest.raises(ValueError, match="report"):
        schema.check_report(found)


def test_the_report_fills_the_readme_and_draws(tmp_path: Path) -> None:
    path, readme = tmp_path / "r.json", tmp_path / "README.md"
    schema.save(small_report(row_timing.Options(seconds=0.01)), path)
    readme.write_text("before\n<!-- bench:cpu -->\nold\n<!-- /bench:cpu -->\nafter\n")
    arguments = [str(path), "--page", str(readme)]
    assert report.main([*arguments, "--check"]) == 1
    assert report.main(arguments) == 0
    text = readme.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "| `box_iou` | 2x2 |" in text
    assert "| frcnn_fast | after other work | best competitor | times faster | after other work |" in text
    assert (tmp_path / "r-ops.png").stat().st_size > 1000
    assert (tmp_path / "r-roofline.png").stat().st_size > 1000
    assert report.main([*arguments, "--no-plots"]) == 0
    assert report.main([*arguments, "--check"]) == 0
    readme.write_text("no markers")
    with pytest.raises(ValueError, match="no markers"):
        report.main(arguments)


class FakeGraph:
    """Stands in for a captured graph where there is no GPU."""

    def replay(self) -> None:
        pass


@pytest.fixture
def gpu_clocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every clock of a GPU reads the processor's time."""
    monkeypatch.setattr(measure, "event_clock", lambda flush_bytes=0: measure.wall_clock)
    monkeypatch.setattr(measure, "call_and_synchronise", measure.wall_clock)
    monkeypatch.setattr(measure, "clock_after", lambda spin_cycles=0: 1.98)
    monkeypatch.setattr(measure, "capture", lambda call, calls=20: measure.Replay(FakeGraph(), call(), calls))


def triton_row(times_two: bool, headline: bool = True) -> Row:
    """A call that answers 2 on Triton's backend where it should answer 1."""

    def make(_: str) -> Case:
        def call() -> torch.Tensor:
            on_triton = asked_for(None) == "triton"
            return torch.ones(1) * (2 if on_triton and times_two else 1)

        rivals = {"rival": Competitor(lambda: torch.ones(1).sort())}
        return Case(call, lambda got: checks.equal(got, torch.ones(1), "one"), rivals, bytes=4)

    return Row("nms", "w", make, headline=headline)


@pytest.mark.usefixtures("gpu_clocks")
def test_triton_stands_beside_cuda_and_counts_in_no_ratio(tmp_path: Path) -> None:
    entry = row_timing.measure_row(triton_row(False), "cuda", row_timing.Options(seconds=0.01))
    assert {t["how"] for t in entry["times"] if t["who"] == "triton"} == {t["how"] for t in entry["times"]}
    assert {t["who"] for t in entry["times"] if t["counts"]} == {"rival"}
    assert entry["ratio"]["over"] == "rival"
    found = run.new_report("cpu")
    found["rows"].append(entry)
    with pytest.raises(ValueError, match=r"report.environment: lacks .*nvidia_smi"):
        schema.check_report(found)
    smi = {"driver_version": "1", "clocks.sm": "1980 MHz"}
    found["environment"] |= {"gpu": "a GPU", "compute_capability": "9.0", "cuda_runtime": "13.0", "nvidia_smi": smi}
    path, readme = tmp_path / "r.json", tmp_path / "README.md"
    schema.save(found, path)
    readme.write_text("<!-- bench:cuda -->\n<!-- /bench:cuda -->\n")
    assert report.main([str(path), "--page", str(readme)]) == 0
    assert "| Triton, GPU time |" in readme.read_text()
    assert (tmp_path / "r-ops.png").exists()


@pytest.mark.usefixtures("gpu_clocks")
def test_wrong_triton_kernels_are_named_and_not_timed() -> None:
    found = run.new_report("cpu")
    run._one(triton_row(True), "cuda", row_timing.Options(seconds=0.01), found)
    assert {t["who"] for t in found["rows"][0]["times"]} == {"frcnn_fast", "rival"}
    assert "triton: WRONG: AssertionError: output 0 differs from one" in found["wrong"][0]["why"]


@pytest.mark.usefixtures("gpu_clocks")
@pytest.mark.parametrize(("against", "timed"), [("all", False), ("triton", True), ("", False)])
def test_other_rows_time_triton_when_it_is_named(against: str, timed: bool) -> None:
    options = row_timing.Options(seconds=0.01, against=(against,))
    entry = row_timing.measure_row(triton_row(False, headline=False), "cuda", options)
    assert ("triton" in {t["who"] for t in entry["times"]}) is timed


def test_committed_results_fit_the_schema() -> None:
    for path in report.RESULTS.glob("*.json"):
        schema.load(path)


@pytest.mark.parametrize(
    ("us", "text"),
    [(0.5, "0.50 µs"), (9.94, "9.94 µs"), (12.34, "12.3 µs"), (999.4, "999 µs"), (1500.0, "1.50 ms"), (2e6, "2.00 s")],
)
def test_durations(us: float, text: str) -> None:
    assert report.duration(us) == text


def test_the_profile_writes_table_chart_and_trace(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(profile, "SAMPLES", 2)
    threads = torch.get_num_threads()
    save_detector(tmp_path / "model.safetensors", build_detector(["cat"], preset("small")))
    Image.new("RGB", (64, 48), "gray").save(tmp_path / "image.png")
    of_an_image = ["--checkpoint", str(tmp_path), "--image", str(tmp_path / "image.png")]
    try:
        for i, arguments in enumerate((["--shape", "fpn", "--train"], of_an_image)):
            out = tmp_path / str(i)
            assert profile.main([*arguments, "--device", "cpu", "--out", str(out)]) == 0
            stages = json.loads((out / "profile.json").read_text())["stages"]
            assert {"top-N", "decode", "NMS", "merge"} == stages["staged"].keys()
            assert stages["fused"]["fused"] > 0
            assert (out / "profile.png").stat().st_size > 1000
            with gzip.open(out / "profile-trace.json.gz") as trace:
                names = {event.get("name") for event in json.load(trace)["traceEvents"]}
            assert {"fused", "staged", "NMS"} <= names
    finally:
        torch.set_num_threads(threads)
    assert "fpn train 2000->2000 b1 trained" in capsys.readouterr().out


def test_kernel_names() -> None:
    name = "void frcnn_fast::(anonymous namespace)::decode<float, frcnn_fast::Box<float>, 4>(float const*, long)"
    assert kernels.function_name(name) == "decode"
    assert kernels.ours({name: 1.0, "at::native::copy": 2.0}) == {name: 1.0}


def test_the_profile_takes_any_row(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(profile, "SAMPLES", 2)
    assert profile.main(["--row", "top_n: 10 of 10", "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert "top_n: 10 of 10" in printed
    assert "frcnn_fast" in printed
    with pytest.raises(SystemExit):
        profile.main(["--row", "top_n: 11 of 10", "--device", "cpu"])
    assert "top_n: 10 of 10" in capsys.readouterr().err  # those there are


def test_nsight_digest() -> None:
    output = (
        "==PROF== Connected\n"
        '"ID","Kernel Name","Section Name","Metric Name","Metric Unit","Metric Value"\n'
        '"0","f","GPU Speed Of Light Throughput","Duration","us","3.10"\n'
        '"0","f","Occupancy","Achieved Occupancy","%","48.20"\n'
        '"0","f","Occupancy","","",""\n'
    )
    text = nsight.digest(output).splitlines()
    assert [line.split()[0] for line in text] == ["GPU", "Duration", "Occupancy", "Achieved"]
    assert nsight.digest("==ERROR== ERR_NVGPUCTRPERM") == ""


def test_floors_are_parsed() -> None:
    from bench import floors

    entry = {"name": "launch_us", "unit": "us", "p10": 1.0, "p50": 2.0, "p90": 3.0}
    found = floors.parse(json.dumps(entry))
    assert found == {"launch_us": {"unit": "us", "p10": 1.0, "p50": 2.0, "p90": 3.0}}
    assert "launch_us" in floors.lines(found)[0]


ENCODE = "_ZN10frcnn_fast49_GLOBAL__N__21017430_16_anchor_decode_cu_77519b1013encode_kernelIdLb1EEEvPKT_"
USAGE = f"""
Fatbin elf code:
================
arch = sm_90
code version = [1,8]
identifier = ../../kernels/anchor_decode/anchor_decode.cu

Resource usage:
 Common:
  GLOBAL:0
 Function {ENCODE}:
  REG:40 STACK:16 SHARED:1152 LOCAL:8 CONSTANT[2]:104 CONSTANT[0]:424 TEXTURE:0 SURFACE:0 SAMPLER:0

Fatbin ptx code:
================
arch = sm_100
"""
ELF = f"""
arch = sm_90
identifier = ../../kernels/anchor_decode/anchor_decode.cu
    c  6b9a8     9c  0  4                    CUDA_INFO       40    3       59 .nv.info.{ENCODE}
.nv.info
	<0x1>
	Attribute:	EIATTR_MAX_THREADS
	Value:	0x1 0x1 0x1
.nv.info.{ENCODE}
	Attribute:	EIATTR_MAXREG_COUNT
	Format:	EIFMT_HVAL
	Value:	0xff
	Attribute:	EIATTR_MAX_THREADS
	Format:	EIFMT_SVAL
	Value:	0x80 0x2 0x1
.nv.merc.nv.info.{ENCODE}
	Attribute:	EIATTR_MAX_THREADS
	Value:	0x1 0x1 0x1
"""


def test_resources_are_parsed() -> None:
    key = "sm_90", "anchor_decode.cu", ENCODE
    found = resources.parse_usage(USAGE.splitlines())
    assert list(found) == [key]
    wanted = {"REG": 40, "STACK": 16, "LOCAL": 8, "SHARED": 1152, "CONSTANT": 528}
    assert {name: found[key][name] for name in wanted} == wanted
    assert resources.parse_threads(ELF.splitlines()) == {key: 256}
    assert resources.function_name(ENCODE) == "encode_kernel"
    assert resources.function_name("_Z5plainPf") == "plain"


@pytest.mark.parametrize(
    ("architecture", "threads", "registers", "shared", "blocks"),
    [
        ("sm_90", 256, 32, 0, 8),  # 64 warps of 1,024 registers: all of them
        ("sm_90", 256, 33, 0, 6),  # 1,280 registers a warp, 12 warps a quarter: 48
        ("sm_90", 512, 128, 512, 1),  # 4,096 a warp, 16 warps
        ("sm_90", 1024, 64, 0, 1),  # 2,048 a warp, 32 warps
        ("sm_90", 96, 16, 0, 21),  # 3 warps of 64
        ("sm_90", 32, 16, 0, 32),  # the limit of blocks
        ("sm_90", 128, 16, 48 << 10, 4),  # 49 KB of 228
        ("sm_80", 128, 16, 48 << 10, 3),  # 49 KB of 164
        ("sm_100", 128, 16, 227 << 10, 1),
    ],
)
def test_occupancy(architecture: str, threads: int, registers: int, shared: int, blocks: int) -> None:
    form = resources.Form("f", "f.cu", architecture, threads, registers, shared, 0, 0)
    assert resources.blocks_at_once(form) == blocks
    room = resources.room_for_dynamic(form)
    assert resources.blocks_at_once(form, room) == blocks
    most = resources.SHARED[architecture][1]
    assert shared + room == most or resources.blocks_at_once(form, room + 1) < blocks


def test_resources_of_a_kernel_are_the_range_over_its_forms(tmp_path: Path) -> None:
    sizes = ((256, 32), (256, 64))
    forms = [resources.Form("f", "f.cu", "sm_90", threads, registers, 0, 8, 400, True) for threads, registers in sizes]
    forms.append(resources.Form("g", "f.cu", "sm_90", None, 20, 0, 0, 400))
    f, g = resources.entries(forms)
    assert (f["forms"], f["registers"], f["local"], f["blocks"]) == (2, [32, 64], 16, [4, 8])
    assert f["occupancy"] == [50, 100]
    assert f["room_for_dynamic"] == 27 * 1024 + 512  # eight blocks of 28.5 KB, of which the system keeps one
    assert g["occupancy"] is None
    text = "\n".join(resources.table([f, g]))
    assert text.splitlines()[0].startswith("sm_90")
    assert "at most 28,160 bytes" in text
    path, readme = tmp_path / "r.json", tmp_path / "README.md"
    schema.save(resources.new_report([f, g], Path(sys.executable)), path)
    readme.write_text("<!-- bench:resources -->\n<!-- /bench:resources -->\n")
    assert report.main([str(path), "--page", str(readme)]) == 0
    assert "| CUDA, sm_90 | 2 | 3 | 16 | 64 (`f`) | 50 % (`f`) |" in readme.read_text()
    f["blocks"] = [8, 4]
    with pytest.raises(ValueError, match=r"kernels\[0\].blocks"):
        schema.check_report(resources.new_report([f, g], Path(sys.executable)))


def test_resources_of_the_binary(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    try:
        resources.find_cuobjdump()
    except RuntimeError as error:
        pytest.skip(str(error))
    if not extension().build_info()["cuda"]:
        pytest.skip("the binary has no CUDA half")
    assert resources.main(["--json", str(tmp_path / "r.json")]) == 0
    found = schema.load(tmp_path / "r.json")["kernels"]
    sources = {path.name for path in environment.ROOT.glob("kernels/*/*.cu")}
    assert {entry["source"] for entry in found} == sources
    dynamic = {entry["kernel"] for entry in found if entry["room_for_dynamic"] is not None}
    assert dynamic == {
        "align_kernel",
        "detections_cluster_kernel",
        "nms_cluster_kernel",
        "pool_scatter_kernel",
        "pool_tile_kernel",
        "proposals_cluster_kernel",
        "select_kernel",
        "turn_kernel",
    }
    assert all(entry["occupancy"] is None or entry["occupancy"][0] > 0 for entry in found)
    assert "proposals_cluster_kernel" in capsys.readouterr().out
