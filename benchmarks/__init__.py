"""Side-by-side measurements; `python benchmarks/run.py NAME`."""
