"""Tools: train, predict, evaluate."""
