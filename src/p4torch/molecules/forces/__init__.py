"""Terms of molecular force fields in PyTorch. Lengths in nm, energies in kJ/mol, angles in rad.

Each term says its energy twice: `energy(x)`, x `(..., atoms, 3)`, as one writes it down, which torch differentiates as
often as asked; and `add(x, gradient)`, x `(atoms, 3, batch)`, which adds dE/dx by hand-written formulas in place and
returns the energy `(batch,)`: frames are the last, contiguous axis, so that every operation is a long vector one.
"""
