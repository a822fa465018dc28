"""Boltzmann generators: flows that are trained to draw molecules from their Boltzmann distribution."""
