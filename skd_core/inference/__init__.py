"""The detector as users run it, its weights file and its speed."""
