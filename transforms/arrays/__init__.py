"""Functions over NumPy arrays alone: nearest neighbours, matching, exact products, quantization."""
