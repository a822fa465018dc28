"""Runs of layers of a flow as one node of the autograd graph, with their backward passes written out."""
