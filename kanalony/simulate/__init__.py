"""Simulated players: the events of their viewers, sent to a collector (client) or written as segments (past)."""
