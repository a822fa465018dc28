"""A report on a molecule as one HTML page that opens without a network: findings, figures, tables, structures in 3D."""

from p4torch.molecules.report.contents import Finding, Molecule, Page, Plot, Table
from p4torch.molecules.report.page import write_page

__all__ = ["Finding", "Molecule", "Page", "Plot", "Table", "write_page"]
