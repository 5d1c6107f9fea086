"""Metrics and reports; nothing here needs a GPU."""
