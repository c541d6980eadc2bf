"""Runs that were interrupted go on to the same weights, to the bit."""

import dataclasses
import functools
import multiprocessing
import os
import random
import shutil
import signal
import time

import pytest
import torch
from torch import nn

from frcnn_fast import train
from frcnn_fast.data import DigitsDetection
from frcnn_fast.io import atomic_path, load_checkpoint, read_jsonl, read_tensors
from frcnn_fast.model import build_detector, preset
from frcnn_fast.model.losses import ROI_LOSSES, RPN_LOSSES
from frcnn_fast.training import Training, fit, make_optimizer, recipe
from frcnn_fast.training.batches import ShuffledForever, TrainingBatches
from frcnn_fast.training.checkpoints import Checkpoints, State, read_state
from frcnn_fast.training.optim import load_optimizer, optimizer_tensors
from frcnn_fast.training.randomness import drawn_anew, load_random, random_tensors
from frcnn_fast.training.schemes import SCHEMES, Stage
from tests.small_data import write_voc_tree

KILLS = 100 if os.environ.get("FRCNN_LONG") else 3
CONFIG = preset("small", rpn_channels=8, head_channels=16, pool_size=3, dropout=0.5)


def quick(**changes):
    settings = {"iterations": 12, "batch_size": 2, "log_every": 2, "checkpoint_every": 3, "warmup": 2, "flips": True}
    return recipe("small", **{**settings, **changes})


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Speckled:
    """Digits with noise that is drawn whenever an item is read, from all three generators."""

    def __init__(self, length=7):
        self.dataset = DigitsDetection("train", length=length, size=(128, 128))
        self.class_names = self.dataset.class_names
        self.read = []

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        import numpy as np

        self.read.append(index)
        image, target = self.dataset[index]
        noise = torch.randint(0, 9, image.shape) + random.randrange(9) + int(np.random.randint(9))
        return (image // 2 + noise).to(torch.uint8), target


def trained(out, dataset=None, **changes):
    return train.train(dataset or Speckled(), out=out, config=CONFIG, options=quick(**changes), progress=False)


def same(first, second):
    """The weights of two runs, and their records but for the speed."""

    def records(folder):
        return [{k: v for k, v in r.items() if k != "images_per_second"} for r in read_jsonl(folder / "metrics.jsonl")]

    ours, theirs = load_checkpoint(first), load_checkpoint(second)
    assert ours.extra == theirs.extra
    assert ours.tensors.keys() == theirs.tensors.keys()
    different = [name for name in ours.tensors if not torch.equal(ours.tensors[name], theirs.tensors[name])]
    assert not different
    assert records(first) == records(second)


class Stopped(Exception):
    pass


def stop_at(iteration, record):
    if record["iteration"] >= iteration:
        raise Stopped


# Killed at any moment.


def _endless(folder, workers):
    """In a child process: begin the run, or go on with it."""
    torch.set_num_threads(1)
    options = dataclasses.replace(quick(iterations=24), workers=workers)
    if (folder / "config.toml").exists():
        train.train(Speckled(), resume=folder, options=options, progress=False)
    else:
        train.train(Speckled(), out=folder, config=CONFIG, options=options, progress=False)


@pytest.mark.parametrize("workers", [0, 1])
def test_killed_at_random_moments(workers, tmp_path):
    """SIGKILL after a random time, again and again, until enough kills have met a process at work."""
    # A fork of a process that has imported everything begins at once.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["frcnn_fast.train", "tests.test_resume"])
    kills = KILLS if workers == 0 else max(1, KILLS // 10)
    whole, moments, killed, number = tmp_path / "whole", random.Random(workers), 0, 0
    begin = time.monotonic()
    _endless(whole, workers)
    seconds = time.monotonic() - begin
    while killed < kills:
        folder, number = tmp_path / f"run-{number}", number + 1
        finished = False
        while not finished:
            process = context.Process(target=_endless, args=(folder, workers))
            process.start()
            process.join(moments.uniform(0.0, 1.2 * seconds) if killed < kills else 120)
            if process.is_alive():
                os.kill(process.pid, signal.SIGKILL)
                process.join()
                killed += 1
            else:
                assert process.exitcode == 0
                finished = True
        same(whole, folder)
        assert not list(folder.rglob(".*"))
        shutil.rmtree(folder)


# Stopped between two iterations.


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_an_exception_anywhere_costs_nothing(optimizer, tmp_path):
    whole = trained(tmp_path / "whole", optimizer=optimizer)
    with pytest.raises(Stopped):
        train.train(
            Speckled(), out=tmp_path / "run", config=CONFIG, options=quick(optimizer=optimizer), progress=False,
            callback=functools.partial(stop_at, 8),
        )  # fmt: skip
    assert [r["iteration"] for r in read_jsonl(tmp_path / "run/metrics.jsonl")] == [2, 3, 4, 6, 8]
    dataset = Speckled()
    again = train.train(dataset, resume=tmp_path / "run", progress=False)
    assert again.out == tmp_path / "run"
    same(whole.out, again.out)
    # Iterations 7 to 12, two images each: what came before is not read again.
    order = [item.image % 7 for item in ShuffledForever(14, 24, seed=0)]
    assert dataset.read[-12:] == order[12:]


def test_a_run_without_a_checkpoint_begins_again(tmp_path):
    whole = trained(tmp_path / "whole")
    with pytest.raises(Stopped):
        train.train(
            Speckled(), out=tmp_path / "run", config=CONFIG, options=quick(), progress=False,
            callback=functools.partial(stop_at, 1),
        )  # fmt: skip
    assert not (tmp_path / "run/checkpoints").exists()
    same(whole.out, train.train(Speckled(), resume=tmp_path / "run", progress=False).out)


def test_halves_of_files_that_a_kill_left_are_removed(tmp_path):
    run, folder = trained(tmp_path / "run"), tmp_path / "again"
    shutil.copytree(run.out, folder)
    (folder / ".hidden.txt").write_text("the user's")
    (folder / "drawings").mkdir()
    (folder / "checkpoints/.tmpY8PDrq").touch()
    for path in (folder / "loss.png", folder / "drawings/a.jpg", folder / "checkpoints/000000012.safetensors"):
        with atomic_path(path.with_name("lost" + path.suffix)) as beside:
            shutil.copy(beside, tmp_path)
        shutil.move(tmp_path / beside.name, beside)
        path.with_name("lost" + path.suffix).unlink()
    train.train(Speckled(), resume=folder, progress=False)
    assert [file.name for file in folder.rglob(".*")] == [".hidden.txt"]
    same(run.out, folder)


def test_a_finished_run_stays_as_it_is(tmp_path):
    run = trained(tmp_path / "run")
    shutil.copytree(run.out, tmp_path / "again")
    (tmp_path / "again/model.safetensors").unlink()  # as if it was killed before this was written
    again = train.train(Speckled(), resume=tmp_path / "again", progress=False)
    assert again.iterations == 12
    same(run.out, again.out)


def test_from_an_earlier_checkpoint(tmp_path):
    whole = trained(tmp_path / "whole", keep=3)
    shutil.copytree(whole.out, tmp_path / "run")
    files = Checkpoints(tmp_path / "run/checkpoints").files()
    assert [int(file.stem) for file in files] == [3, 6, 9, 12]
    same(whole.out, train.train(Speckled(), resume=files[1], progress=False).out)


def test_every_stage_has_its_own_optimiser(monkeypatch):
    """Stopped in each of two stages: the weights are those of a training in one go."""
    stages = [Stage(RPN_LOSSES, ("backbone", "rpn"), 3), Stage(ROI_LOSSES, ("roi_head",), 4)]
    monkeypatch.setitem(SCHEMES, "approximate-joint", lambda iterations: stages)
    options, dataset = quick(log_every=1, checkpoint_every=1), Speckled()

    def training():
        torch.manual_seed(0)
        return Training(build_detector(dataset.class_names, CONFIG), options, torch.device("cpu"))

    def run(one, end=None):
        def batches(done, left):
            return TrainingBatches(dataset, CONFIG, options, total=left, start=done)

        states = []
        fit(one, batches, log=lambda r: r["iteration"] == end, save=lambda: states.append(one.state()))
        return states[-1]

    whole = run(training())
    assert (whole.facts["stage"], whole.facts["iteration"]) == (1, 4)
    for end in (2, 3, 5):
        state = run(training(), end)
        again = training()
        torch.rand(5)
        again.restore(state)
        assert again.done == end
        last = run(again)
        assert last.tensors.keys() == whole.tensors.keys()
        assert all(torch.equal(last.tensors[name], whole.tensors[name]) for name in whole.tensors), end


# Parts.


def test_the_order_can_be_entered_anywhere():
    whole = list(ShuffledForever(5, 23, seed=3))
    assert [item.place for item in whole] == list(range(23))
    for start in range(23):
        assert list(ShuffledForever(5, 23 - start, 3, start)) == whole[start:]


def test_random_states():
    import numpy as np

    def draw():
        numbers = np.random.rand(), np.random.randn(), torch.rand(1)
        return random.random(), random.gauss(0, 1), *map(float, numbers)

    draw()
    states = random_tensors(torch.device("cpu"))
    first = draw()
    load_random(states, torch.device("cpu"))
    with drawn_anew(1, 2):
        inside = draw()
    assert draw() == first
    with drawn_anew(1, 2):
        assert draw() == inside
    with drawn_anew(1, 3):
        assert draw() != inside


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_momenta_lie_in_memory_as_their_weights_do(optimizer):
    conv = nn.Sequential(nn.Conv2d(3, 4, 3)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    one = make_optimizer(conv, recipe("small", optimizer=optimizer))
    conv(torch.rand(1, 3, 5, 5)).sum().backward()
    one.step()
    two = make_optimizer(conv, recipe("small", optimizer=optimizer))
    load_optimizer(two, {name: tensor.contiguous() for name, tensor in optimizer_tensors(one).items()})
    for parameter in conv.parameters():
        for name, tensor in one.state[parameter].items():
            assert torch.equal(two.state[parameter][name], tensor)
            assert two.state[parameter][name].stride() == tensor.stride()
    with pytest.raises(ValueError, match=r"optimizer: 7\.momentum_buffer has no place"):
        load_optimizer(two, {"7.momentum_buffer": torch.zeros(3)})


# Checkpoints.


def a_state(done):
    return State(done, {"model.weight": torch.arange(6.0).view(2, 3) * done}, {"stage": 0, "iteration": done})


def test_the_last_ones_are_kept(tmp_path):
    kept = Checkpoints(tmp_path / "c", keep=2)
    assert kept.load() is None
    for done in (5, 10, 15, 1000):
        kept.save(a_state(done))
    assert [int(file.stem) for file in kept.files()] == [10, 15, 1000]
    state = kept.load()
    assert state.done == 1000
    assert state.facts == a_state(1000).facts
    assert torch.equal(state.part("model")["weight"], a_state(1000).tensors["model.weight"])
    kept.cut_back(12)
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["000000010.safetensors"]
    none = Checkpoints(tmp_path / "d", keep=0)
    none.save(a_state(1))
    none.save(a_state(2))
    assert [int(file.stem) for file in none.files()] == [2]


@pytest.mark.parametrize("damage", ["cut", "bit", "metadata", "empty"])
def test_a_corrupt_one_is_refused_and_the_last_good_one_named(damage, tmp_path):
    kept = Checkpoints(tmp_path, keep=3)
    files = [kept.save(a_state(done)) for done in (5, 10, 15)]
    data = bytearray(files[2].read_bytes())
    if damage == "bit":
        data[-3] ^= 1
    if damage == "metadata":
        data = data.replace(b'"iteration\\": 15', b'"iteration\\": 14')
    files[2].write_bytes({"cut": data[:-5], "empty": b""}.get(damage, data))
    files[1].write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match=rf"000000015\.safetensors: .*; the last good one is {files[0]}: resume from"):
        kept.load()
    assert read_state(files[0]).done == 5
    files[0].unlink()
    with pytest.raises(ValueError, match=r"000000015\.safetensors: .*; and no earlier one is whole"):
        kept.load()


def test_a_checkpoint_of_something_else_is_refused(tmp_path):
    run = trained(tmp_path / "run", iterations=2)
    with pytest.raises(ValueError, match=r"model\.safetensors: not a training state"):
        read_state(run.out / "model.safetensors")
    path = run.out / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 64
    path.write_bytes(data)
    with pytest.raises(ValueError, match="checksum"):
        read_tensors(path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "out: got nothing, expected the folder of the run"),
        ({"resume": "nowhere"}, "resume: nowhere has no run that began"),
        ({"out": "x", "resume": "RUN"}, "out, config, weights, overwrite: a resumed run has its own"),
        ({"resume": "RUN", "options": quick(iterations=2, lr=0.5)}, r"lr: got 0\.5, but the run that is resumed"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, message, tmp_path):
    run = trained(tmp_path / "run", iterations=2)
    arguments = {name: run.out if value == "RUN" else value for name, value in arguments.items()}
    with pytest.raises(ValueError, match=message):
        train.train(Speckled(), **arguments)


def test_the_command(tmp_path, capsys):
    root = write_voc_tree(tmp_path / "voc")
    small = ["--backbone", "small", "--rpn-channels", "8", "--head-channels", "16", "--batch-size", "1"]
    arguments = ["--data-root", str(root), *small, "--iterations", "2", "--drawings", "0", "--checkpoint-every", "1"]
    assert train.main([*arguments, "--out", str(tmp_path / "run")]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    weights = load_checkpoint(tmp_path / "run").tensors
    records = read_jsonl(tmp_path / "run/metrics.jsonl")
    assert train.main(["--resume", str(tmp_path / "run/checkpoints/000000001.safetensors"), "--workers", "1"]) == 0
    output, errors = capsys.readouterr()
    assert "resumed after 1 of 2 iterations" in errors
    assert output.splitlines()[-1] == last
    again = load_checkpoint(tmp_path / "run")
    assert again.config["rpn_channels"] == 8
    assert again.extra["data"]["data_root"] == str(root)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in again.tensors.items())
    assert [r.keys() for r in read_jsonl(tmp_path / "run/metrics.jsonl")] == [r.keys() for r in records]
    with pytest.raises(SystemExit):
        train.main(["--resume", str(tmp_path / "run"), "--backbone", "vgg16"])
    assert "--resume: the run has its own folder, data, detector and weights" in capsys.readouterr().err
