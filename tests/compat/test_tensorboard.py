"""Records of a training, as the real TensorBoard reads them."""

import pytest

from frcnn_fast import train
from frcnn_fast.io import read_jsonl
from frcnn_fast.model import preset
from frcnn_fast.training import recipe
from tests.small_data import digits

reader = pytest.importorskip(
    "tensorboard.backend.event_processing.event_accumulator", reason="tensorboard (make test-compat)"
)


def test_every_record_is_there(tmp_path):
    options = recipe("small", iterations=4, batch_size=1, log_every=2, tensorboard=True)
    train.train(digits("train", 8), out=tmp_path, config=preset("small"), options=options, progress=False)
    (file,) = tmp_path.rglob("events.*")
    events = reader.EventAccumulator(str(file.parent)).Reload()
    records = read_jsonl(tmp_path / "metrics.jsonl")
    assert [record["iteration"] for record in records] == [2, 4]
    for name in ("loss", "loss_objectness", "lr"):
        found = [(scalar.step, scalar.value) for scalar in events.Scalars(name)]
        assert found == [(record["iteration"], pytest.approx(record[name])) for record in records]
