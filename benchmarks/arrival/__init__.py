"""Does training with p4torch's defaults arrive? `python -m benchmarks.arrival --help` tells how it is asked."""
