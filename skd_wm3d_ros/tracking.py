"""Track ids: constant-velocity Kalman filters in the ground plane, matched to detections by minimum total distance.

Nothing here knows of ROS. The ground plane is whatever plane the caller gives positions in: (x, z) of a camera frame,
(x, y) of a frame whose z is up. In a camera frame the motion of the vehicle adds to that of the objects; a fixed
``target_frame`` keeps them apart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

Array = NDArray[np.float64]

ACCELERATION = 3.0  # m/s^2, standard deviation of what the constant velocity leaves out
INITIAL_SPEED = 10.0  # m/s, standard deviation of a new track's velocity
GATE = 9.21  # squared Mahalanobis distance that 99 % of true matches stay below (2 degrees of freedom)
MIN_STD = 0.3  # metres, minimum standard deviation of a detection
MIN_HITS = 2  # detections before a track's id is published
MAX_MISSED = 1.0  # seconds without a detection after which a track ends
NO_MATCH = 1e6


@dataclass
class Track:
    """One object.

    Attributes:
        number: its id, never used again.
        label: its class.
        state: (x, y, vx, vy), metres and metres per second.
        covariance: shape (4, 4), of the state.
        hits: how many detections it has had.
        seen: time of the last one, seconds.
    """

    number: int
    label: str
    state: Array
    covariance: Array
    hits: int
    seen: float

    def predict(self, dt: float) -> None:
        """Move on by ``dt`` seconds; white-noise acceleration grows the uncertainty."""
        F = np.eye(4)
        F[0, 2] = F[1, 3] = dt
        G = np.array([[0.5 * dt * dt, 0], [0, 0.5 * dt * dt], [dt, 0], [0, dt]])
        self.state = F @ self.state
        self.covariance = F @ self.covariance @ F.T + ACCELERATION**2 * G @ G.T

    def distance(self, position: Array, noise: Array) -> float:
        """Squared Mahalanobis distance of a detection."""
        S = self.covariance[:2, :2] + noise
        offset = position - self.state[:2]
        return float(offset @ np.linalg.solve(S, offset))

    def update(self, position: Array, noise: Array) -> None:
        """Take a detection in."""
        S = self.covariance[:2, :2] + noise
        gain = np.linalg.solve(S, self.covariance[:2]).T  # (4, 2)
        self.state = self.state + gain @ (position - self.state[:2])
        keep = np.eye(4)
        keep[:, :2] -= gain
        self.covariance = keep @ self.covariance @ keep.T + gain @ noise @ gain.T  # stays symmetric


@dataclass
class Tracker:
    """Gives detections ids that stay with the object."""

    tracks: list[Track] = field(default_factory=list)
    _time: float = -math.inf
    _next: int = 1

    def restart(self) -> None:
        """End all tracks; their ids are not used again."""
        self.tracks, self._time = [], -math.inf

    def update(self, time: float, positions: Array, noises: Array, labels: Sequence[str]) -> list[str]:
        """Match one frame's detections with the tracks.

        Args:
            time: of the frame, seconds. Where it goes back, all tracks end.
            positions: shape (N, 2), in the ground plane, metres.
            noises: shape (N, 2, 2), their covariances.
            labels: N class names; only equal ones match.

        Returns:
            N ids; "" for an object that has been seen only once.
        """
        back = time < self._time
        self.tracks = [] if back else [t for t in self.tracks if time - t.seen <= MAX_MISSED]
        for track in self.tracks:
            track.predict(max(time - self._time, 0.0))
        self._time = time
        noises = noises + MIN_STD**2 * np.eye(2)
        ids = [""] * len(labels)
        unmatched = set(range(len(labels)))
        for track, i in self._match(positions, noises, labels):
            track.update(positions[i], noises[i])
            track.hits, track.seen = track.hits + 1, time
            ids[i] = str(track.number) if track.hits >= MIN_HITS else ""
            unmatched.discard(i)
        self.tracks = [t for t in self.tracks if t.hits >= MIN_HITS or t.seen == time]
        for i in sorted(unmatched):
            self._begin(time, positions[i], noises[i], labels[i])
        return ids

    def _match(self, positions: Array, noises: Array, labels: Sequence[str]) -> list[tuple[Track, int]]:
        costs = np.full((len(self.tracks), len(labels)), NO_MATCH)
        for t, track in enumerate(self.tracks):
            for i, label in enumerate(labels):
                if label == track.label:
                    distance = track.distance(positions[i], noises[i])
                    costs[t, i] = distance if distance < GATE else NO_MATCH
        rows, columns = linear_sum_assignment(costs)
        return [(self.tracks[t], i) for t, i in zip(rows, columns.tolist(), strict=True) if costs[t, i] < NO_MATCH]

    def _begin(self, time: float, position: Array, noise: Array, label: str) -> None:
        covariance = np.zeros((4, 4))
        covariance[:2, :2] = noise
        covariance[2:, 2:] = INITIAL_SPEED**2 * np.eye(2)
        self.tracks.append(Track(self._next, label, np.array([*position, 0.0, 0.0]), covariance, 1, time))
        self._next += 1
