"""The jobs: what runs. `python -m beam_pipeline --help`."""

__version__ = "0.1.0"
