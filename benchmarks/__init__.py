"""Benchmarks: run them as modules, `python -m benchmarks.latency`; one JSON line comes last."""
