"""What the properties compute with: factorisations, norms, projections, groups, and options they share."""
