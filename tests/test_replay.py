"""Recorded calls, repeated by another interpreter: what the check of aarch64 is made of, on this machine."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from frcnn_fast._extension import extension
from tests.replay_calls import __file__ as script
from tests.replay_calls import differs, restored, stored
from tests.run_aarch64 import record


def replay(calls: Path) -> subprocess.CompletedProcess[str]:
    # Alone: torch is not to be imported, nor anything of this project.
    command = [sys.executable, script, str(extension().__file__), str(calls)]
    return subprocess.run(command, text=True, capture_output=True, cwd=calls.parent)


def test_calls_are_repeated_to_the_bit(tmp_path: Path) -> None:
    calls = tmp_path / "calls.pickle"
    recorder = record(calls, ["top_n", "roi_align"])
    assert {call.function for call in recorder.calls} >= {"top_n", "roi_align_workspace", "roi_align"}
    assert recorder.left_out, "bfloat16"
    done = replay(calls)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(recorder.calls)} passed, 0 failed" in done.stdout

    # One bit of one answer of the last call.
    last = recorder.calls[-1]
    answer = last.after[-1]["array"].reshape(-1).view(np.uint8)
    answer[0] ^= 1
    calls.write_bytes(pickle.dumps([tuple(call) for call in recorder.calls]))
    done = replay(calls)
    assert done.returncode == 1
    assert f"{last.label}: {last.function}, arguments [{len(last.after) - 1}]" in done.stdout


@pytest.mark.parametrize("axes", [(0, 1, 2, 3), (0, 3, 1, 2), (3, 2, 1, 0)])
def test_the_order_in_memory_is_kept(axes: tuple[int, ...]) -> None:
    array = np.arange(120.0).reshape(2, 3, 4, 5).transpose(axes)
    again = restored(pickle.loads(pickle.dumps(stored(array))))
    assert np.array_equal(again, array)
    assert again.strides == array.strides
    assert again.flags.writeable


def test_a_nan_is_a_nan_and_a_zero_has_a_sign() -> None:
    other = np.array([0xFFC00001], np.uint32).view(np.float32)
    assert not differs(np.array([np.nan], np.float32), other)
    assert differs(np.array([0.0]), np.array([-0.0]))
    assert differs(np.array([1, 2]), np.array([1, 3]))
    assert not differs([np.array([True])], [np.array([True])])
