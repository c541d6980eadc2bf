"""top_n beyond the conformance suite: bad input, arrays, threads, scores that mislead its sample."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from frcnn_fast import ops, reference


def expected(scores: torch.Tensor, n: int) -> list[torch.Tensor]:
    return [torch.from_numpy(a) for a in reference.top_n(scores.numpy(), n)]


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"scores: expected shape \[B, N\], got float32\[5\]"):
        ops.top_n(torch.zeros(5), 2)
    with pytest.raises(TypeError, match="scores: expected float16, bfloat16, float32 or float64"):
        ops.top_n(torch.zeros(1, 5, dtype=torch.int32), 2)
    with pytest.raises(ValueError, match="n: expected a number of at least 0, got -1"):
        ops.top_n(torch.zeros(1, 5), -1)
    with pytest.raises(TypeError, match="n: expected a whole number"):
        ops.top_n(torch.zeros(1, 5), 2.5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="scores: expected a tensor"):
        ops.top_n([[1.0, 2.0]], 1)  # type: ignore[arg-type]


def test_numpy_arrays_come_back_as_arrays() -> None:
    values, indices, counts = ops.top_n(np.array([[1.0, 3.0, np.nan, 2.0]], np.float32), 5)
    assert isinstance(values, np.ndarray)
    assert values.tolist() == [[3.0, 2.0, 1.0, 0.0, 0.0]]
    assert indices.tolist() == [[1, 3, 0, -1, -1]]
    assert counts.tolist() == [3]


def test_scores_that_require_a_gradient_are_taken_without_one() -> None:
    values, _, _ = ops.top_n(torch.randn(2, 10, requires_grad=True), 3)
    assert not values.requires_grad


@pytest.mark.parametrize("N", [1000, 20000])
def test_the_number_of_threads_changes_nothing(N: int) -> None:
    scores = torch.randint(-50, 50, (9, N), generator=torch.Generator().manual_seed(1)).float()
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 4):
            torch.set_num_threads(count)
            for got, want in zip(ops.top_n(scores, 700), expected(scores, 700)):
                assert torch.equal(got, want), f"{count} threads"
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("kind", ["crowded high end", "one outlier", "two values", "steps", "sample of one kind"])
def test_fields_that_a_sample_misjudges(kind: str) -> None:
    """The selection guesses ranges from a sample; what the sample cannot know must not change the answer."""
    g = torch.Generator().manual_seed(2)
    N = 40000
    scores = torch.randn(1, N, generator=g) * 1e-3
    if kind == "crowded high end":
        scores[0, 17000:22000] = 5.0 + torch.rand(5000, generator=g) * 1e-4
    elif kind == "one outlier":
        scores[0, 31] = 1e30
    elif kind == "two values":
        scores = (torch.rand(1, N, generator=g) < 0.5).float()
    elif kind == "steps":
        scores = (torch.arange(N) // 3000 % 5).float()[None]
    else:
        scores[0, ::7] += 100.0
    for n in (1, 900, 5000, 29000):
        for got, want in zip(ops.top_n(scores, n), expected(scores, n)):
            assert torch.equal(got, want), f"n = {n}"
