"""The paper's experiments, run from the repository's root: `python -m experiments density`, `linear`, `patches`."""
