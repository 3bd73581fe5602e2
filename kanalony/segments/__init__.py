"""Journals and segments, the files between collector and compaction: docs/segment-format.md."""
