"""Order of frames: none is processed twice, and outputs keep the order of the stamps."""

from __future__ import annotations

import time

from skd_wm3d_ros.rejection import Rejection

LATE = 500_000_000  # nanoseconds; further back, the clock was set back or a bag begins again
RESEND_INTERVAL = 2.0  # seconds; the same stamp after that is a frame sent again on purpose


class FrameOrder:
    """Admits the frames of one camera."""

    def __init__(self) -> None:
        self._stamp: int | None = None
        self._time = 0.0

    def admit(self, stamp: int) -> bool:
        """Take the frame of a stamp in nanoseconds for the newest.

        Returns:
            whether time went back: a bag begins again, or the clock was set back.

        Raises:
            Rejection: it has no stamp, it was processed already, or a newer one was.
        """
        if stamp == 0:  # TF would take it for "the latest"
            raise Rejection(
                "stamp", "the image's stamp is 0: the camera's driver does not set header.stamp, make it do so"
            )
        now = time.monotonic()
        if self._stamp is not None:
            if stamp == self._stamp and now - self._time < RESEND_INTERVAL:
                raise Rejection(
                    "repeated", f"two images with the stamp {stamp / 1e9:.9f} s: do two nodes publish them?"
                )
            if self._stamp - LATE < stamp < self._stamp:
                raise Rejection(
                    "late", f"the image of {stamp / 1e9:.9f} s came after that of {self._stamp / 1e9:.9f} s"
                )
        went_back = self._stamp is not None and stamp < self._stamp
        self._stamp, self._time = stamp, now
        return went_back
