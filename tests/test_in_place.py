"""The proposal side in place: the stopwatch, the stages of a detector, the report."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from bench import in_place, in_place_table, schema, watch
from bench.competitors import torchvision_missing
from bench.watch import Watch, replaced
from frcnn_fast.model import build_detector, preset


@pytest.fixture
def ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that is a second later at every look."""
    clock = itertools.count()
    monkeypatch.setattr(watch.time, "perf_counter", lambda: float(next(clock)))


@pytest.mark.usefixtures("ticks")
class TestWatch:
    def test_an_inner_stage_is_not_counted_twice(self) -> None:
        w = Watch()
        with w("outer"), w("inner"):
            pass
        assert w.seconds() == {"outer": 2.0, "inner": 1.0}
        assert w.seconds() == {}

    def test_what_lies_between_two_stages_is_nobodys(self) -> None:
        w = Watch()
        for _ in range(2):
            with w("a"):
                pass
        assert w.seconds() == {"a": 2.0}

    def test_a_stage_that_runs_is_refused(self) -> None:
        w = Watch()
        w.enter("a")
        with pytest.raises(RuntimeError, match="stage 'a' still runs"):
            w.seconds()

    def test_a_stage_ends_with_an_error(self) -> None:
        w = Watch()
        with pytest.raises(ZeroDivisionError), w("a"):
            _ = 1 / 0
        assert w.seconds() == {"a": 1.0}

    def test_the_backward_pass_belongs_to_the_stage(self) -> None:
        w, order = Watch(), []
        x = torch.ones(3, requires_grad=True)

        class Noted(torch.autograd.Function):
            @staticmethod
            def forward(ctx: object, x: Tensor) -> Tensor:
                return x * 2

            @staticmethod
            def backward(ctx: object, grad: Tensor) -> Tensor:
                order.append(w._stack[-1])
                return grad * 2

        inner = w.around(lambda maps, unused: {"sum": Noted.apply(maps[0]).sum()}, "pool")
        with w("all"):
            Noted.apply(inner([Noted.apply(x)], None)["sum"]).backward()
        assert order == ["all", "pool", "all"]
        assert w.seconds()["pool"] == 2.0  # a second each way
        assert torch.equal(x.grad, torch.full((3,), 8.0))

    def test_without_a_gradient_nothing_is_marked(self) -> None:
        x = torch.ones(3, requires_grad=True)
        with torch.no_grad():
            assert Watch().mark(x, "a") is x
        assert Watch().mark("text", None) == "text"


def test_attributes_come_back() -> None:
    class Subject(nn.Module):
        def forward(self) -> int:
            return 1

    subject = Subject()

    def seen() -> None:
        with replaced((subject, "forward", lambda: 2), (in_place, "MODES", ())):
            assert subject() == 2
            assert not in_place.MODES
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        seen()
    assert subject() == 1
    assert "forward" not in vars(subject)
    assert in_place.MODES == ("evaluation", "training")


def small() -> in_place.Contestant:
    torch.manual_seed(0)
    config = preset("small", proposals_train=(200, 50), proposals_test=(100, 20))
    names = [str(number) for number in range(1, in_place.NUM_CLASSES)]
    return in_place.Contestant(build_detector(names, config), in_place.watched_ours)


@pytest.mark.parametrize(
    ("mode", "stages"), [("evaluation", "rpn pooling detections"), ("training", "rpn targets pooling")]
)
def test_the_stages_of_a_call(mode: str, stages: str) -> None:
    one, batch = small(), in_place.scene((96, 128))
    found = in_place.once(one, mode, batch)
    assert set(found) == {*stages.split(), in_place.NETWORK}
    assert all(seconds > 0 for seconds in found.values())
    assert "propose" not in vars(one.detector)


def test_watching_changes_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    batch, gradients = in_place.scene((96, 128)), []
    for watched in (True, False):
        one = small()
        monkeypatch.setattr(one.detector, "zero_grad", lambda: None)
        if not watched:
            monkeypatch.setattr(Watch, "mark", lambda self, tree, entered: tree)
        in_place.once(one, "training", batch)
        gradients.append([p.grad for p in one.detector.parameters() if p.grad is not None])
    assert len(gradients[0]) > 4
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_the_report_and_its_table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    subject = in_place.Subject((96, 128), lambda: {in_place.THEIRS: small(), in_place.OURS: small()})
    monkeypatch.setitem(in_place.SUBJECTS, "small", subject)
    call = in_place.measured("small", "evaluation", 2)
    assert call["times"][in_place.OURS]["call"]["samples"] == 2  # the first call of everything does not count
    environment = {
        "date": "2026-01-01", "commit": "0123456789ab", "changed": False, "cpu": "a processor", "threads": 2,
        "torch": "2.14.1+cpu", "torchvision": "0.29.1", "missing": [],
    }  # fmt: skip
    report = {"schema": 1, "benchmark": "in-place", "environment": environment, "calls": [call]}
    schema.save(report, tmp_path / "in-place.json")
    lines = in_place_table.body("in-place.json", schema.load(tmp_path / "in-place.json"))
    assert "| small, evaluation: frcnn_fast | " in lines[-1]
    assert f" | {call['ratio']['frcnn_fast']:.1f} | " in lines[-1]
    del call["times"][in_place.OURS]["call"]["p50"]
    with pytest.raises(ValueError, match="lacks p50"):
        schema.check_report(report)


def test_what_is_wrong_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert in_place.main(["R51"]) == 2
    assert "call: got 'R51', expected some of R50-FPN evaluation" in capsys.readouterr().err
    assert in_place.main(["--rounds", "0"]) == 2
    assert "--rounds: got 0" in capsys.readouterr().err


@pytest.mark.skipif(bool(torchvision_missing), reason=torchvision_missing or "torchvision is there")
@pytest.mark.parametrize("mode", in_place.MODES)
def test_torchvision_has_the_same_stages(mode: str) -> None:
    from bench.competitors.torchvision_detector import on_vgg16

    config = preset("vgg16", proposals_train=(200, 50), proposals_test=(100, 20))
    made = in_place._both(small().detector, on_vgg16(in_place.NUM_CLASSES, config))
    found = {who: in_place.once(one, mode, in_place.scene((96, 128))) for who, one in made.items()}
    assert found[in_place.THEIRS].keys() == found[in_place.PATCHED].keys() == found[in_place.OURS].keys()
