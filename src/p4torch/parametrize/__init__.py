"""Where perturbations sit in a model: targets, registration with torch's `parametrize`, views, layers, state dicts."""
