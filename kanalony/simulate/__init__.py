"""Simulated players: what they do (viewers) and how they send it (client)."""
