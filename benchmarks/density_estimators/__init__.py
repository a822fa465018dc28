"""One-line density estimators against those of zuko and nflows, with their defaults."""
