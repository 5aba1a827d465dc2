"""This pool beside others: ``python -m benchmarks --help``."""
