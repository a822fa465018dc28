"""Perturbations: what a property is made of. A frozen base A, a trainable B, and the map R_B from one to the weight."""
