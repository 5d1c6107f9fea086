"""ROS 2 node around :class:`skd_core.Detector`."""
