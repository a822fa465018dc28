"""Runs that take hours: folders, checkpoints, provenance, jobs in processes, and how they are shown."""
