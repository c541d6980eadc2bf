"""Benchmarks: `python -m bench` measures, `python -m bench.report` draws, `python -m bench.profile` looks inside."""
