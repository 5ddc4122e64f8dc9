"""Graph and network: tensors in, tensors out."""
