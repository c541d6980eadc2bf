"""The proposal side in place: how long it takes inside whole detectors, where every call meets cold caches.

    python -m bench.in_place --json bench/results/in-place-cpu.json
    python -m bench.in_place "R50-FPN evaluation" --rounds 3

The proposal side is what is neither a convolution nor a fully connected layer: the RPN without its head (anchors,
decoding, proposals; in training its targets and loss), the choice of regions for the head, pooling, and the last step
to detections; in training their backward passes, too. Everything else is "network". One image, random weights, in
turns: torchvision's detector as it is, the same one under `patch_torchvision()`, and ours with the same settings (R50-
FPN: the same weights; VGG-16: boxes without a size are left out before the best are chosen, as in the paper, where
torchvision knows the other order alone). A training call is a forward and a backward pass; weights stay what they are.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bench import environment, schema
from bench.competitors import torchvision_missing
from bench.measure import summary
from bench.watch import Watch, replaced
from frcnn_fast import ops, patch_torchvision
from frcnn_fast.model import build_detector, from_checkpoint, preset

STAGES = ("rpn", "targets", "pooling", "detections")  # the proposal side
NETWORK = "network"
OURS, THEIRS, PATCHED = "frcnn_fast", "torchvision", "torchvision, patched"
NUM_CLASSES = 91

Context = Callable[[], contextlib.AbstractContextManager[Any]]


class Contestant(NamedTuple):
    """A detector, how its stages are watched, and what it is called in."""

    detector: nn.Module
    watched: Callable[[Any, Watch], contextlib.AbstractContextManager[None]]
    inside: Context = contextlib.nullcontext


class Subject(NamedTuple):
    """A model, the size of its image, and who runs it."""

    size: tuple[int, int]
    build: Callable[[], dict[str, Contestant]]


def watched_ours(detector: Any, watch: Watch) -> contextlib.AbstractContextManager[None]:
    head = detector.roi_head
    return replaced(
        (detector, "propose", watch.around(detector.propose, "rpn")),
        (detector, "rpn_loss", watch.around(detector.rpn_loss, "rpn")),
        (ops, "sample_rois", watch.around(ops.sample_rois, "targets")),
        (head, "pool", watch.around(head.pool, "pooling")),
        (detector, "finish", watch.around(detector.finish, "detections")),
    )


def watched_theirs(detector: Any, watch: Watch) -> contextlib.AbstractContextManager[None]:
    """Methods are looked up at every call: a patch may change them."""
    rpn, roi_heads = detector.model.rpn, detector.model.roi_heads

    def call(subject: Any, name: str) -> Callable[..., Any]:
        return lambda *args, **kwargs: getattr(type(subject), name)(subject, *args, **kwargs)

    def whole(*args: Any, **kwargs: Any) -> Any:
        with watch("rpn"):
            boxes, losses = call(rpn, "forward")(*args, **kwargs)
        return boxes, watch.mark(losses, "rpn")

    def head(*args: Any) -> Any:
        with watch(NETWORK):
            maps = call(rpn.head, "forward")(*args)
        return watch.mark(maps, None)

    return replaced(
        (rpn, "forward", whole),
        (rpn.head, "forward", head),
        *(
            (subject, name, watch.around(call(subject, name), stage))
            for subject, name, stage in (
                (roi_heads, "select_training_samples", "targets"),
                (roi_heads.box_roi_pool, "forward", "pooling"),
                (roi_heads, "postprocess_detections", "detections"),
            )
        ),
    )


def _both(ours: nn.Module, theirs: nn.Module) -> dict[str, Contestant]:
    return {
        THEIRS: Contestant(theirs, watched_theirs),
        PATCHED: Contestant(theirs, watched_theirs, patch_torchvision),
        OURS: Contestant(ours, watched_ours),
    }


def _resnet() -> dict[str, Contestant]:
    from bench.competitors.torchvision_detector import on_resnet50_fpn

    theirs = on_resnet50_fpn(NUM_CLASSES, frozen_stages=2)
    return _both(from_checkpoint(theirs.model.state_dict(), class_names=_names()), theirs)


def _names() -> list[str]:
    return [str(number) for number in range(1, NUM_CLASSES)]


def _squeezenet() -> dict[str, Contestant]:
    import torchvision

    from bench.competitors.torchvision_detector import on_squeezenet

    config, weights = preset("squeezenet1_0"), torchvision.models.squeezenet1_0(weights=None).state_dict()
    return _both(build_detector(_names(), config), on_squeezenet(_names(), config, weights))


def _vgg() -> dict[str, Contestant]:
    from bench.competitors.torchvision_detector import on_vgg16

    config = preset("vgg16")
    return _both(build_detector(_names(), config), on_vgg16(NUM_CLASSES, config))


SUBJECTS = {
    "R50-FPN": Subject((480, 640), _resnet),
    "VGG-16": Subject((600, 800), _vgg),
    "SqueezeNet": Subject((320, 432), _squeezenet),
}
MODES = ("evaluation", "training")


def scene(size: tuple[int, int], objects: int = 8) -> dict[str, Tensor]:
    """An image of noise in blocks, and boxes in it."""
    generator = torch.Generator().manual_seed(0)
    height, width = size
    coarse = torch.randn(1, 3, height // 16, width // 16, generator=generator)
    images = nn.functional.interpolate(coarse, size=size, mode="bilinear")
    images += torch.randn(images.shape, generator=generator) / 2
    corners = torch.rand(1, objects, 2, generator=generator) * torch.tensor([width * 0.6, height * 0.6])
    sides = (0.1 + 0.3 * torch.rand(1, objects, 2, generator=generator)) * min(size)
    return {
        "images": images,
        "image_sizes": torch.tensor([size]),
        "gt_boxes": torch.cat([corners, corners + sides], -1),
        "gt_labels": torch.randint(1, NUM_CLASSES, (1, objects), generator=generator),
        "gt_counts": torch.tensor([objects]),
    }


def once(one: Contestant, mode: str, batch: Mapping[str, Tensor]) -> dict[str, float]:
    """Seconds of each stage of a call."""
    watch, detector = Watch(), one.detector.train(mode == "training")
    with one.inside(), one.watched(detector, watch), watch(NETWORK):
        if mode == "training":
            torch.stack(list(detector(**batch).values())).sum().backward()
        else:
            with torch.inference_mode():
                detector(batch["images"], batch["image_sizes"])
    detector.zero_grad()
    return watch.seconds()


def measured(model: str, mode: str, rounds: int) -> dict[str, Any]:
    """One of the report's calls."""
    torch.manual_seed(0)
    subject = SUBJECTS[model]
    contestants, batch = subject.build(), scene(subject.size)
    taken: dict[str, list[dict[str, float]]] = {who: [] for who in contestants}
    for turn in range(rounds + 1):
        for who, one in contestants.items():
            found = once(one, mode, batch)
            taken[who] += [found] if turn else []  # the first call of everything is slower
        print(f"{model} {mode}: round {turn}/{rounds}", file=sys.stderr)
    times = {who: _times(values) for who, values in taken.items()}
    theirs = times[THEIRS]["proposal side"]["p50"]
    return {
        "model": model,
        "mode": mode,
        "size": list(subject.size),
        "times": times,
        "ratio": {who: theirs / of["proposal side"]["p50"] for who, of in times.items() if who != THEIRS},
        "share": {who: of["proposal side"]["p50"] / of["call"]["p50"] for who, of in times.items()},
    }


def _times(calls: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Quantiles in microseconds of each stage, of the proposal side and of the whole call."""
    known = [stage for stage in (*STAGES, NETWORK) if any(stage in call for call in calls)]
    columns = {stage: [call.get(stage, 0.0) for call in calls] for stage in known}
    columns["proposal side"] = [sum(call.get(stage, 0.0) for stage in STAGES) for call in calls]
    columns["call"] = [sum(call.values()) for call in calls]
    return {name: summary(values, scale=1e6) for name, values in columns.items()}


def lines(calls: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The report's calls as a table."""
    columns = (*STAGES, "proposal side", "call")
    yield f"{'':44}" + "".join(f"{column:>16}" for column in (*columns, "times faster"))
    for row in calls:
        for who, times in row["times"].items():
            cells = [f"{times[c]['p50'] / 1e3:.2f} ms" if c in times else "" for c in columns]
            ratio = f"{row['ratio'][who]:.2f}" if who in row["ratio"] else ""
            yield f"{row['model'] + ' ' + row['mode'] + ', ' + who:44}" + "".join(f"{c:>16}" for c in (*cells, ratio))


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 2 where something is missing."""
    every = [f"{model} {mode}" for model in SUBJECTS for mode in MODES]
    parser = argparse.ArgumentParser(
        prog="python -m bench.in_place", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("calls", nargs="*", metavar="call", help=f"of {', '.join(every)} (default: all)")
    parser.add_argument("--rounds", type=int, default=5, help="calls of each (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write the report here")
    args = parser.parse_args(argv)
    try:
        if unknown := [name for name in args.calls if name not in every]:
            raise ValueError(f"call: got {unknown[0]!r}, expected some of {', '.join(every)}")
        if args.rounds < 1:
            raise ValueError(f"--rounds: got {args.rounds}, expected at least 1")
        if torchvision_missing:
            raise ValueError(f"{torchvision_missing}; `make bench-env` installs it")
    except ValueError as error:
        print(f"bench.in_place: {error}", file=sys.stderr)
        return 2
    about = {"schema": schema.VERSION, "benchmark": "in-place", "environment": environment.describe("cpu")}
    calls = [measured(model, mode, args.rounds) for model, mode in (n.rsplit(" ", 1) for n in args.calls or every)]
    print(*lines(calls), sep="\n")
    if args.json:
        schema.save({**about, "calls": calls}, args.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
