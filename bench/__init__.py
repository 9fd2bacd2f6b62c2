"""Benchmarks and reports; each a module run as `python -m bench.NAME`, with CSV out."""
