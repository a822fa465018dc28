"""Runs on real work, one script each: `python -m examples.recurrent --help`."""
