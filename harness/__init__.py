"""Runs the real collector in a subprocess, for tests, benchmarks and the demo."""
