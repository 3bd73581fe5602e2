"""Benchmarks of kanalony."""
