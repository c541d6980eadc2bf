"""The configuration of a run: layers, presets, files, the command line, and what is found from the data."""

import dataclasses
import re
from pathlib import Path

import pytest
import torch

from frcnn_fast import train
from frcnn_fast.data import DataConfig
from frcnn_fast.io import load_checkpoint
from frcnn_fast.model import DetectorConfig, build_detector, preset
from frcnn_fast.training import TrainOptions, recipe
from frcnn_fast.training.anchors import fitting_anchors, mean_best_iou, resized_sides
from frcnn_fast.training.plan import duration, plan, time_left
from frcnn_fast.training.presets import PRESETS
from frcnn_fast.training.tree import TABLES, RunSettings, build, preset_layer, read_layers, to_toml
from tests.small_data import OneClass, digits, write_voc_tree


@pytest.fixture(scope="module")
def voc_tree(tmp_path_factory):
    return write_voc_tree(tmp_path_factory.mktemp("voc"))


def written(path, text):
    path.write_text(text)
    return path


class TestLayers:
    def test_a_name_stands_in_one_table_only(self):
        """The command line has one --name for it."""
        names = [field.name for settings in TABLES.values() for field in dataclasses.fields(settings)]
        assert len(set(names)) == len(names)

    def test_later_layers_count(self):
        config = build([{"training": {"lr": 1.0, "warmup": 3}}, {"training": {"lr": 2.0}, "detector": {"shorter": 90}}])
        assert config.training == recipe("small", lr=2.0, warmup=3)
        assert config.detector == preset("small", shorter=90)
        assert (config.data, config.run) == (DataConfig(), RunSettings())

    def test_the_backbone_chooses_the_rest(self):
        config = build([{"detector": {"backbone": "squeezenet1_0"}}])
        assert (config.detector, config.training) == (preset("squeezenet1_0"), recipe("squeezenet1_0"))

    @pytest.mark.parametrize("name", PRESETS)
    def test_presets(self, name, tmp_path):
        layer = preset_layer(name)
        root = {} if name == "digits" else {"data": {"data_root": str(tmp_path)}}
        config = build([layer, root])
        assert config.detector.backbone == layer["detector"]["backbone"]
        for table, values in layer.items():
            for key, value in values.items():
                assert getattr(getattr(config, table), key) == value
                # Nothing in a preset that is so without it.
                without = {t: {k: v for k, v in vs.items() if (t, k) != (table, key)} for t, vs in layer.items()}
                assert build([without, root]) != config or key == "backbone", (table, key)

    def test_the_papers_preset(self, tmp_path):
        config = build([preset_layer("vgg16-voc07"), {"data": {"data_root": str(tmp_path)}}])
        assert config.detector == DetectorConfig()
        rates = [config.training.lr_at(i) for i in (100, 59_999, 60_000, 79_999)]
        assert rates == pytest.approx([1e-3, 1e-3, 1e-4, 1e-4])

    def test_the_rate_follows_the_batch(self):
        small = {"detector": {"backbone": "squeezenet1_0"}}
        scaled = {"run": {"scale_lr": True}, "training": {"batch_size": 16}}
        config = build([small, scaled])
        assert config.training.lr == pytest.approx(0.004 * 8)
        assert not config.run.scale_lr
        below = {"training": {"batch_size": 4, "lr": 1.0}}
        assert build([small, below, scaled]).training.lr == 4.0
        assert build([small, below]).training.lr == 1.0

    def test_passes_become_iterations(self):
        options = TrainOptions(epochs=2.5, batch_size=4).for_images(101)
        assert (options.iterations, options.epochs) == (64, None)
        assert TrainOptions(iterations=7).for_images(101).iterations == 7


class TestFiles:
    def test_what_is_written_is_read(self, tmp_path):
        given = {
            "data": {"class_names": ("ratón", 'a "b"')},
            "detector": {"backbone": "small", "shorter": None, "anchor_sizes": ((8.5, 16.0), (32.0, 64.0))},
            "training": {"milestones": (0.5, 30.0), "freeze": None, "lr": 1 / 3},
            "run": {"weights": "C:\\x.npz"},
        }
        config = build([given])
        path = written(tmp_path / "c.toml", to_toml(config, "a title"))
        assert build(read_layers(path)) == config
        assert path.read_text().startswith("# a title\n")
        assert "lr = 0.3333333333333333 # learning rate after the warm-up" in path.read_text()

    def test_a_file_may_name_a_preset(self, tmp_path):
        path = written(tmp_path / "c.toml", 'preset = "digits"\n[training]\niterations = 7\n')
        assert build(read_layers(path)).training == recipe("small", iterations=7)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("[training]\nlrr = 1", r"c\.toml: \[training\] has 'lrr', which means nothing here; did you mean 'lr'\?"),
            ("[trainning]\nlr = 1", r"c\.toml: has 'trainning', which means nothing here; did you mean 'training'"),
            ("zzz = 1", r"c\.toml: has 'zzz', expected data, detector, training, run, preset"),
            ("training = 1", r"c\.toml: training is 1, expected a table \[training\]"),
            ("[training\n", r"c\.toml: not TOML \("),
            ('preset = "x"', "preset: got 'x', expected one of vgg16-voc07"),
            ('[training]\nlr = "fast"', "lr: got 'fast', expected a finite number"),
            ("[training]\nepochs = 0", "epochs: got 0, expected a positive number of passes"),
            ('[run]\nanchors = "some"', "anchors: got 'some', expected 'given' or 'auto'"),
        ],
    )
    def test_mistakes_are_named(self, text, message, tmp_path):
        with pytest.raises(ValueError, match=message):
            build(read_layers(written(tmp_path / "c.toml", text)))

    def test_the_guides_file_is_one(self, tmp_path):
        guide = (Path(__file__).parents[1] / "docs/training.md").read_text()
        path = written(tmp_path / "c.toml", guide.split("```toml\n")[1].split("```")[0])
        config = build([*read_layers(path), {"data": {"data_root": str(tmp_path)}}])
        assert (config.detector.backbone, config.training.patience) == ("squeezenet1_0", 5)
        presets = guide.split("## Settings")[1].split("A file")[0]
        assert set(re.findall(r"^\| `([\w-]+)` \| ", presets, re.MULTILINE)) == set(PRESETS)

    def test_a_missing_file(self):
        with pytest.raises(ValueError, match=r"nowhere\.toml: cannot be read"):
            read_layers("nowhere.toml")


class TestCommand:
    def test_a_runs_settings_repeat_it(self, voc_tree, tmp_path, capsys):
        small = ["--backbone", "small", "--rpn-channels", "8", "--head-channels", "16", "--batch-size", "1"]
        arguments = ["--data-root", str(voc_tree), *small, "--epochs", "0.5", "--drawings", "0", "--anchors", "auto"]
        assert train.main([*arguments, "--test-split", "none", "--out", str(tmp_path / "one")]) == 0
        told = capsys.readouterr().err
        assert "anchors: sizes ((" in told
        assert "2 iterations of 1 on 4 images (0.5 passes)" in told
        assert train.main(["--config", str(tmp_path / "one/config.toml"), "--out", str(tmp_path / "two")]) == 0
        one, two = load_checkpoint(tmp_path / "one"), load_checkpoint(tmp_path / "two")
        assert one.config == two.config
        assert all(torch.equal(tensor, two.tensors[name]) for name, tensor in one.tensors.items())
        assert (tmp_path / "one/config.toml").read_text() == (tmp_path / "two/config.toml").read_text()

    def test_help_shows_the_defaults(self, capsys):
        for given, expected in ((["--preset", "bccd", "--data-root", "x"], "[0.0002]"), (["--lr", "0.5"], "[0.5]")):
            with pytest.raises(SystemExit):
                train.main([*given, "--help"])
            told = " ".join(capsys.readouterr().out.split())
            assert f"--lr X learning rate after the warm-up {expected}" in told
        with pytest.raises(SystemExit):
            train.main(["--config", "nowhere.toml", "--help"])
        assert "--lr X learning rate after the warm-up --momentum" in " ".join(capsys.readouterr().out.split())

    def test_a_dry_run_prints_the_settings(self, capsys, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert train.main(["--dry-run", "--preset", "digits", "--epochs", "0.002", "--lr", "0.5"]) == 0
        path = written(tmp_path / "c.toml", capsys.readouterr().out)
        assert build(read_layers(path)).training == recipe("small", iterations=500, lr=0.5)
        assert list(tmp_path.iterdir()) == [path]


class TestAnchors:
    def test_clusters_are_found(self):
        torch.manual_seed(0)
        sizes = torch.cat([torch.full((200,), s) * torch.exp(torch.randn(200) * 0.05) for s in (20.0, 60.0, 150.0)])
        roots = torch.tensor([0.5, 1.0, 2.0]).repeat(200).sqrt()
        sides = torch.stack([sizes / roots, sizes * roots], 1)
        config = preset("squeezenet1_0", anchor_sizes=((1.0, 2.0, 3.0),))
        fitted = fitting_anchors(sides, config)
        assert fitted.anchor_sizes[0] == pytest.approx((20, 60, 150), rel=0.03)
        assert fitted.anchor_ratios == pytest.approx((0.5, 1, 2), rel=0.03)
        assert mean_best_iou(sides, fitted) > 0.9
        # A pyramid: as many sizes on each level, the smallest on the finest.
        levels = preset("small", anchor_sizes=((1.0,), (2.0,), (3.0,)), anchor_ratios=(1.0,))
        assert [s for (s,) in fitting_anchors(sides, levels).anchor_sizes] == pytest.approx([20, 60, 150], rel=0.03)

    def test_what_fits_already_stays(self):
        config = preset("squeezenet1_0", anchor_sizes=((16.0, 32.0),), anchor_ratios=(1.0, 2.0))
        sides = torch.tensor([[16.0, 16.0], [32 / 2**0.5, 32 * 2**0.5]])
        assert mean_best_iou(sides, config) == pytest.approx(1)
        assert fitting_anchors(sides, config) is config
        assert len(fitting_anchors(sides[:1], preset("squeezenet1_0")).anchor_sizes[0]) == 4
        with pytest.raises(ValueError, match="anchors: got 'auto', but the training set has no boxes"):
            fitting_anchors(sides[:0], config)

    def test_boxes_as_the_network_sees_them(self, voc_tree):
        config = preset("small", shorter=64, longer=1000)
        tree = DataConfig(data_root=str(voc_tree)).open_train()
        sides = resized_sides(tree, config)
        whole = torch.cat([tree[i][1]["boxes"] for i in range(len(tree))])
        assert torch.allclose(sides, (whole[:, 2:] - whole[:, :2]) / 2)
        # A data set without a quick way to its targets is opened.
        assert len(resized_sides(OneClass(digits("train", 3)), config)) > 0


class TestPlan:
    def test_it_says_what_is_going_to_happen(self):
        detector = build_detector(["a", "b"], preset("squeezenet1_0", rpn_channels=8, head_channels=8))
        detector.backbone.freeze(2)
        options = TrainOptions(iterations=100, batch_size=3, warmup=5)
        lines = plan(detector, options, 60, torch.device("cpu"), from_weights=True)
        assert "squeezenet1_0, 2 classes" in lines[0]
        assert "of them frozen (in backbone)" in lines[0]
        assert "100 iterations of 3 on 60 images (5 passes) by sgd" in lines[1]
        assert not [line for line in lines if line.startswith("warning")]
        total = sum(p.numel() for p in detector.parameters())
        moving = sum(p.numel() for p in detector.parameters() if p.requires_grad)
        assert f"{(4 * total + 8 * moving) / 2**20:.0f} MB for weights, gradients and optimiser" in lines[2]

    def test_what_makes_no_sense_is_warned_about(self):
        detector = build_detector(["a"], preset("squeezenet1_0", rpn_channels=8, head_channels=8))
        options = TrainOptions(iterations=90, milestones=(60_000,), warmup=100)
        lines = plan(detector, options, 60, torch.device("cpu"), from_weights=False)
        warnings = [line for line in lines if line.startswith("warning: ")]
        assert [word in line for word, line in zip(("random weights", "never falls", "warm-up"), warnings)] == [
            True
        ] * 3
        options = TrainOptions(iterations=80_000)
        (many,) = [w for w in plan(detector, options, 60, torch.device("cpu"), True) if w.startswith("warning")]
        assert "every image will be seen 1333 times" in many

    def test_time(self):
        assert [duration(s) for s in (0.2, 59, 90, 5000, 400_000)] == ["1 s", "59 s", "2 min", "1 h 23 min", "111 h"]
        assert time_left(60.0) == ["time: about 1 min at the speed of the first iterations"]
        assert time_left(1e6)[1].startswith("warning: 277 h is long; fewer --iterations")
