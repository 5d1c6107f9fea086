"""Comparison of a camera with the training data of the weights."""

from __future__ import annotations

from typing import Any

from skd_core.camera import Camera

MIN_SCALE, MAX_SCALE = 0.2, 2.0
"""Of the image on its way to the network. Above, objects are more blurred than in training. To make a finer image
smaller costs nothing but time (KITTI's is scaled by 0.39 for the bundled weights), within reason."""
MIN_VIEW, MAX_VIEW = 0.5, 1.6
"""Width and height of what the network sees, in units of the training images'."""
MIN_HORIZON, MAX_HORIZON = 0.25, 0.75
"""Height of the principal point, which is the horizon of a level camera, in units of the image's height."""


def differences_from_training(metadata: dict[str, Any], input_size: tuple[int, int], camera: Camera) -> list[str]:
    """Properties of the camera that are outside the range of the training data; [] if there are none.

    Args:
        metadata: of the weights, with "focal" (fx, fy) of the network's input.
        input_size: (width, height) of the training images at the network's input.
        camera: of the image.
    """
    findings = []
    (fx, fy), (width, height) = metadata["focal"], input_size
    scale = max(fx / camera.fx, fy / camera.fy), min(fx / camera.fx, fy / camera.fy)
    if scale[0] > MAX_SCALE or scale[1] < MIN_SCALE:
        findings.append(
            f"focal length {camera.fx:.0f}x{camera.fy:.0f} px: the image is scaled by {fx / camera.fx:.2f} to the "
            f"training focal length of {fx:.0f}x{fy:.0f} px"
        )
    seen = camera.width * fx / camera.fx / width, camera.height * fy / camera.fy / height
    if min(seen) < MIN_VIEW or max(seen) > MAX_VIEW:
        findings.append(
            f"size {camera.width}x{camera.height} px: the field of view is {seen[0]:.1f} times as wide and "
            f"{seen[1]:.1f} times as high as in training"
        )
    if not MIN_HORIZON <= camera.cy / camera.height <= MAX_HORIZON:
        findings.append(f"horizon: the principal point is at {camera.cy / camera.height:.0%} of the image's height")
    return findings
