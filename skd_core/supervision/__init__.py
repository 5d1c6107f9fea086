"""What stands in for 3D labels: class sizes, depth sources, pseudo-targets."""
