"""The detector, its weights files and backends."""
