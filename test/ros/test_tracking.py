"""Track ids on made-up objects and on a real drive: they stay, and no one else gets them."""

from __future__ import annotations

import itertools
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.ops import box_iou

from skd_core.camera import Camera
from skd_core.covariance import pose_covariance
from skd_core.data.sample import read_image
from skd_core.inference.detector import Detector
from skd_wm3d_ros.tracking import MAX_MISSED, Tracker

DT = 0.1
DRIVE = Path(__file__).resolve().parents[3] / "shared" / "data" / "kitti_drive0052"
rng = np.random.default_rng(0)


def observe(tracker, time, objects, noise=0.2, labels=None, shuffle=True):
    """One frame; ids by object name."""
    names = list(objects)
    if shuffle:
        rng.shuffle(names)
    positions = np.array([objects[n] for n in names], float).reshape(-1, 2) + rng.normal(0, noise, (len(names), 2))
    noises = np.tile(noise**2 * np.eye(2), (len(names), 1, 1))
    ids = tracker.update(time, positions, noises, [(labels or {}).get(n, "Car") for n in names])
    return dict(zip(names, ids, strict=True))


def test_ids_stay_with_crossing_objects():
    """Two cars pass each other 3 m apart, a third turns; detections come in any order."""
    tracker, seen = Tracker(), {"a": set(), "b": set(), "c": set()}
    for i in range(60):
        t = i * DT
        objects = {"a": (-15 + 5 * t, 20), "b": (15 - 5 * t, 23), "c": (10 * np.sin(t / 3), 40 + t)}
        for name, number in observe(tracker, t, objects).items():
            seen[name].add(number)
    ids = [numbers - {""} for numbers in seen.values()]
    assert [len(n) for n in ids] == [1, 1, 1]
    assert len(set.union(*ids)) == 3


def test_an_id_needs_two_detections():
    tracker = Tracker()
    assert observe(tracker, 0.0, {"a": (0, 10)}) == {"a": ""}
    assert observe(tracker, DT, {"a": (0, 10)})["a"] != ""


def test_a_missed_object_keeps_its_id_for_a_while():
    tracker = Tracker()
    for i in range(10):
        before = observe(tracker, i * DT, {"a": (i, 20)}, 0.05)["a"]
    for i in range(10, 15):
        observe(tracker, i * DT, {})
    assert observe(tracker, 1.5, {"a": (15, 20)}, 0.05)["a"] == before  # 10 m/s, five frames later
    assert observe(tracker, 1.5 + MAX_MISSED + 0.2, {"a": (27, 20)}, 0.05)["a"] == ""  # a new one
    assert tracker.tracks[0].number > int(before)


def test_numbers_are_not_used_again():
    tracker, numbers = Tracker(), []
    for i in range(5):
        for j in range(2):
            number = observe(tracker, 10.0 * i + j * DT, {"a": (0, 20)})["a"]
        numbers.append(number)
    assert len(set(numbers)) == 5


def test_classes_do_not_mix():
    tracker = Tracker()
    for i in range(3):
        ids = observe(tracker, i * DT, {"a": (0, 10), "b": (0.3, 10)}, 0.01, {"a": "Car", "b": "Pedestrian"})
    assert len(set(ids.values())) == 2
    only = observe(tracker, 3 * DT, {"b": (0, 10)}, 0.01, {"b": "Pedestrian"})
    assert only["b"] == ids["b"]


def test_a_jump_is_another_object():
    tracker = Tracker()
    for i in range(3):
        observe(tracker, i * DT, {"a": (0, 10)})
    assert observe(tracker, 3 * DT, {"a": (30, 60)}) == {"a": ""}


def test_time_that_goes_back_ends_all_tracks():
    tracker = Tracker()
    for i in range(3):
        old = observe(tracker, 100 + i * DT, {"a": (0, 10)})["a"]
    observe(tracker, 0.0, {"a": (0, 10)})
    new = observe(tracker, DT, {"a": (0, 10)})["a"]
    assert new not in ("", old)


def test_velocity_is_learnt():
    tracker = Tracker()
    for i in range(40):
        observe(tracker, i * DT, {"a": (8 * i * DT, 20 - 2 * i * DT)}, 0.1)
    (track,) = tracker.tracks
    np.testing.assert_allclose(track.state[2:], [8, -2], atol=1.0)
    eigenvalues = np.linalg.eigvalsh(track.covariance)
    assert eigenvalues.min() > 0
    np.testing.assert_allclose(track.covariance, track.covariance.T, atol=1e-9)


def test_one_step_by_hand():
    """A track at rest at 0 with variances 1 (place) and 0 (speed), a detection at 1 with variance 1: half way."""
    tracker = Tracker()
    tracker.update(0.0, np.zeros((1, 2)), np.zeros((1, 2, 2)), ["Car"])
    (track,) = tracker.tracks
    track.covariance = np.diag([1.0, 1.0, 0.0, 0.0])
    track.update(np.array([1.0, 0.0]), np.eye(2))
    np.testing.assert_allclose(track.state, [0.5, 0, 0, 0])
    np.testing.assert_allclose(np.diag(track.covariance), [0.5, 0.5, 0, 0])


@pytest.mark.parametrize("count", [0, 50])
def test_any_number(count):
    tracker = Tracker()
    positions = rng.uniform(-50, 50, (count, 2))
    for i in range(3):
        ids = tracker.update(i * DT, positions, np.tile(0.01 * np.eye(2), (count, 1, 1)), ["Car"] * count)
    assert len(ids) == count
    assert len({*ids}) == count


# -- a real drive -----------------------------------------------------------------------------------------------------
def links(before, after):
    """Pairs of detections of two frames that are surely one object: of one class, with 2D boxes that overlap each other
    and nothing else."""
    if not len(before) or not len(after):
        return []
    overlap = box_iou(before.xyxy, after.xyxy).numpy()
    overlap *= [[a == b for b in after.labels] for a in before.labels]
    near = overlap > 0.3
    pairs = np.argwhere(overlap >= 0.5).tolist()
    return [(i, j) for i, j in pairs if near[i].sum() == near[:, j].sum() == 1]


@pytest.mark.skipif(not DRIVE.is_dir(), reason="needs ../shared/data/kitti_drive0052")
def test_ids_are_stable_over_a_drive():
    """78 frames at 10 Hz from a moving car, bundled weights at a low threshold, so that there is much to track. The
    image, which the tracker never sees, is the judge."""
    torch.set_num_threads(1)
    detector, tracker = Detector.load("default", "cpu"), Tracker()
    frames = []
    for number, path in enumerate(sorted((DRIVE / "image_02").iterdir())):
        image = read_image(path).permute(1, 2, 0).numpy()
        boxes = detector.predict(image, Camera.from_file(DRIVE / "calib.txt", image.shape[1], image.shape[0]), 0.3)
        positions = boxes.center[:, [0, 2]].double().numpy()
        noises = pose_covariance(boxes).numpy()[:, [0, 2]][:, :, [0, 2]]
        frames.append((boxes, tracker.update(number * DT, positions, noises, boxes.labels)))
    told = [
        (ids[i], next_ids[j])
        for (boxes, ids), (next_boxes, next_ids) in itertools.pairwise(frames)
        for i, j in links(boxes, next_boxes)
        if ids[i] and next_ids[j]
    ]
    assert len(told) > 300
    assert sum(a == b for a, b in told) >= 0.9 * len(told)
    seen = defaultdict(list)
    for number, (_, ids) in enumerate(frames):
        named = [track for track in ids if track]
        assert len(set(named)) == len(named)
        for track in named:
            seen[track].append(number)
    lives = sorted(numbers[-1] - numbers[0] + 1 for numbers in seen.values())
    assert lives[-1] >= 50
    assert len([life for life in lives if life >= 20]) >= 10
