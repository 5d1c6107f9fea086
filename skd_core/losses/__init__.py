"""The losses (method: Losses), one a file."""
