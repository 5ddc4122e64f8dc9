"""Preprocessing: from slides to embeddings."""
