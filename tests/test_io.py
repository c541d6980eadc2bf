"""Files that must survive a crash."""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import pickle
import stat
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from frcnn_fast.io import (
    append_jsonl,
    atomic_path,
    load_checkpoint,
    load_weights,
    read_jsonl,
    save_checkpoint,
    write_json,
)


def save(path: Path, value: float) -> None:
    save_checkpoint(path, {"a": torch.full((1000,), value)}, class_names=["cat"], config={"width": 3})


class TestAtomic:
    def test_writes_makes_folders_and_leaves_nothing_beside(self, tmp_path):
        path = tmp_path / "runs" / "first" / "note.txt"
        with atomic_path(path) as beside:
            assert beside.suffix == ".txt"
            assert beside.parent == path.parent
            beside.write_text("new")
            assert not path.exists()
        assert path.read_text() == "new"
        assert os.listdir(path.parent) == ["note.txt"]

    @pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
    def test_an_error_keeps_the_old_file(self, tmp_path, error):
        path = tmp_path / "note.txt"
        path.write_text("old")

        def write_half():
            with atomic_path(path) as beside:
                beside.write_text("half")
                raise error

        with pytest.raises(error):
            write_half()
        assert path.read_text() == "old"
        assert os.listdir(tmp_path) == ["note.txt"]

    def test_a_disk_that_is_full_at_the_flush_keeps_the_old_file(self, tmp_path, monkeypatch):
        path = tmp_path / "model.safetensors"
        save(path, 1)

        def full(_handle):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            save(path, 2)
        assert os.listdir(tmp_path) == ["model.safetensors"]
        assert (load_checkpoint(path).tensors["a"] == 1).all()

    def test_a_disk_that_fills_up_while_writing_keeps_the_old_file(self, tmp_path):
        code = """
import resource, sys, torch
from frcnn_fast.io import save_checkpoint, write_json
def save(count, value):
    save_checkpoint(sys.argv[1], {"a": torch.full((count,), value)}, class_names=["cat"], config={})
save(10, 1.0)
write_json(sys.argv[2], "old")
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
for write in (lambda: save(30_000, 2.0), lambda: save(3_000_000, 3.0), lambda: write_json(sys.argv[2], "x" * 200_000)):
    try:
        write()
    except OSError as error:
        print(error)
    else:
        raise AssertionError("the limit did not hold")
"""
        paths = [str(tmp_path / name) for name in ("model.safetensors", "note.json")]
        done = subprocess.run(
            [sys.executable, "-c", code, *paths], capture_output=True, text=True, check=True, timeout=600
        )
        assert done.stdout.count(f"{paths[0]}: the checkpoint could not be written") == 2
        assert sorted(os.listdir(tmp_path)) == ["model.safetensors", "note.json"]
        assert load_checkpoint(paths[0]).tensors["a"].tolist() == [1.0] * 10
        assert json.loads(Path(paths[1]).read_text()) == "old"

    def test_permissions_are_those_of_any_new_file(self, tmp_path):
        save(tmp_path / "model.safetensors", 1)
        (tmp_path / "plain").touch()
        modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
        assert len(modes) == 1


class TestJson:
    def test_numbers_of_every_kind(self, tmp_path):
        value = {
            "tensor": torch.tensor([1, 2]),
            "array": np.array([0.5]),
            "scalar": np.float32(0.25),
            "nan": math.nan,
            "deep": [(1, -math.inf)],
            "path": Path("a"),
            3: "ü",
        }
        write_json(tmp_path / "a.json", value)
        text = (tmp_path / "a.json").read_text(encoding="utf-8")
        assert json.loads(text) == {
            "tensor": [1, 2],
            "array": [0.5],
            "scalar": 0.25,
            "nan": None,
            "deep": [[1, None]],
            "path": "a",
            "3": "ü",
        }

    def test_records(self, tmp_path):
        path = tmp_path / "metrics.jsonl"
        append_jsonl(path, {"iteration": 1, "loss": torch.tensor(0.5)})
        append_jsonl(path, {"iteration": 2, "loss": math.inf})
        assert read_jsonl(path) == [{"iteration": 1, "loss": 0.5}, {"iteration": 2, "loss": None}]

    def test_a_torn_last_line_is_passed_over(self, tmp_path):
        path = tmp_path / "metrics.jsonl"
        path.write_text('{"a": 1}\n\n{"a": 2')
        assert read_jsonl(path) == [{"a": 1}]
        path.write_text('{"a": 1}\n{"a": 2}')
        assert read_jsonl(path) == [{"a": 1}, {"a": 2}]

    def test_a_line_torn_inside_a_letter(self, tmp_path):
        path = tmp_path / "metrics.jsonl"
        path.write_bytes('{"a": 1}\n{"a": "ó'.encode()[:-1])
        assert read_jsonl(path) == [{"a": 1}]

    def test_file_names_that_are_no_utf_8_come_back_as_they_were(self, tmp_path):
        name = os.fsdecode(b"caf\xe9 \xff.jpg")
        append_jsonl(tmp_path / "a.jsonl", {"image": name, "class": "ratón"})
        write_json(tmp_path / "a.json", {name: Path(name)})
        assert read_jsonl(tmp_path / "a.jsonl") == [{"image": name, "class": "ratón"}]
        assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {name: name}
        assert "ratón".encode() in (tmp_path / "a.jsonl").read_bytes()

    def test_a_mark_of_another_systems_editor(self, tmp_path):
        (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n')
        assert read_jsonl(tmp_path / "a.jsonl") == [{"a": 1}]

    @pytest.mark.parametrize("bad", ["{", "[1]", "7", "[" * 100_000, "9" * 5000])
    def test_a_broken_line_is_named(self, tmp_path, bad):
        path = tmp_path / "metrics.jsonl"
        path.write_text(f'{{"a": 1}}\n{bad}\n{{"a": 2}}\n')
        with pytest.raises(ValueError, match=r"metrics\.jsonl:2: .*remove the line"):
            read_jsonl(path)
        with pytest.raises(ValueError, match=r"gone\.jsonl: cannot be read"):
            read_jsonl(tmp_path / "gone.jsonl")


class TestCheckpoint:
    def test_round_trip(self, tmp_path):
        shared = torch.arange(6.0)
        tensors = {
            "weight": torch.nn.Parameter(shared.reshape(2, 3)),
            "tied": shared,
            "transposed": torch.arange(6.0).reshape(2, 3).t(),
            "half": torch.ones(2, dtype=torch.bfloat16),
            "count": torch.tensor(3),
            "empty": torch.zeros(0, 4),
        }
        path = tmp_path / "model.safetensors"
        save_checkpoint(
            path,
            tensors,
            class_names=["cat", "dög"],
            config={"backbone": "small", "sizes": (18, 30)},
            extra={"iteration": 7},
        )
        for place in (path, tmp_path):  # the file, or the folder of the run
            checkpoint = load_checkpoint(place)
            assert checkpoint.class_names == ["cat", "dög"]
            assert checkpoint.config == {"backbone": "small", "sizes": [18, 30]}
            assert checkpoint.extra == {"iteration": 7}
            assert checkpoint.tensors.keys() == tensors.keys()
            for name, tensor in tensors.items():
                assert torch.equal(checkpoint.tensors[name], tensor), name
                assert checkpoint.tensors[name].dtype == tensor.dtype
        assert torch.equal(load_weights(path)["tied"], shared)

    def test_other_files_are_refused_by_name(self, tmp_path):
        from safetensors.torch import save_file

        path = tmp_path / "model.safetensors"
        with pytest.raises(ValueError, match=r"model\.safetensors: no such file"):
            load_checkpoint(tmp_path)
        path.write_bytes(b"no tensors here")
        with pytest.raises(ValueError, match=r"model\.safetensors: not a readable safetensors file"):
            load_checkpoint(path)
        save(path, 1)
        path.write_bytes(path.read_bytes()[:-4])
        with pytest.raises(ValueError, match="not a readable safetensors file"):
            load_checkpoint(path)
        save_file({"a": torch.ones(2)}, path)
        with pytest.raises(ValueError, match="not a checkpoint of frcnn_fast"):
            load_checkpoint(path)
        save_file({"a": torch.ones(2)}, path, metadata={"format": "frcnn_fast checkpoint 1", "config": "{"})
        with pytest.raises(ValueError, match="description of the model is broken"):
            load_checkpoint(path)


class Sly:
    """Makes a folder when it is unpickled, by a function of its own module."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return make_folder, (str(self.folder),)


def make_folder(name):
    os.mkdir(name)


class TestWeights:
    tensors = {"a.weight": torch.arange(4.0), "b": torch.ones(2, 2)}  # noqa: RUF012

    def check(self, loaded):
        assert loaded.keys() == self.tensors.keys()
        assert all(torch.equal(loaded[name], tensor) for name, tensor in self.tensors.items())

    def test_every_kind(self, tmp_path):
        from safetensors.torch import save_file

        save_file(self.tensors, tmp_path / "w.safetensors")
        arrays: dict[str, Any] = {name: tensor.numpy() for name, tensor in self.tensors.items()}
        np.savez(tmp_path / "w.npz", **arrays)
        torch.save(self.tensors, tmp_path / "w.pth")
        torch.save({"state_dict": self.tensors, "epoch": 3}, tmp_path / "nested.pt")
        torch.save({f"module.{name}": tensor for name, tensor in self.tensors.items()}, tmp_path / "parallel.pth")
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            data = pickle.dumps({"model": arrays, "__author__": "somebody", "n": np.float32(3)}, protocol)
            (tmp_path / f"zoo{protocol}.pkl").write_bytes(data)
            # As NumPy before version 2 names its modules.
            older = data.replace(b"numpy._core", b"numpy.core")
            if protocol < 4:  # later ones give lengths
                (tmp_path / f"older{protocol}.pkl").write_bytes(older)
        for path in tmp_path.iterdir():
            self.check(load_weights(path))

    def test_code_in_a_file_is_never_run(self, tmp_path):
        class Evil:
            def __reduce__(self):
                return os.mkdir, (str(tmp_path / "owned"),)

        torch.save({"a": Evil()}, tmp_path / "evil.pth")
        np.savez(tmp_path / "evil.npz", a=np.array([Evil()], dtype=object))
        (tmp_path / "evil.pkl").write_bytes(pickle.dumps({"model": {"a": Evil()}}))
        (tmp_path / "objects.pkl").write_bytes(pickle.dumps({"model": {"a": np.array([Evil()], dtype=object)}}))
        for name in ("evil.pth", "evil.npz", "evil.pkl", "objects.pkl"):
            with pytest.raises(ValueError, match=name):
                load_weights(tmp_path / name)
        # Beside the tensors: refused where torch knows the module to be dangerous, else a record that nobody calls.
        torch.save({"state_dict": self.tensors, "options": Evil()}, tmp_path / "beside.pth")
        with pytest.raises(ValueError, match="holds more than tensors"):
            load_weights(tmp_path / "beside.pth")
        torch.save({"state_dict": self.tensors, "options": Sly(tmp_path / "owned")}, tmp_path / "sly.pth")
        self.check(load_weights(tmp_path / "sly.pth"))
        assert not (tmp_path / "owned").exists()

    def test_what_training_scripts_keep_beside_the_tensors(self, tmp_path):
        """Options, records and numbers of classes that this process may not even have."""
        beside = {
            "args": argparse.Namespace(lr=0.1, names=["a"]),
            "history": OrderedDict(loss=[np.float64(0.5), np.arange(3)]),
            "clock": datetime.timedelta(seconds=3),
            "path": Path("runs"),
            "optimizer": {"state": {0: {"momentum_buffer": torch.zeros(2)}}},
        }
        torch.save({"model": self.tensors, **beside}, tmp_path / "run.pth")
        self.check(load_weights(tmp_path / "run.pth"))

    def test_bad_files_are_named(self, tmp_path):
        for suffix in (".pth", ".pt", ".pkl", ".npz", ".safetensors"):
            path = tmp_path / f"broken{suffix}"
            with pytest.raises(ValueError, match=rf"broken\{suffix}: no such file"):
                load_weights(path)
            for content in (b"", b"not weights", b"PK\x03\x04 neither"):
                path.write_bytes(content)
                with pytest.raises(ValueError, match=rf"broken\{suffix}: "):
                    load_weights(path)
        torch.save([1, 2], tmp_path / "list.pth")
        with pytest.raises(ValueError, match="expected a state_dict"):
            load_weights(tmp_path / "list.pth")
        (tmp_path / "weights.bin").write_bytes(b"x")
        with pytest.raises(ValueError, match=r"must be a \.safetensors, \.npz, \.pth, \.pt or \.pkl file"):
            load_weights(tmp_path / "weights.bin")
