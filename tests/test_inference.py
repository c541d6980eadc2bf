"""Detector and Result: every kind of image, batches that change nothing, forms for other tools."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import frcnn_fast
from frcnn_fast.evaluate import detect_all
from frcnn_fast.inference import Detector, Result
from frcnn_fast.inference.ahead import ahead
from frcnn_fast.inference.sources import Loaded
from frcnn_fast.model import FasterRCNN, build_detector, preset, save_detector
from tests.test_data import image_file
from tests.test_files import oriented


def untrained(**settings) -> FasterRCNN:
    """It finds things of low scores everywhere, and its biases let it see zeros beside an image."""
    torch.manual_seed(0)
    model = build_detector(["cat", "dog"], preset("small", max_detections=20, **settings))
    for parameter in model.parameters():
        if parameter.dim() == 1:
            torch.nn.init.normal_(parameter, 0.0, 0.1)
    return model.eval()


@pytest.fixture(scope="module")
def detector() -> Detector:
    return Detector(untrained())


def picture(height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def same(a: Result, b: Result) -> bool:
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in ("boxes", "scores", "labels"))


class TestKinds:
    def test_all_of_one_image_give_the_same(self, detector, tmp_path):
        image = picture(50, 70)
        array = image.permute(1, 2, 0).numpy().copy()
        Image.fromarray(array).save(tmp_path / "a.png")
        wanted = detector(image)
        assert len(wanted) == 20
        backwards = np.ascontiguousarray(array[:, :, ::-1])
        frozen = array.copy()
        frozen.flags.writeable = False
        kinds = [
            str(tmp_path / "a.png"),
            tmp_path / "a.png",
            Image.fromarray(array),
            array,
            frozen,
            backwards[:, :, ::-1],
        ]
        for kind in kinds:
            assert same(detector(kind), wanted), type(kind)
        assert same(detector(backwards, bgr=True), wanted)
        assert not same(detector(backwards), wanted)
        for several in (kinds, tuple(kinds), iter(kinds), (kind for kind in kinds)):
            results = detector(several)
            assert isinstance(results, list)
            assert all(same(result, wanted) for result in results)
        assert [result.path for result in detector(kinds)] == [str(tmp_path / "a.png")] * 2 + [None] * 4

    def test_grey_and_other_modes(self, detector):
        grey = picture(40, 40)[0].numpy()
        wanted = detector(np.repeat(grey[:, :, None], 3, axis=2))
        assert same(detector(grey), wanted)
        assert same(detector(Image.fromarray(grey)), wanted)
        assert same(detector(Image.fromarray(grey).convert("RGBA")), wanted)

    def test_files_are_upright_and_pil_images_as_they_lie(self, detector, tmp_path):
        oriented(tmp_path / "a.jpg", 6)
        assert detector(tmp_path / "a.jpg").image_size == (100, 60)
        with Image.open(tmp_path / "a.jpg") as image:
            assert detector(image).image_size == (60, 100)

    @pytest.mark.parametrize(
        ("image", "message"),
        [
            (torch.zeros(3, 8, 8), r"image: got a tensor of torch.float32 with shape \(3, 8, 8\), expected uint8"),
            (torch.zeros(3, 0, 8, dtype=torch.uint8), r"image: got a tensor .* \(3, 0, 8\), expected .* with pixels"),
            (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), "give a batch as a list of its images"),
            (np.zeros((3, 8, 8), np.uint8), r"move the channels last: array.transpose\(1, 2, 0\)"),
            (np.zeros((8, 8, 4), np.uint8), "drop the fourth channel"),
            (np.zeros((8, 8, 3)), r"floats from 0 to 1 become \(array \* 255\)"),
            (np.zeros((2, 8, 8, 3), np.uint8), "give a batch as a list"),
            ("gone.jpg", "gone.jpg: no such image file"),
            ("tests", "image: tests is a folder; give its files"),
        ],
    )
    def test_what_is_no_image_is_named(self, detector, image, message):
        with pytest.raises(ValueError, match=message):
            detector(image)

    def test_its_place_in_a_list_is_named(self, detector):
        with pytest.raises(ValueError, match=r"images\[1\]: got a tensor of torch.float32"):
            detector([picture(8, 8), torch.zeros(3, 8, 8)])
        with pytest.raises(TypeError, match=r"images\[0\]: got float, expected a path, a PIL image"):
            detector([1.0])
        with pytest.raises(TypeError, match="images: got int, expected an image"):
            detector(7)

    @pytest.mark.parametrize("batch", [0, -1, 1.5, True])
    def test_batches_are_whole(self, detector, batch):
        with pytest.raises(ValueError, match=r"batch: got .*, expected a whole number of images"):
            detector(picture(8, 8), batch=batch)

    def test_one_pixel_and_none_at_all(self, detector):
        assert detector(picture(1, 1)).image_size == (1, 1)
        assert detector([]) == []
        assert list(detector(iter([]), stream=True)) == []


class TestBatches:
    SIZES = ((60, 100), (100, 60), (60, 100), (64, 96), (33, 200), (60, 99), (100, 60), (60, 100), (7, 5))

    @pytest.fixture(autouse=True)
    def _one_thread(self):
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        yield
        torch.set_num_threads(threads)

    @pytest.mark.parametrize("resizing", [{"shorter": None, "longer": None}, {"shorter": 64, "longer": 128}])
    @pytest.mark.parametrize("one_by_one", [True, False])
    def test_they_change_nothing(self, resizing, one_by_one):
        """To the bit with convolutions that take image after image; oneDNN's depend on the number of images."""
        detector = Detector(untrained(**resizing))
        images = [picture(*size, seed) for seed, size in enumerate(self.SIZES)]
        with torch.backends.mkldnn.flags(enabled=not one_by_one):
            alone = [detector(image) for image in images]
            assert sum(len(result) for result in alone) > 100
            for batch in (1, 2, 3, 8):
                together = detector(images, batch=batch)
                assert [result.image_size for result in together] == list(self.SIZES)
                if one_by_one or batch == 1:
                    assert all(map(same, together, alone)), batch
                for a, b in zip(together, alone, strict=True):
                    torch.testing.assert_close(a.scores, b.scores, rtol=0, atol=1e-4)

    def test_more_padding_would_change_them(self):
        """Why images share a forward pass only with others of their shape."""
        model = untrained(shorter=None, longer=None)
        image = torch.rand(1, 3, 64, 96)
        padded = torch.nn.functional.pad(image, (0, 64, 0, 32))
        sizes = torch.tensor([[64, 96]])
        with torch.no_grad():
            assert (model(image, sizes).scores - model(padded, sizes).scores).abs().max() > 1e-3

    def test_images_of_one_shape_share_a_pass(self, monkeypatch):
        detector = Detector(untrained(shorter=None, longer=None))
        shapes: list[tuple[int, ...]] = []
        right = detector.model.forward

        def forward(images, *args, **rest):
            shapes.append(tuple(images.shape))
            return right(images, *args, **rest)

        monkeypatch.setattr(detector.model, "forward", forward)
        detector([picture(*size) for size in self.SIZES], batch=3)
        assert shapes == [
            (3, 3, 64, 128), (2, 3, 128, 64), (1, 3, 64, 96), (1, 3, 64, 224), (1, 3, 64, 128), (1, 3, 32, 32)
        ]  # fmt: skip

    def test_a_stream_reads_no_more_than_it_says(self, detector):
        read = []

        def endless():
            while True:
                read.append(len(read))
                yield picture(*self.SIZES[len(read) % 9])

        for batch in (1, 2, 4):
            read.clear()
            results = detector(endless(), batch=batch, stream=True)
            assert read == []
            for done in range(1, 10):
                next(results)
                assert len(read) <= done - 1 + (4 * batch if batch > 1 else 1)

    def test_errors_stand_in_their_place(self, detector, monkeypatch):
        """A broken image, and one for which the memory does not do: alone or with others."""
        right = detector.model.forward

        def forward(images, *args, **rest):
            if (images[:, 0, 0, 0] > 2).any():  # the white one
                raise RuntimeError("out of memory")
            return right(images, *args, **rest)

        white = torch.full((3, 60, 100), 255, dtype=torch.uint8)
        images: list[Loaded | Exception] = [Loaded(picture(60, 100, seed), None) for seed in range(6)]
        images[2], images[4] = ValueError("broken"), Loaded(white, None)
        monkeypatch.setattr(detector.model, "forward", forward)
        for batch in (1, 3, 8):
            outcomes = list(detector.outcomes(images, batch=batch))
            assert [str(one) if isinstance(one, Exception) else len(one) for one in outcomes] == [
                20, 20, "broken", 20, "out of memory", 20,
            ]  # fmt: skip
        results = detector([picture(60, 100), "gone.jpg"], batch=8, stream=True)
        assert len(next(results)) == 20
        with pytest.raises(ValueError, match="no such image file"):
            next(results)

    def test_an_evaluation_sees_the_same(self, detector):
        """Its own way through a data set comes to the same detections, in batches too."""
        images = [picture(*size, seed) for seed, size in enumerate(self.SIZES)]

        class Images:
            class_names = ("cat", "dog")

            def __len__(self):
                return len(images)

            def __getitem__(self, index):
                return images[index], {"boxes": [], "labels": []}

        with torch.backends.mkldnn.flags(enabled=False):
            results = detector(images)
            for size in (1, 4):
                for found, result in zip(
                    detect_all(detector.model, Images(), batch_size=size, progress=False), results, strict=True
                ):
                    torch.testing.assert_close(found["boxes"], result.boxes)
                    assert torch.equal(found["scores"], result.scores)
                    assert torch.equal(found["labels"], result.labels)

    def test_the_model_is_as_it_was(self, detector):
        config = detector.model.config
        assert len(detector(picture(60, 100), score_threshold=0.0)) == 20
        assert detector.model.config is config


class TestResult:
    @pytest.fixture
    def result(self, detector, tmp_path) -> Result:
        image_file(tmp_path / "000042.png")
        found = detector(tmp_path / "000042.png")
        found.labels[::2] = 1  # an untrained network finds dogs only
        return found

    def test_what_it_holds(self, result):
        assert result.boxes.shape == (20, 4)
        assert result.boxes.dtype == result.scores.dtype == torch.float32
        assert result.labels.dtype == torch.int64
        assert result.image_size == (60, 100)
        assert result.names == [["cat", "dog"][label - 1] for label in result.labels.tolist()]
        x1, y1, x2, y2 = result.boxes.T
        assert ((x1 >= 0) & (x1 <= x2) & (x2 <= 100) & (y1 >= 0) & (y1 <= y2) & (y2 <= 60)).all()
        assert result.scores.tolist() == sorted(result.scores.tolist(), reverse=True)
        result.boxes += 1  # not a tensor of inference mode
        assert not result.boxes.requires_grad

    def test_selections(self, result):
        mask = result.scores > result.scores[5]
        assert len(result[mask]) == int(mask.sum()) > 0
        assert same(result[mask], result[mask.numpy()])
        assert same(result[mask], result[mask.tolist()])
        assert same(result[:3], result[[0, 1, 2]])
        assert same(result[-1], result[19:])
        assert len(result[[]]) == 0
        assert [one.names[0] for one in result] == result.names
        with pytest.raises(IndexError):
            result[20]
        with pytest.raises(IndexError):
            result[torch.zeros(3, dtype=torch.bool)]
        assert result[:3].image_size == result.image_size
        assert result[:3].path == result.path

    def test_repr(self, result):
        text = repr(result[result.labels == 1][:2])
        assert text.startswith("Result('")
        assert text.endswith("000042.png', 100x60 pixels, 2 detections: cat (2))")
        assert repr(result[[]]).endswith("0 detections)")
        assert repr(result[0]).endswith(f"1 detection: {result.names[0]})")

    def test_record(self, result, tmp_path):
        record = result.to_dict()
        assert record == json.loads(json.dumps(record))
        assert record["image"] == str(tmp_path / "000042.png")
        assert (record["width"], record["height"]) == (100, 60)
        assert [item["class"] for item in record["detections"]] == result.names
        assert torch.equal(torch.tensor([item["box"] for item in record["detections"]]), result.boxes)
        result.save(tmp_path / "deep" / "r.json")
        assert json.loads((tmp_path / "deep" / "r.json").read_text()) == record

    def test_coco(self, result, detector):
        entries = result.to_coco(category_ids={"cat": 17, "dog": 18})
        assert entries == json.loads(json.dumps(entries))
        assert {entry["image_id"] for entry in entries} == {42}
        for entry, (x1, y1, x2, y2), name in zip(entries, result.boxes.tolist(), result.names, strict=True):
            assert entry["bbox"] == [x1, y1, x2 - x1, y2 - y1]
            assert entry["category_id"] == {"cat": 17, "dog": 18}[name]
        assert [entry["category_id"] for entry in result.to_coco("a")] == result.labels.tolist()
        assert result.to_coco("a")[0]["image_id"] == "a"
        with pytest.raises(ValueError, match=r"category_ids: lacks 'cat', expected an id for each of"):
            result.to_coco(category_ids={"dog": 1})
        with pytest.raises(ValueError, match="image_id: got None"):
            detector(picture(60, 100)).to_coco()

    def test_drawings(self, result, detector, tmp_path):
        result.save(tmp_path / "out.png")
        result.save(tmp_path / "out.JPG")
        with Image.open(tmp_path / "out.png") as drawing:
            assert drawing.size == result.plot().size
        from_memory = detector(picture(60, 100))
        assert from_memory.plot().size == (700, 420)
        with pytest.raises(ValueError, match=r"out\.txt: expected a file that ends with .json, .png"):
            result.save(tmp_path / "out.txt")

    def test_pixels_are_read_anew(self, detector, tmp_path):
        image_file(tmp_path / "a.png")
        (result,) = detector([tmp_path / "a.png"])
        assert result.image.shape == (3, 60, 100)
        image_file(tmp_path / "a.png", (30, 40))
        with pytest.raises(ValueError, match=r"a\.png: has 40x30 pixels now and had 100x60"):
            result.plot()
        (tmp_path / "a.png").unlink()
        with pytest.raises(ValueError, match="no such image file"):
            result.save(tmp_path / "b.png")

    def test_supervision_says_what_it_needs(self, result, monkeypatch):
        monkeypatch.setitem(sys.modules, "supervision", None)
        with pytest.raises(ImportError, match=r"pip install 'frcnn_fast\[supervision\]'"):
            result.to_supervision()

    def test_supervision(self, result):
        supervision = pytest.importorskip("supervision")
        found = result.to_supervision()
        assert isinstance(found, supervision.Detections)
        assert np.array_equal(found.xyxy, result.boxes.numpy())
        assert found.class_id.tolist() == [label - 1 for label in result.labels.tolist()]
        assert found["class_name"].tolist() == result.names
        assert len(result[[]].to_supervision()) == 0


class TestAhead:
    @pytest.mark.parametrize("threads", [0, 1, 4])
    def test_in_order(self, threads):
        assert list(ahead(lambda i: i * i, range(50), threads)) == [i * i for i in range(50)]

    def test_what_was_begun_comes_before_the_error(self):
        def items():
            yield from range(5)
            raise KeyboardInterrupt

        made = ahead(str, items(), 4)
        assert [next(made) for _ in range(5)] == ["0", "1", "2", "3", "4"]
        with pytest.raises(KeyboardInterrupt):
            next(made)

    def test_it_may_be_left(self):
        asked = itertools.count()
        made = ahead(str, asked, 2)
        assert next(made) == "0"
        del made  # its threads end
        assert next(asked) == 5


def test_from_a_run_by_the_packages_name(tmp_path):
    """In an own process: the package without its detector loads none of the detector's modules."""
    save_detector(tmp_path / "model.safetensors", untrained())
    image_file(tmp_path / "a.png")
    code = (
        "import sys, frcnn_fast\n"
        "assert not any(name.startswith('frcnn_fast.model') for name in sys.modules)\n"
        "detector = frcnn_fast.Detector(sys.argv[1])\n"
        "print(repr(detector), detector(sys.argv[1] + '/a.png'))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Detector(small, c")
    assert "20 detections" in done.stdout
    with pytest.raises(AttributeError, match="no attribute 'Detectors'"):
        frcnn_fast.Detectors  # noqa: B018
    for parts in ("rpn", "roi_head"):
        with pytest.raises(ValueError, match=r"model: got a detector of which only the .* was trained"):
            Detector(untrained(parts=parts))
    with pytest.raises(ValueError, match="backbone, head: are for a checkpoint"):
        Detector(untrained(), backbone=torch.nn.Identity())
