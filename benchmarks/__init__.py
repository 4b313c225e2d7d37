"""Benchmarks. Run one as a module, `python -m benchmarks.latency`; its last line is JSON."""
