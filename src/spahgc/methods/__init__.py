"""Methods: predictors of expression from embeddings and positions, and their registry."""
