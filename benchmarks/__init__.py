"""Benchmarks: p4torch against plain layers and against real peers. `python -m benchmarks --help` tells how."""
