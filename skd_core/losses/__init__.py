"""The losses of METHOD 6, one a file."""
