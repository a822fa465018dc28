"""Experiments: what the library is proved on. Each makes a run folder and is started from the command line."""
