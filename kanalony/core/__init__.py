"""The compiled modules: records, frames, journals, query strings, JSON, redaction, columns."""
