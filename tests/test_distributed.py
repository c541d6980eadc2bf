"""Two processes that share every mini-batch, as torchrun starts them."""

import multiprocessing
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import Subset

from frcnn_fast import train
from frcnn_fast._ranks import ALONE, Ranks, ranks
from frcnn_fast.evaluate import evaluate
from frcnn_fast.io import load_checkpoint, read_jsonl
from frcnn_fast.model import build_detector, preset
from frcnn_fast.training import recipe
from frcnn_fast.training.batches import ShuffledForever, TrainingBatches
from tests.small_data import OneClass, digits, write_voc_tree

COUNT = 2
# Nothing is drawn at random: the samples take all anchors and all proposals, and there is no dropout. No normalisation
# sees the batch. All images are of one size, so that a part of a batch is padded as the whole is.
CONFIG = preset(
    "squeezenet1_0", shorter=64, longer=96, anchor_sizes=((16.0, 32.0),), rpn_channels=8, head_channels=16, pool_size=3,
    rpn_batch_size=4000, rpn_positive_fraction=0.5, n_cls=256.0, n_reg=256.0, proposals_train=(200, 40),
    roi_batch_size=400, roi_positive_fraction=0.5, roi_negative_iou_low=0.0,
)  # fmt: skip


def options(**changes):
    settings = {"iterations": 4, "batch_size": 4, "log_every": 1, "warmup": 1, "lr": 0.002, "schedule": "cosine"}
    return recipe("squeezenet1_0", **{**settings, **changes})


def trained(folder, **changes):
    torch.set_num_threads(1)
    data, test = OneClass(digits("train", 12)), OneClass(digits("test", 5))
    if (folder / "config.toml").exists():
        return train.train(data, resume=folder, test=test, progress=False)
    return train.train(
        data, out=folder, config=CONFIG, options=options(**changes), test=test, drawings=0, progress=False
    )  # fmt: skip


def _rank(rank, port, function, arguments, results):
    os.environ |= {
        "RANK": str(rank), "WORLD_SIZE": str(COUNT), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test",
    }  # fmt: skip
    with ranks():  # what the function begins is a part of it: the port serves once
        results.put((rank, function(*arguments)))


def in_two_processes(function, *arguments):
    """What each rank returns."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["frcnn_fast.train", "tests.test_distributed"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    results = context.SimpleQueue()
    processes = [context.Process(target=_rank, args=(r, port, function, arguments, results)) for r in range(COUNT)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(180)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    assert codes == [0] * COUNT
    return [value for _, value in sorted(results.get() for _ in processes)]


def _train_and_tell(folder, changes):
    result = trained(folder, **changes)
    return result.iterations, result.evaluation.map_area, float(result.detector.rpn.cls_logits.weight.sum())


def losses(folder):
    return [{k: v for k, v in r.items() if k.startswith("loss")} for r in read_jsonl(folder / "metrics.jsonl")]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The same training in one process."""
    threads = torch.get_num_threads()
    result = trained(tmp_path_factory.mktemp("alone"))
    torch.set_num_threads(threads)
    return result


def test_two_are_one(alone, tmp_path):
    """Losses and weights are those of one process with the whole batch, but for the rounding of sums in another order:
    in 4 iterations 1e-5 of the largest number of each kind."""
    told = in_two_processes(_train_and_tell, tmp_path / "two", {})
    assert told[0] == told[1]
    assert told[0][0] == 4
    for ours, theirs in zip(losses(tmp_path / "two"), losses(alone.out), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-6)
    ours, theirs = load_checkpoint(tmp_path / "two").tensors, load_checkpoint(alone.out).tensors
    begin = build(CONFIG)
    for name, tensor in theirs.items():
        scale = float((tensor - begin[name]).abs().max())
        assert scale > 0, name
        assert float((ours[name] - tensor).abs().max()) <= 1e-5 * float(tensor.abs().max()) + 1e-3 * scale, name
    assert told[0][1] == pytest.approx(alone.evaluation.map_area, abs=1e-3)


def build(config):
    torch.manual_seed(0)
    return build_detector(["digit"], config).state_dict()


def test_two_go_on_as_if_they_had_never_stopped(tmp_path):
    """The random states of both are kept: with samples and dropout, to the bit."""
    random = preset("small", rpn_channels=8, head_channels=16, pool_size=3, dropout=0.5)
    told = in_two_processes(_in_parts, tmp_path, random)
    assert told[0] == told[1] == (True, True)


def _in_parts(folder, config):
    torch.set_num_threads(1)
    data = OneClass(digits("train", 12))

    def run(name, **more):
        settings = recipe("small", iterations=6, batch_size=4, warmup=1, log_every=1, checkpoint_every=3, keep=2)
        where = {"resume": folder / "cut/checkpoints/000000003.safetensors"} if more else {"out": folder / name}
        where |= {} if more else {"config": config, "options": settings}
        return train.train(data, progress=False, **where).detector.state_dict()

    whole, cut = run("whole"), run("cut")
    again = run("cut", resume=True)
    same = all(torch.equal(whole[name], again[name]) for name in whole)
    return same, all(torch.equal(whole[name], cut[name]) for name in whole)


def _evaluated(detector, data):
    torch.set_num_threads(1)
    result = evaluate(detector, data, progress=False)
    with ranks() as job:
        return result.to_dict(), job.gathered(job.rank)


@pytest.mark.parametrize("length", [5, 1])
def test_an_evaluation_is_shared(alone, length):
    """Each rank looks at its share of the images, and both know the result; one may have nothing to look at."""
    data = OneClass(digits("test", length))
    expected = evaluate(alone.detector, data, progress=False).to_dict()
    assert in_two_processes(_evaluated, alone.detector, data) == [(expected, [0, 1])] * 2


def test_each_rank_gets_its_part_of_every_batch():
    whole = list(ShuffledForever(10, 24, seed=2, batch_size=6))
    parts = [list(ShuffledForever(10, 24, 2, batch_size=6, ranks=Ranks(rank, 3))) for rank in range(3)]
    assert [len(ShuffledForever(10, 24, 2, batch_size=6, ranks=Ranks(rank, 3))) for rank in range(3)] == [8, 8, 8]
    together = [item for k in range(4) for part in parts for item in part[2 * k : 2 * k + 2]]
    assert together == whole
    assert list(ShuffledForever(10, 12, 2, 12, batch_size=6, ranks=Ranks(1, 3))) == parts[1][4:]
    with pytest.raises(ValueError, match="batch_size: got 4, expected a multiple of 3, the number of processes"):
        TrainingBatches(digits("train", 9), CONFIG, options(), ranks=Ranks(0, 3))


def test_one_process_is_alone():
    with ranks() as job:
        assert job == ALONE
        assert job.gathered(5) == [5]
        value = torch.tensor(3)
        assert job.mean(value) is value
    whole = digits("test", 3)
    assert len(Subset(whole, range(0, 3, 2))) == 2


@pytest.mark.skipif(not os.environ.get("FRCNN_LONG"), reason="FRCNN_LONG is not set")
def test_the_commands_under_torchrun(tmp_path):
    root = write_voc_tree(tmp_path / "voc")
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    small = ["--backbone", "small", "--rpn-channels", "8", "--head-channels", "16", "--batch-size", "2"]
    arguments = ["--data-root", str(root), *small, "--iterations", "2", "--out", str(tmp_path / "run")]
    here: Any = {"cwd": Path(__file__).parents[1], "env": {**os.environ, "OMP_NUM_THREADS": "1"}}
    done = subprocess.run([*run, "frcnn_fast.train", *arguments], capture_output=True, text=True, **here)
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("VOC07 mAP ")]
    checkpoint = ["--checkpoint", str(tmp_path / "run")]
    done = subprocess.run([*run, "frcnn_fast.evaluate", *checkpoint], capture_output=True, text=True, **here)
    assert done.returncode == 0, done.stderr
    assert [other for other in done.stdout.splitlines() if other.startswith("VOC07 mAP ")] == [line]
