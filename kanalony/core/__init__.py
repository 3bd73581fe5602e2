"""The compiled core: records, frames, journals, query strings, JSON, redaction, columns."""
