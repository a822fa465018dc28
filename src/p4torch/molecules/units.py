"""The constant that turns kelvin into energies."""

from __future__ import annotations

#: R in kJ/mol/K (CODATA 2018, exact): kT of one mole is R T.
GAS_CONSTANT = 0.00831446261815324
