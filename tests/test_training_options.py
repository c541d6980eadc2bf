"""Ways to train: evaluation on the way, averages, precisions, parts of a batch, rates by layer."""

import copy
import os
import sys
import types
from typing import Any

import pytest
import torch
from torch import nn

from frcnn_fast import train
from frcnn_fast.io import load_checkpoint, read_jsonl
from frcnn_fast.model import build_detector, preset
from frcnn_fast.model.losses import ROI_LOSSES, RPN_LOSSES
from frcnn_fast.training import Training, TrainOptions, make_optimizer, recipe, session, train_step
from frcnn_fast.training.batches import TrainingBatches
from frcnn_fast.training.ema import Averaged
from frcnn_fast.training.optim import set_rate
from frcnn_fast.training.state import Progress
from frcnn_fast.training.step import PRECISIONS
from tests.small_data import OneClass, digits

CONFIG = preset("small", rpn_channels=8, head_channels=16, pool_size=3)


def quick(**changes):
    return recipe("small", **{"iterations": 6, "batch_size": 2, "log_every": 2, "warmup": 2, **changes})


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def training(**changes):
    torch.manual_seed(0)
    detector = build_detector(["digit"], CONFIG)
    return Training(detector, quick(**changes), torch.device("cpu"))


def a_batch(options):
    return next(iter(TrainingBatches(OneClass(digits("train", 20)), CONFIG, options)))


class TestEvaluation:
    def scored(self, monkeypatch, scores):
        """Evaluations that give these scores, one after the other."""
        left = iter(scores)
        monkeypatch.setattr(session, "_scores", lambda result: {"map07": 1.0, "map_area": next(left, 0.0)})

    def run(self, out, **changes):
        test = OneClass(digits("test", 2))
        return train.train(
            OneClass(digits("train", 20)), out=out, config=CONFIG, options=quick(**changes), test=test, drawings=0,
            progress=False,
        )  # fmt: skip

    def test_the_best_weights_are_kept(self, tmp_path, monkeypatch):
        self.scored(monkeypatch, [0.1, 0.4, 0.3, 0.4])
        result = self.run(tmp_path, iterations=7, eval_every=2)
        records = read_jsonl(tmp_path / "metrics.jsonl")
        assert [(r["evaluated"], r["map_area"]) for r in records if "evaluated" in r] == [
            (2, 0.1), (4, 0.4), (6, 0.3), (7, 0.4),
        ]  # fmt: skip
        best, last = load_checkpoint(tmp_path), load_checkpoint(tmp_path / "model.safetensors")
        assert (best.extra["iteration"], last.extra["iteration"]) == (4, 7)
        # The result has them, too.
        tensors = result.detector.state_dict()
        assert all(torch.equal(tensor, tensors[name]) for name, tensor in best.tensors.items())
        assert not torch.equal(last.tensors["rpn.cls_logits.weight"], tensors["rpn.cls_logits.weight"])
        assert "evaluation after 4 iterations" in (tmp_path / "train.log").read_text()

    def test_it_ends_where_nothing_gets_better(self, tmp_path, monkeypatch):
        self.scored(monkeypatch, [0.1, 0.4, 0.3, 0.4, 0.9])
        result = self.run(tmp_path, iterations=40, eval_every=1, patience=2)
        assert (result.iterations, result.stopped_by) == (4, None)
        data, test = OneClass(digits("train", 20)), OneClass(digits("test", 2))
        # Who resumes it wants to see whether more time helps.
        assert train.train(data, resume=tmp_path, test=test, progress=False).iterations == 7

    def test_scores(self):
        progress = Progress()
        for done, score in enumerate([float("nan"), 0.5, 0.5, None, 0.6, 0.1], start=1):
            progress.add(score, done)
        assert progress == Progress(best=0.6, best_at=5, evaluated=6, since_best=1)

    def test_a_run_killed_between_checkpoint_and_evaluation(self, tmp_path, monkeypatch):
        """It makes up for the evaluation."""

        class Killed(BaseException):
            pass

        def killed(*args, **kwargs):
            raise Killed

        with monkeypatch.context() as patch:
            patch.setattr(session, "evaluate", killed)
            with pytest.raises(Killed):
                self.run(tmp_path / "run", eval_every=3)
        whole = self.run(tmp_path / "whole", eval_every=3)
        test = OneClass(digits("test", 2))
        train.train(OneClass(digits("train", 20)), resume=tmp_path / "run", test=test, progress=False)

        def evaluations(folder):
            return [record for record in read_jsonl(folder / "metrics.jsonl") if "evaluated" in record]

        assert [record["evaluated"] for record in evaluations(whole.out)] == [3, 6]
        assert evaluations(tmp_path / "run") == evaluations(whole.out)


class TestTensorBoard:
    def test_it_gets_the_records(self, tmp_path, monkeypatch):
        """Also of a run that goes on: what came after the checkpoint is taken back."""
        written = []

        class Writer:
            def __init__(self, folder, purge_step):
                written.append((folder, purge_step))

            def add_scalar(self, name, value, iteration):
                written.append((name, iteration))

            def close(self):
                written.append("closed")

        board: Any = types.ModuleType("torch.utils.tensorboard")
        board.SummaryWriter = Writer
        monkeypatch.setitem(sys.modules, "tensorboard", types.ModuleType("tensorboard"))
        monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", board)
        options = quick(iterations=2, tensorboard=True)
        train.train(OneClass(digits("train", 20)), out=tmp_path, config=CONFIG, options=options, progress=False)
        names = ["loss", *RPN_LOSSES, *ROI_LOSSES, "lr", "images_per_second"]
        assert written == [(str(tmp_path / "tensorboard"), 1), *((name, 2) for name in names), "closed"]
        train.train(OneClass(digits("train", 20)), resume=tmp_path, progress=False)
        assert written[-2:] == [(str(tmp_path / "tensorboard"), 3), "closed"]

    def test_it_is_named_where_it_is_missing(self, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "tensorboard", None)
        options = quick(iterations=2, tensorboard=True)
        with pytest.raises(ImportError, match=r"pip install 'frcnn_fast\[tensorboard\]'"):
            train.train(OneClass(digits("train", 20)), out=tmp_path, config=CONFIG, options=options, progress=False)


class TestAverage:
    def test_it_follows_the_weights(self):
        one = training()
        average = Averaged(one.detector, 0.9)
        name = "rpn.cls_logits.weight"
        begin = one.detector.state_dict()[name].clone()
        with torch.no_grad():
            one.detector.get_parameter(name).add_(1.0)
        average.update(one.detector, 1)  # keeps 2 / 11
        assert torch.allclose(average.detector.state_dict()[name], begin + 9 / 11)
        with torch.no_grad():
            one.detector.get_parameter(name).sub_(1.0)
        average.update(one.detector, 10_000)  # keeps 0.9
        assert torch.allclose(average.detector.state_dict()[name], begin + 0.9 * 9 / 11)
        assert not average.detector.training
        assert not any(parameter.requires_grad for parameter in average.detector.parameters())

    def test_it_is_what_a_run_gives_and_goes_on(self, tmp_path):
        settings = {"iterations": 4, "ema": 0.9, "checkpoint_every": 2, "keep": 3}
        data = OneClass(digits("train", 20))
        whole = train.train(data, out=tmp_path, config=CONFIG, options=quick(**settings), progress=False)
        weights = load_checkpoint(tmp_path).tensors
        state = load_state(tmp_path / "checkpoints/000000004.safetensors")
        assert all(torch.equal(weights[name], tensor) for name, tensor in state.part("average").items())
        assert not torch.equal(weights["rpn.cls_logits.weight"], state.part("model")["rpn.cls_logits.weight"])
        again = train.train(data, resume=tmp_path / "checkpoints/000000002.safetensors", progress=False)
        assert again.out == whole.out
        assert all(torch.equal(weights[name], tensor) for name, tensor in load_checkpoint(tmp_path).tensors.items())


def load_state(path):
    from frcnn_fast.training.checkpoints import read_state

    return read_state(path)


class TestStep:
    @pytest.mark.parametrize("precision", PRECISIONS)
    def test_precisions(self, precision):
        """Losses and weights stay close to those of float32."""
        losses = []
        for kind in ("float32", precision):
            one = training(precision=kind, optimizer="sgd", lr=0.01)
            batch = a_batch(one.options)
            one.update(batch)
            losses.append(one.update(batch))
            assert all(p.dtype == torch.float32 for p in one.detector.parameters())
        for name, loss in losses[1].items():
            assert loss.dtype == torch.float32
            assert float(loss) == pytest.approx(float(losses[0][name]), rel=0.05, abs=0.02), name

    def test_half_precision_is_scaled_and_goes_on(self):
        one = training(precision="float16")
        one.update(a_batch(one.options))
        state = one.state()
        assert state.facts["scaler"]["scale"] > 1
        two = training(precision="float16")
        two.restore(state)
        assert two.state().facts == state.facts

    def test_parts_are_the_whole(self):
        """Where nothing is drawn: a loss that is a mean over the images."""

        class Mean(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv = nn.Conv2d(3, 1, 3)

            def forward(self, images, *args, losses=("loss",)):
                return {"loss": self.conv(images).square().mean()}

        torch.manual_seed(0)
        whole, batch = Mean(), a_batch(quick(batch_size=5))
        parts, found = copy.deepcopy(whole), []
        for module, count in ((whole, 1), (parts, 3)):
            optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
            found.append(train_step(module, batch, optimizer, parts=count)["loss"])
        assert float(found[0]) == pytest.approx(float(found[1]), rel=1e-6)
        assert torch.allclose(whole.conv.weight, parts.conv.weight, atol=1e-6)

    def test_layers_have_rates_of_their_own(self):
        one = training(backbone_lr=0.1)
        optimizer = make_optimizer(one.detector, one.options)
        set_rate(optimizer, 0.5)
        rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
        for name, parameter in one.detector.named_parameters():
            assert rates[id(parameter)] == (0.05 if name.startswith("backbone.") else 0.5)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"accumulate": 3, "batch_size": 2}, "accumulate: got 3, expected at most batch_size, 2"),
            ({"ema": 1.0}, "ema: got 1.0, expected at least 0 and less than 1"),
            ({"backbone_lr": 0.0}, "backbone_lr: got 0.0, expected a positive factor"),
            ({"precision": "half"}, "precision: got 'half', expected 'float32' or 'bfloat16' or 'float16'"),
            ({"best_by": "loss"}, "best_by: got 'loss'"),
            ({"patience": -1}, "patience: got -1, expected at least 0"),
        ],
    )
    def test_options_out_of_range(self, changes, message):
        with pytest.raises(ValueError, match=message):
            TrainOptions(**changes)


@pytest.mark.skipif(not os.environ.get("FRCNN_LONG"), reason="FRCNN_LONG is not set")
def test_a_compiled_backbone_trains_alike():
    eager, compiled = training(optimizer="sgd", lr=1e-3), training(optimizer="sgd", lr=1e-3, compile=True)
    assert compiled.detector.state_dict().keys() == eager.detector.state_dict().keys()
    batch = a_batch(eager.options)
    for _ in range(3):
        mine, theirs = eager.update(batch), compiled.update(batch)
        torch.testing.assert_close(theirs, mine, rtol=1e-4, atol=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
