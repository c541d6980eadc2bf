"""Training schemes, from their stages to the files of a run, and the head's spatial pyramid."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from frcnn_fast import cli, ops, train
from frcnn_fast._options import add_options, chosen
from frcnn_fast.data import AugmentedDetection, DigitsDetection, ProposalSet, horizontal_flip, read_proposals
from frcnn_fast.evaluate import evaluate
from frcnn_fast.io import load_checkpoint, read_jsonl
from frcnn_fast.model import DetectorConfig, build_detector, load_detector, preset, save_detector
from frcnn_fast.model.losses import ROI_LOSSES, RPN_LOSSES
from frcnn_fast.propose import propose
from frcnn_fast.training import TrainOptions, recipe
from frcnn_fast.training.schemes import SCHEMES, beginning, prepare, renew, set_modes

NAMES = DigitsDetection("train", length=1).class_names


def digits(split: str, length: int) -> DigitsDetection:
    return DigitsDetection(split, length=length, size=(128, 160))


def quick(scheme: str, **changes: Any) -> TrainOptions:
    return recipe(
        "small", **{"scheme": scheme, "iterations": 3, "batch_size": 2, "log_every": 1, "warmup": 1, **changes}
    )


def tiny(**changes: Any) -> DetectorConfig:
    return preset("small", **{"head_channels": 16, "proposals_train": (200, 40), **changes})


def part(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in tensors.items() if key.partition(".")[0] == name}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    assert a.keys() == b.keys()
    return all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class TestStages:
    @pytest.mark.parametrize("scheme", SCHEMES)
    def test_every_stage_minimises_what_its_parts_are_for(self, scheme):
        stages = TrainOptions(scheme=scheme, iterations=7).stages()
        earlier: list[str] = []
        for stage in stages:
            assert stage.iterations == 7
            assert ("rpn" in stage.trainable) == (not set(RPN_LOSSES).isdisjoint(stage.losses))
            assert ("roi_head" in stage.trainable) == (not set(ROI_LOSSES).isdisjoint(stage.losses))
            assert stage.proposals in ("rpn", "files", *earlier)
            earlier.append(stage.name)
        names = [stage.name for stage in stages if stage.name]
        assert len(set(names)) == len(names)

    def test_the_papers_four_steps(self):
        one, two, three, four = TrainOptions(scheme="alternating", iterations=7).stages()
        assert (one.trainable, two.trainable) == (("backbone", "rpn"), ("backbone", "roi_head"))
        assert (three.trainable, four.trainable) == (("rpn",), ("roi_head",))
        assert two.anew == ("backbone",)
        assert (two.proposals, four.proposals) == (one.name, three.name)

    def test_what_does_not_move_keeps_its_statistics(self):
        detector = build_detector(NAMES, tiny())
        stages = SCHEMES["alternating"](3)
        prepare(detector, stages[2], frozen={"rpn.cls_logits.bias"})
        assert {name.split(".")[0] for name, p in detector.named_parameters() if p.requires_grad} == {"rpn"}
        assert not detector.rpn.cls_logits.bias.requires_grad
        assert detector.training
        assert not any(module.training for module in detector.backbone.modules())
        before = {name: tensor.clone() for name, tensor in detector.backbone.state_dict().items()}
        detector.features(torch.randn(2, 3, 64, 64))
        assert equal(before, detector.backbone.state_dict())
        detector.eval()
        set_modes(detector, stages[1])
        assert detector.backbone.training
        assert not detector.rpn.training
        assert detector.config.parts == "both"

    def test_a_part_begins_anew_as_the_run_began(self):
        detector = build_detector(NAMES, tiny())
        stages = SCHEMES["alternating"](3)
        initial = beginning(detector, stages)
        assert {name.split(".")[0] for name in initial} == {"backbone", "rpn"}
        first = {name: tensor.clone() for name, tensor in detector.state_dict().items()}
        with torch.no_grad():
            for parameter in detector.parameters():
                parameter.add_(1.0)
        renew(detector, stages[1], initial)
        now = detector.state_dict()
        assert equal(part(now, "backbone"), part(first, "backbone"))
        assert not equal(part(now, "rpn"), part(first, "rpn"))
        assert not beginning(detector, SCHEMES["approximate-joint"](3))


@pytest.fixture(scope="module")
def alternated(tmp_path_factory: pytest.TempPathFactory) -> train.TrainResult:
    """The four steps on ten images."""
    return train.train(
        digits("train", 10), out=tmp_path_factory.mktemp("run"), config=tiny(), options=quick("alternating"),
        test=digits("test", 3), drawings=1, progress=False,
    )  # fmt: skip


class TestAlternating:
    STEPS = ("1-rpn", "2-fast-rcnn", "3-rpn", "4-fast-rcnn")

    def weights(self, run: train.TrainResult, step: str) -> dict[str, Tensor]:
        return load_checkpoint(run.out / "stages" / step).tensors

    def test_each_step_leaves_its_files(self, alternated):
        files = {str(path.relative_to(alternated.out / "stages")) for path in alternated.out.glob("stages/*/*")}
        assert files == {
            *(f"{step}/model.safetensors" for step in self.STEPS), "1-rpn/proposals.npz", "3-rpn/proposals.npz",
        }  # fmt: skip
        assert alternated.iterations == 12
        assert alternated.evaluation is not None
        parts = [load_checkpoint(alternated.out / "stages" / step).config["parts"] for step in self.STEPS]
        assert parts == ["rpn", "roi_head", "both", "both"]
        extra = load_checkpoint(alternated.out / "stages" / "2-fast-rcnn").extra
        assert extra == {"iteration": 6}

    def test_the_convolutions_are_shared_at_the_end(self, alternated):
        step = {name: self.weights(alternated, name) for name in self.STEPS}
        final = load_checkpoint(alternated.out).tensors
        # Steps 3 and 4 leave the convolutions of step 2 as they are, to the bit, batch statistics included.
        for name in self.STEPS[2:]:
            assert equal(part(step[name], "backbone"), part(step["2-fast-rcnn"], "backbone")), name
        assert equal(part(final, "backbone"), part(step["2-fast-rcnn"], "backbone"))
        assert equal(part(final, "rpn"), part(step["3-rpn"], "rpn"))
        assert equal(final, step["4-fast-rcnn"])
        # Steps 1 and 2 share nothing; step 3 has a new RPN; steps 2 and 4 move the head, 1 and 3 do not.
        assert not equal(part(step["1-rpn"], "backbone"), part(step["2-fast-rcnn"], "backbone"))
        assert not equal(part(step["1-rpn"], "rpn"), part(step["3-rpn"], "rpn"))
        assert equal(part(step["2-fast-rcnn"], "roi_head"), part(step["3-rpn"], "roi_head"))
        assert not equal(part(step["2-fast-rcnn"], "roi_head"), part(step["4-fast-rcnn"], "roi_head"))

    def test_step_2_starts_where_the_run_started(self, alternated, tmp_path):
        """At a learning rate that moves next to nothing, the weights after it are those of the run's start."""
        torch.manual_seed(0)
        detector = build_detector(NAMES, tiny())
        rate = 1e-30
        run = train.train(
            digits("train", 10), out=tmp_path, config=tiny(), progress=False,
            options=quick("alternating", iterations=1, lr=rate, weight_decay=0.0),
        )  # fmt: skip
        found = load_checkpoint(run.out / "stages" / "2-fast-rcnn").tensors
        for name, parameter in detector.named_parameters():
            torch.testing.assert_close(found[name], parameter.detach(), rtol=0, atol=1e-25, msg=name)

    def test_the_proposals_are_those_of_the_step(self, alternated):
        data = digits("train", 10)
        for step in ("1-rpn", "3-rpn"):
            kept = read_proposals(alternated.out / "stages" / step)
            again = propose(load_detector(alternated.out / "stages" / step), data, progress=False)
            assert list(kept) == [data[index][1]["image_id"] for index in range(10)]
            assert all(torch.equal(kept[image], again[image]) for image in kept)
            assert max(map(len, kept.values())) <= 40

    def test_each_step_minimises_its_losses(self, alternated):
        records = [r for r in read_jsonl(alternated.out / "metrics.jsonl") if "loss" in r]
        found = [{name for name in record if name.startswith("loss_")} for record in records]
        assert found == ([set(RPN_LOSSES)] * 3 + [set(ROI_LOSSES)] * 3) * 2

    def test_the_result_is_one_network(self, alternated):
        detector = load_detector(alternated.out)
        assert detector.config.parts == "both"
        again = evaluate(detector, digits("test", 3), progress=False)
        assert again.ap_area == alternated.evaluation.ap_area
        # A step's half of the network works by itself.
        kept = read_proposals(alternated.out / "stages" / "1-rpn")
        half = load_detector(alternated.out / "stages" / "2-fast-rcnn")
        assert evaluate(half, digits("train", 3), progress=False, proposals=kept).num_detections.keys() == set(NAMES)

    def test_an_interrupted_run_goes_on_to_the_same(self, alternated, tmp_path):
        """Stopped in the middle of step 3: the first weights, which it began with again, are found again."""

        def run(resume=None, **more):
            place = {"resume": resume} if resume else {"out": tmp_path / "run", "config": tiny()}
            return train.train(digits("train", 10), **place, options=quick("alternating"), progress=False, **more)

        stopped = run(callback=lambda record: record["iteration"] == 5)
        assert stopped.iterations == 5
        assert not (stopped.out / "stages" / "2-fast-rcnn").exists()
        done = run(resume=stopped.out)
        assert done.iterations == 12
        wanted = load_checkpoint(alternated.out).tensors
        assert equal(load_checkpoint(done.out).tensors, wanted)

    def test_of_averaged_weights_the_kept_ones_are_shared(self, tmp_path):
        run = train.train(
            digits("train", 6), out=tmp_path, config=tiny(), progress=False,
            options=quick("alternating", iterations=2, batch_size=1, ema=0.5),
        )  # fmt: skip
        final = load_checkpoint(tmp_path).tensors
        assert equal(part(final, "backbone"), part(self.weights(run, "2-fast-rcnn"), "backbone"))
        assert equal(part(final, "rpn"), part(self.weights(run, "3-rpn"), "rpn"))

    def test_killed_while_a_step_writes_its_files(self, alternated, tmp_path, monkeypatch):
        """The step's last checkpoint is there, its proposals are not: they are made when the run goes on."""

        class Killed(BaseException):
            pass

        def killed(*_, **__):
            raise Killed

        how = {"options": quick("alternating"), "progress": False}
        with monkeypatch.context() as patched:
            patched.setattr("frcnn_fast.training.session.propose", killed)
            with pytest.raises(Killed):
                train.train(digits("train", 10), out=tmp_path, config=tiny(), **how)
        assert {path.name for path in tmp_path.glob("stages/*/*")} == {"model.safetensors"}
        train.train(digits("train", 10), resume=tmp_path, **how)
        assert equal(load_checkpoint(tmp_path).tensors, load_checkpoint(alternated.out).tensors)


class TestRpnOnly:
    def test_a_run(self, tmp_path, capsys):
        test = digits("test", 4)
        run = train.train(
            digits("train", 6), out=tmp_path, config=tiny(), options=quick("rpn-only"), test=test, progress=False
        )
        assert run.evaluation is None
        assert run.recall is not None
        assert run.recall.num_objects["all"] == sum(len(test[index][1]["labels"]) for index in range(4))
        assert json.loads((tmp_path / "recall.json").read_text()) == json.loads(json.dumps(run.recall.to_dict()))
        assert len(read_proposals(tmp_path)) == 10  # of both sets
        detector = load_detector(tmp_path)
        assert detector.config.parts == "rpn"
        head = part(detector.state_dict(), "roi_head")
        torch.manual_seed(0)
        assert equal(head, part(build_detector(NAMES, tiny()).state_dict(), "roi_head"))
        with pytest.raises(ValueError, match="no trained head"):
            evaluate(detector, test, progress=False)


class TestNonApproximateJoint:
    def test_a_run(self, tmp_path):
        run = train.train(
            digits("train", 6), out=tmp_path, config=tiny(pool_size=3), options=quick("non-approximate-joint"),
            test=digits("test", 2), drawings=0, progress=False,
        )  # fmt: skip
        assert run.evaluation is not None
        assert load_detector(tmp_path).config.pooling == "prroi_pool"
        records = [r for r in read_jsonl(tmp_path / "metrics.jsonl") if "loss" in r]
        assert {name for name in records[0] if name.startswith("loss_")} == {*RPN_LOSSES, *ROI_LOSSES}


class TestFastRcnn:
    def around(self, *sets: DigitsDetection) -> ProposalSet:
        """The objects themselves, and boxes beside them."""
        boxes = {}
        for data in sets:
            for index in range(len(data)):
                target = data[index][1]
                shifted = target["boxes"] + torch.tensor([25.0, 10, 25, 10])
                boxes[target["image_id"]] = torch.cat([target["boxes"], shifted])
        return ProposalSet(boxes)

    def test_a_run_learns_from_given_proposals(self, tmp_path):
        training, test = digits("train", 40), digits("test", 5)
        given = self.around(training, test)
        run = train.train(
            training, out=tmp_path, config=tiny(head_channels=64), test=test, proposals=given, drawings=1,
            options=quick("fast-rcnn", iterations=25, batch_size=4, lr=2e-3), progress=False,
        )  # fmt: skip
        records = [r for r in read_jsonl(tmp_path / "metrics.jsonl") if "loss" in r]
        assert {name for name in records[0] if name.startswith("loss_")} == set(ROI_LOSSES)
        assert sum(r["loss"] for r in records[-5:]) < 0.8 * sum(r["loss"] for r in records[:5])
        assert run.evaluation is not None
        assert len(list(tmp_path.glob("drawings/*.png"))) == 1
        detector = load_detector(tmp_path)
        assert detector.config.parts == "roi_head"
        rpn = part(detector.state_dict(), "rpn")
        torch.manual_seed(0)
        assert equal(rpn, part(build_detector(NAMES, tiny(head_channels=64)).state_dict(), "rpn"))
        again = evaluate(detector, test, progress=False, proposals=given)
        assert again.ap_area == pytest.approx(run.evaluation.ap_area, nan_ok=True)

    def test_what_does_not_fit_is_refused_before_the_first_update(self, tmp_path):
        training, test = digits("train", 4), digits("test", 2)

        def run(scheme, proposals, test=None):
            train.train(
                training, out=tmp_path / "run", config=tiny(), options=quick(scheme), test=test, proposals=proposals
            )

        with pytest.raises(ValueError, match="proposals: got none, but the scheme 'fast-rcnn' trains on given ones"):
            run("fast-rcnn", None)
        with pytest.raises(ValueError, match="proposals: got some, but the scheme 'alternating' makes its own"):
            run("alternating", self.around(training))
        with pytest.raises(ValueError, match="proposals: got none for 2 images of the test set, the first digits-test"):
            run("fast-rcnn", self.around(training), test)
        with pytest.raises(ValueError, match="proposals of image a: row 0 is"):
            run("fast-rcnn", {"a": [[2.0, 0, 1, 1]]})
        assert not (tmp_path / "run").exists()

    def test_transforms_and_fixed_proposals_are_refused(self, tmp_path):
        """The proposals would stay where they are while the images move; the RPN's own training may have transforms."""

        def mirrored(image, target):
            return horizontal_flip(image, target)

        training = AugmentedDetection(digits("train", 4), mirrored)
        for scheme in ("fast-rcnn", "alternating"):
            with pytest.raises(ValueError, match=f"transforms: move the images away .* scheme '{scheme}'"):
                train.train(training, out=tmp_path / "run", config=tiny(), options=quick(scheme))
        run = train.train(training, out=tmp_path, config=tiny(), options=quick("rpn-only"), progress=False)
        kept = read_proposals(tmp_path)
        again = propose(run.detector, training.dataset, progress=False)
        assert all(torch.equal(kept[image], again[image]) for image in again)

    def test_from_proposals_to_a_detector_on_the_command_line(self, tmp_path, monkeypatch, capsys):
        """The unshared half of the paper's steps, by commands: RPN, its proposals, Fast R-CNN on them."""
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("frcnn_fast.data.config.DigitsDetection", lambda split: digits(split, 5))
        small = ["--head-channels", "16", "--batch-size", "1", "--drawings", "0"]
        assert cli.main(["train", "--scheme", "rpn-only", "--iterations", "2", "--out", "rpn", *small]) == 0
        out = capsys.readouterr().out.splitlines()
        assert out[0].split()[0] == "AR@100"
        assert out[-1] == "proposals, curves and weights: rpn"
        arguments = ["train", "--scheme", "fast-rcnn", "--iterations", "4", "--out", "fast", *small]
        assert cli.main([*arguments, "--proposals", "rpn"]) == 0
        last = capsys.readouterr().out.splitlines()[-1]
        assert last.startswith("VOC07 mAP")
        assert cli.main(["evaluate", "--checkpoint", "fast"]) == 0  # on the proposals that it was trained on
        assert capsys.readouterr().out.splitlines()[-1] == last
        with pytest.raises(SystemExit):
            cli.main([*arguments[:-6], "--out", "other"])
        assert "error: proposals: got none, but the scheme 'fast-rcnn'" in capsys.readouterr().err
        assert not Path("other").exists()


class TestPyramid:
    def test_the_bins_of_every_size_are_one_vector(self):
        torch.manual_seed(0)
        config = DetectorConfig(
            backbone="squeezenet1_0", anchor_sizes=((64.0,),), pool_levels=(1, 2, 3, 6), head_channels=8
        )
        head = build_detector(["a", "b"], config).roi_head
        assert head.body.fc6.in_features == 512 * (1 + 4 + 9 + 36)
        features = torch.randn(2, 512, 9, 12)
        rois = torch.tensor([[0, 5.0, 9, 100, 130], [1, 0, 0, 191, 143], [-1, 0, 0, 0, 0]])
        pooled = head.pool([features], rois)
        assert pooled.shape == (3, 512 * 50)
        start = 0
        for size in (1, 2, 3, 6):
            one = ops.roi_pool(features, rois, size, 1 / 16)
            assert torch.equal(pooled[:, start : start + 512 * size**2], one.flatten(1))
            start += 512 * size**2
        # One bin over the whole map is its maximum.
        assert torch.equal(pooled[1, :512], features[1].amax((1, 2)))
        assert not pooled[2].any()

    def test_it_survives_a_checkpoint_and_trains(self, tmp_path):
        torch.manual_seed(0)
        detector = build_detector(["a"], preset("small", pool_levels=(1, 2), head_channels=8))
        save_detector(tmp_path / "model.safetensors", detector)
        assert load_detector(tmp_path).config.pool_levels == (1, 2)
        boxes, labels = torch.tensor([[[10.0, 10, 60, 50]]]), torch.ones(1, 1, dtype=torch.int64)
        images, sizes = torch.randn(1, 3, 64, 96), torch.tensor([[64, 96]])
        losses: Any = detector(images, sizes, boxes, labels, torch.tensor([1]))
        torch.stack(list(losses.values())).sum().backward()
        assert detector.roi_head.body.fc6.weight.shape == (8, 64 * 5)
        assert (detector.roi_head.body.fc6.weight.grad != 0).any()

    def test_one_level_is_plain_pooling(self):
        config = preset("squeezenet1_0", pool_levels=(7,), head_channels=8)
        torch.manual_seed(0)
        pyramid = build_detector(["a"], config)
        torch.manual_seed(0)
        plain = build_detector(["a"], preset("squeezenet1_0", head_channels=8))
        rois = torch.tensor([[0, 5.0, 9, 100, 130]])
        features = [torch.randn(1, 512, 9, 12)]
        hidden = [d.roi_head.body(d.roi_head.pool(features, rois)) for d in (pyramid, plain)]
        assert torch.equal(*hidden)

    def test_what_does_not_fit_is_refused(self):
        with pytest.raises(ValueError, match=r"pool_levels: got \(1, 2\) with head 'conv'"):
            preset("small", pool_levels=(1, 2), head="conv")
        with pytest.raises(ValueError, match=r"pool_levels: got .*expected from 1"):
            preset("small", pool_levels=(0, 2))

    @pytest.mark.parametrize("given", [["1,2,3,6"], ["1", "2", "3", "6"], ["1,2", "3,6"]])
    def test_on_the_command_line(self, given):
        parser = argparse.ArgumentParser()
        add_options(parser.add_argument_group("detector"), DetectorConfig)
        args = parser.parse_args(
            ["--pool-levels", *given, "--proposals-train", "50,20", "--anchor-sizes", "8,9", "3,4"]
        )
        assert chosen(args, DetectorConfig) == {
            "pool_levels": (1, 2, 3, 6), "proposals_train": (50, 20), "anchor_sizes": ((8, 9), (3, 4)),
        }  # fmt: skip
        with pytest.raises(ValueError, match="proposals_train: got"):
            DetectorConfig(**chosen(parser.parse_args(["--proposals-train", "50"]), DetectorConfig))
