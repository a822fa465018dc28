"""Molecules: their physics, coordinates and reference data. Lengths in nm, energies in kJ/mol or kT, angles in rad."""
