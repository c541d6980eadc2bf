"""Every family of mmdetection's models once: inference and one training step with random weights, on the processor.

A family has a process of its own: some leave settings behind, and one that ends badly ends alone.
"""

from __future__ import annotations

import logging
import multiprocessing
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

import frcnn_fast
from bench.compat import models
from frcnn_fast.mmcv.table import SERVED

# Configs of mmdetection: the folder is the family's, and the file a model of it.
FAMILIES = Path(__file__).with_suffix(".txt").read_text().split()


# That cannot be smaller: height and width.
SIZES = {"ssd/ssd300_coco": (300, 300)}


def count_calls() -> Counter[str]:
    """From now on counts the calls of what stands in for mmcv's functions."""
    import mmcv._ext

    calls: Counter[str] = Counter()

    def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls[name] += 1
            return function(*args, **kwargs)

        return call

    for name, served in SERVED.items():
        setattr(mmcv._ext, name, counted(name, served.function))
    return calls


def try_family(name: str, size: tuple[int, int]) -> dict[str, Any]:
    """What comes of inference and of training, "ok" or the error, and which functions were called how often."""
    logging.disable(logging.WARNING)  # every parameter's initialisation
    with frcnn_fast.stand_in_for_mmcv():
        calls = count_calls()
        found: dict[str, Any] = {"config": name}
        size, masks = SIZES.get(name, size), models.wants_masks(name + ".py")
        try:
            model = models.build(name + ".py")
        except Exception as error:
            text = described(error)
            return found | {"inference": text, "training": text, "functions": {}, "seconds": [0.0, 0.0]}

        def infer() -> None:
            model.eval()
            with torch.no_grad():
                model.test_step(models.batch(size, masks=masks))

        def train() -> None:
            models.begin_training(model)
            data = model.data_preprocessor(models.batch(size, seed=1, masks=masks), True)
            loss, _ = model.parse_losses(model(**data, mode="loss"))
            loss.backward()
            if not loss.isfinite():
                raise FloatingPointError(f"the loss is {float(loss)}")

        seconds = []
        for what, step in (("inference", infer), ("training", train)):
            start = time.perf_counter()
            try:
                step()
                found[what] = "ok"
            except Exception as error:
                found[what] = described(error)
            seconds.append(round(time.perf_counter() - start, 1))
        return found | {"functions": dict(sorted(calls.items())), "seconds": seconds}


def described(error: Exception) -> str:
    """One line, with the place where it happened."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = f"{trace.tb_frame.f_globals.get('__name__')}:{trace.tb_lineno}" if trace is not None else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]} ({place})"


def try_all(names: Sequence[str], size: tuple[int, int]) -> list[dict[str, Any]]:
    """One process a family, forked from this one, which has imported everything."""
    with frcnn_fast.stand_in_for_mmcv():
        import mmdet.models  # noqa: F401

    fork = multiprocessing.get_context("fork")
    found = []
    for name in names:
        ours, theirs = fork.Pipe(duplex=False)
        child = fork.Process(target=lambda name=name, to=theirs: to.send(try_family(name, size)), daemon=True)
        child.start()
        theirs.close()
        try:
            entry = ours.recv()
        except EOFError:
            child.join()
            text = f"the process ended with status {child.exitcode}"
            entry = {"config": name, "inference": text, "training": text, "functions": {}, "seconds": [0.0, 0.0]}
        child.join()
        print(f"{name:<64} {entry['inference'][:90]:<4} {entry['training'][:90]}", flush=True)
        found.append(entry)
    return found
