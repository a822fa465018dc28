"""A density in 63 dimensions: patches of two photographs, one flow, and the ways to train its linear layers."""
