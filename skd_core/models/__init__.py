"""Backbone, heads, the student (MDN), the teacher (DSN) and the decoding of boxes."""
