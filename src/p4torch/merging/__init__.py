"""Merges: when they happen, several sites in one transaction, and what becomes of the optimizer's memory."""
