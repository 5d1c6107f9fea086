"""Data sets and what happens to them: image, camera, boxes and depth always move together."""
