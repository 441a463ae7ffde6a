"""The steps of landmark recognition, one module per step, in the order of the data."""
