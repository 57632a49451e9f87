"""Measurements of lossless drafting: `python -m benchmarks.lossless --help`."""
