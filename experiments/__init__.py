"""Reproducible comparisons and benchmarks; each module is run with ``python -m``."""
