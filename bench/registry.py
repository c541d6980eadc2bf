"""The rows of the benchmark: op, workload, what it moves, what must hold, and whom it is measured against."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from bench import competitors as rivals
from bench.workloads import FIELDS, FPN, VGG, Scene, Shape, flat_boxes, rois, scene
from frcnn_fast import ops

Call = Callable[[], Any]


@dataclass
class Case:
    """A prepared measurement. The first result of `ours` is compared with `check` before anything is timed."""

    ours: Call
    check: Callable[[Any], None]
    competitors: dict[str, Call] = field(default_factory=dict)
    bytes: int = 0
    flops: int = 0
    facts: dict[str, Any] = field(default_factory=dict)
    in_reference: bool = True  # whether `ours` under backend="reference" gives the comparison


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    op: str
    workload: str
    make: Callable[[str], Case]  # device -> case
    target: float | None = None  # at least that many times faster than the best competitor, on the CPU


ROWS: list[Row] = []


def row(op: str, workload: str, target: float | None = None) -> Callable[[Callable[[str], Case]], None]:
    """Registers a case builder."""

    def add(make: Callable[[str], Case]) -> None:
        ROWS.append(Row(op, workload, make, target))

    return add


def equal_to_reference(call: Callable[[str | None], Any]) -> Callable[[Any], None]:
    """Bitwise equality of every output with the NumPy reference."""

    def check(got: Any) -> None:
        wanted = call("reference")
        pairs = zip(got, wanted) if isinstance(got, tuple) else [(got, wanted)]
        for i, (g, w) in enumerate(pairs):
            if not torch.equal(torch.nan_to_num(g.float().cpu()), torch.nan_to_num(w.float().cpu())):
                raise AssertionError(f"output {i} differs from the reference")

    return check


def close_to(wanted: Call, tolerance: float) -> Callable[[Any], None]:
    """Sums of floats: within a bound of another computation."""

    def check(got: Any) -> None:
        torch.testing.assert_close(got.double(), wanted().double(), rtol=tolerance, atol=tolerance)

    return check


def on(device: str, s: Scene) -> Scene:
    """The scene on that device."""
    moved = {k: v.to(device) for k, v in vars(s).items() if isinstance(v, torch.Tensor)}
    return Scene(shape=s.shape, grids=s.shape.grids(device), **moved)


def _proposals(shape: Shape, fields: str, B: int, pre: int, post: int) -> Callable[[str], Case]:
    def make(device: str) -> Case:
        s = on(device, scene(shape, fields, B))
        A = s.anchors.shape[0]

        def run(backend: str | None = None) -> Any:
            return ops.rpn_proposals(
                s.logits, s.deltas, s.grids, s.image_sizes, pre_nms_top_n=pre, post_nms_top_n=post, min_size=1e-3,
                backend=backend,
            )  # fmt: skip

        against: dict[str, Call] = {}
        if rivals.TORCHVISION:
            against["torchvision"] = rivals.TorchvisionRpn(s, pre, post).proposals
        counts = run()[3].tolist()
        moved = 4 * B * A + 16 * B * min(pre * len(s.grids.level_sizes), A) + 24 * B * post
        return Case(run, equal_to_reference(run), against, bytes=moved, facts={"kept": counts})

    return make


for _b in (1, 8):
    for _field in FIELDS:
        _goal = {("vgg test", 1, "trained"): 300.0, ("vgg train", 1, "trained"): 80.0}
        if _field == "trained" or _b == 1:
            row(
                "rpn_proposals",
                f"vgg test 6000->300 b{_b} {_field}",
                300.0 if _b == 1 and _field == "trained" else None,
            )(_proposals(VGG, _field, _b, 6000, 300))
            row(
                "rpn_proposals",
                f"vgg train 12000->2000 b{_b} {_field}",
                80.0 if _b == 1 and _field == "trained" else None,
            )(_proposals(VGG, _field, _b, 12000, 2000))
    row("rpn_proposals", f"fpn test 1000 b{_b} trained", 20.0 if _b == 1 else None)(
        _proposals(FPN, "trained", _b, 1000, 1000)
    )
    row("rpn_proposals", f"fpn train 2000 b{_b} trained", 20.0 if _b == 1 else None)(
        _proposals(FPN, "trained", _b, 2000, 2000)
    )


def _nms(fields: str, N: int, classes: int = 0) -> Callable[[str], Case]:
    def make(device: str) -> Case:
        boxes, scores = (t.to(device) for t in flat_boxes(fields, N))
        ids = torch.randint(0, max(classes, 1), (N,), generator=torch.Generator().manual_seed(1)).to(device)

        def run(backend: str | None = None) -> Any:
            if classes:
                return ops.batched_nms(boxes, scores, ids, 0.7, backend=backend)
            return ops.nms(boxes, scores, 0.7, backend=backend)

        against: dict[str, Call] = {}
        if rivals.TORCHVISION:
            import torchvision.ops as tv

            against["torchvision"] = (
                (lambda: tv.batched_nms(boxes, scores, ids, 0.7)) if classes else (lambda: tv.nms(boxes, scores, 0.7))
            )
        return Case(run, equal_to_reference(run), against, bytes=20 * N, facts={"kept": len(run()), "of": N})

    return make


for _n in (1, 10, 100, 1000, 6000):
    row("nms", f"{_n} boxes trained", 40.0 if _n == 6000 else 1.0)(_nms("trained", _n))
    row("batched_nms", f"{_n} boxes 80 classes", 10.0 if _n == 6000 else 1.0)(_nms("trained", _n, 80))
for _field in ("random", "low_overlap", "tied", "chain", "identical"):
    row("nms", f"6000 boxes {_field}")(_nms(_field, 6000))


@row("box_iou", "20000x50", 2.0)
def _box_iou(device: str) -> Case:
    a, b = flat_boxes("low_overlap", 20000)[0].to(device), flat_boxes("tied", 50, 1)[0].to(device)

    def run(backend: str | None = None) -> Any:
        return ops.box_iou(a, b, backend=backend)

    against: dict[str, Call] = {}
    if rivals.TORCHVISION:
        import torchvision.ops as tv

        against["torchvision"] = lambda: tv.box_iou(a, b)
    return Case(run, equal_to_reference(run), against, bytes=4 * 20000 * 50, flops=13 * 20000 * 50)


def _targets(shape: Shape, G: int) -> Callable[[str], Case]:
    def make(device: str) -> Case:
        s = on(device, scene(shape, "random", 1, G))
        counts = torch.tensor([G], device=device)
        rng = torch.tensor([1, 2], device=device)

        def run(backend: str | None = None) -> Any:
            anchors = s.anchors if backend == "reference" else s.grids
            return ops.rpn_targets(anchors, s.gt_boxes, counts, rng, backend=backend)

        against: dict[str, Call] = {}
        if rivals.TORCHVISION:
            against["torchvision"] = rivals.TorchvisionRpn(s, 1000, 1000).assign_sample_encode
        return Case(run, equal_to_reference(run), against, facts={"sampled": run()[4].tolist()})

    return make


for _g in (20, 100):
    row("rpn_targets", f"vgg {_g} gt")(_targets(VGG, _g))
    row("rpn_targets", f"fpn {_g} gt", 30.0 if _g == 20 else None)(_targets(FPN, _g))


def _roi(op: str, K: int, backward: bool, channels_last: bool) -> Callable[[str], Case]:
    def make(device: str) -> Case:
        g = torch.Generator().manual_seed(0)
        layout = torch.channels_last if channels_last else torch.contiguous_format
        x = (
            torch.randn(1, 512, 37, 62, generator=g)
            .to(device)
            .contiguous(memory_format=layout)
            .requires_grad_(backward)
        )
        regions = rois(K).to(device)
        extra = {"sampling_ratio": 2} if op == "roi_align" else {}

        def make_call(function: Any) -> Call:
            if not backward:
                return lambda: function(x, regions, 7, spatial_scale=1 / 16, **extra)
            seed = torch.randn(K, 512, 7, 7, generator=torch.Generator().manual_seed(1)).to(device)

            def both() -> Any:
                out = function(x, regions, 7, spatial_scale=1 / 16, **extra)
                (found,) = torch.autograd.grad(out, x, seed)
                return found

            return both

        ours = make_call(getattr(ops, op))
        against: dict[str, Call] = {}
        if rivals.TORCHVISION:
            import torchvision.ops as tv

            against["torchvision"] = make_call(getattr(tv, op))
        small = regions[:8]

        def check(_: Any) -> None:  # the reference is slow: the first regions only
            got = getattr(ops, op)(x, small, 7, spatial_scale=1 / 16, **extra)
            wanted = getattr(ops, op)(x, small, 7, spatial_scale=1 / 16, **extra, backend="reference")
            torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
            if backward and against:
                torch.testing.assert_close(ours(), against["torchvision"](), rtol=1e-4, atol=1e-4)

        moved = 4 * (512 * 37 * 62 + K * 512 * 49) * (2 if backward else 1)
        return Case(ours, check, against, bytes=moved)

    return make


for _op, _forward_goal, _both_goal in (("roi_pool", 8.0, 4.0), ("roi_align", 4.0, 4.0)):
    for _last in (False, True):
        _layout = " channels_last" if _last else ""
        row(_op, f"300 rois forward{_layout}", _forward_goal)(_roi(_op, 300, False, _last))
        row(_op, f"300 rois forward+backward{_layout}", _both_goal)(_roi(_op, 300, True, _last))
    row(_op, "2000 rois forward")(_roi(_op, 2000, False, False))


def _detections(classes: int) -> Callable[[str], Case]:
    def make(device: str) -> Case:
        g = torch.Generator().manual_seed(0)
        N, K = 300, classes
        proposals = rois(N)[:, 1:].to(device)
        logits = torch.randn(N, K, generator=g) * 2
        logits[:, 0] += 3
        logits = logits.to(device)
        deltas = (torch.randn(N, 4 * K, generator=g) * 0.5).to(device)
        counts, sizes = torch.tensor([N], device=device), torch.tensor([[600.0, 1000.0]], device=device)

        def run(backend: str | None = None) -> Any:
            return ops.detections(
                logits[None], deltas[None], proposals[None], counts, sizes, score_threshold=0.05, iou_threshold=0.5,
                min_size=1e-2, backend=backend,
            )  # fmt: skip

        against: dict[str, Call] = {}
        if rivals.TORCHVISION:
            against["torchvision"] = rivals.postprocess_detections(logits, deltas, proposals, (600, 1000), 0.05, 0.5)
        return Case(run, equal_to_reference(run), against, facts={"detections": run()[3].tolist()})

    return make


for _classes in (21, 91):
    row("detections", f"300 rois {_classes} classes", 10.0)(_detections(_classes))


def _top_n(N: int, n: int) -> Callable[[str], Case]:
    def make(device: str) -> Case:
        scores = torch.randn(1, N, generator=torch.Generator().manual_seed(0)).to(device)

        def run(backend: str | None = None) -> Any:
            return ops.top_n(scores, n, backend=backend)

        against: dict[str, Call] = {
            "torch.topk": lambda: torch.topk(scores, n, dim=1, sorted=True),
            "torch.sort": lambda: torch.sort(scores, dim=1, descending=True, stable=True),
        }
        return Case(run, equal_to_reference(run), against, bytes=4 * N + 12 * n)

    return make


for _size, _best in ((20646, 300), (20646, 6000), (201600, 1000), (201600, 2000)):
    row("top_n", f"{_best} of {_size}", 1.0)(_top_n(_size, _best))
