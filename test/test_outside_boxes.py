"""2D boxes from outside: what the 3D head makes of them, and what is refused; the threshold that weights store."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import tiny
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from skd_core import Boxes2D, Boxes3D, Camera, Detector
from skd_core.errors import UserError
from skd_core.inference.detector import DEFAULT_THRESHOLD
from skd_core.inference.weights import load_weights, store
from skd_core.models.heads import MIN_LOG_SIGMA
from skd_core.models.student import joint_score

WIDTH, HEIGHT = 320, 96
NAMES = ("center", "size", "yaw", "scores", "xyxy", "depth_std")


@pytest.fixture(scope="module")
def detector() -> Detector:
    return tiny.spread_detector()


def camera(width: int = WIDTH, height: int = HEIGHT) -> Camera:
    return tiny.kitti_camera(width, height)


def picture(width: int = WIDTH, height: int = HEIGHT) -> NDArray[np.uint8]:
    coarse = np.random.default_rng(0).uniform(0, 255, (6, 16, 3)).astype(np.float32)
    return np.asarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).clip(0, 255), dtype=np.uint8)


def heat_of(detector: Detector, boxes: Boxes3D) -> torch.Tensor:
    """The 2D score that went into a box's score: score = sqrt(heat x certainty), certainty by depth_std."""
    z = boxes.center[:, 2] + camera().P[2, 3].float()  # from the optical centre
    certainty = joint_score(torch.ones(len(boxes)), torch.log(boxes.depth_std / z)) ** 2
    return boxes.scores**2 / certainty


@pytest.mark.parametrize("zoom", [1, 3])
def test_own_boxes_fed_back_give_the_same_boxes(detector: Detector, zoom: int) -> None:
    image, view = picture(zoom * WIDTH, zoom * HEIGHT), camera(zoom * WIDTH, zoom * HEIGHT)
    own = detector.predict(image, view, 0.0)
    assert len(own) > 10
    given = Boxes2D(own.xyxy, own.labels, heat_of(detector, own).clamp(max=1))
    again = detector.predict(image, view, 0.0, boxes2d=given)
    assert again.labels == own.labels
    for name in NAMES:
        torch.testing.assert_close(getattr(again, name), getattr(own, name), rtol=2e-5, atol=1e-5, msg=name)


def test_the_students_place_equals_its_detect_to_1e_6(detector: Detector) -> None:
    student, view = detector.student, camera()
    pixels, P = torch.from_numpy(picture()).permute(2, 0, 1)[None], view.P.float()[None]
    own = student.detect(pixels, P)[0]
    order = torch.arange(len(own.scores)).flip(0)  # the order of what is given is kept
    certainty = joint_score(torch.ones_like(own.scores), own.boxes3d.log_sigma) ** 2
    heat = own.scores**2 / certainty
    index = torch.zeros_like(own.classes)
    again = student.place(pixels, P, index, own.boxes[order], own.classes[order], heat[order])
    expected = own[order]
    torch.testing.assert_close(again.scores, expected.scores, rtol=1e-6, atol=1e-6)
    assert torch.equal(again.boxes, expected.boxes)
    assert torch.equal(again.classes, expected.classes)
    for name, value in vars(again.boxes3d).items():
        torch.testing.assert_close(value, getattr(expected.boxes3d, name), rtol=1e-6, atol=1e-6, msg=name)


def test_boxes_of_several_images_stay_with_their_image(detector: Detector) -> None:
    student, P = detector.student, camera().P.float()[None]
    images = torch.stack([torch.from_numpy(picture()), torch.from_numpy(picture()[:, ::-1].copy())]).permute(0, 3, 1, 2)
    boxes = torch.tensor([[10.0, 20, 60, 50], [100, 10, 180, 70], [10, 20, 60, 50]])
    index, classes, scores = torch.tensor([1, 0, 0]), torch.tensor([0, 1, 0]), torch.tensor([0.9, 0.8, 0.7])
    both = student.place(images, P.expand(2, 3, 4), index, boxes, classes, scores)
    for i in range(3):
        at = slice(i, i + 1)
        image = int(index[i])
        alone = student.place(images[image][None], P, torch.zeros(1).long(), boxes[at], classes[at], scores[at])
        torch.testing.assert_close(both.boxes3d.center[at], alone.boxes3d.center, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(both.boxes3d.yaw_vector[0], both.boxes3d.yaw_vector[2])


def test_the_score_by_hand() -> None:
    """Certainty is 1 at the floor of sigma_z and 1/e at .1 more."""
    log_sigma = torch.log(torch.tensor([0.03, 0.13, 0.23]))
    assert pytest.approx(float(log_sigma[0]), abs=0.01) == MIN_LOG_SIGMA
    assert joint_score(torch.tensor([0.81, 0.81, 0.0]), log_sigma).tolist() == pytest.approx(
        [0.9, 0.9 * np.exp(-0.5), 0.0], rel=5e-3
    )


def test_more_boxes_than_the_network_finds_by_itself(detector: Detector) -> None:
    """No limit of 50, no NMS, also for equal boxes."""
    box = torch.tensor([[40.0, 30, 90, 60]]).expand(120, 4)
    found = detector.predict(picture(), camera(), 0.0, boxes2d=Boxes2D(box, ("Car",) * 120))
    assert len(found) == 120
    assert found.center.std(0).amax() < 1e-5


def test_order_scores_threshold_and_names(detector: Detector) -> None:
    boxes = torch.tensor([[40.0, 30, 90, 60], [100, 20, 150, 80], [200, 30, 280, 70]])
    given = Boxes2D(boxes, ("car", "CYCLIST", "Pedestrian"), torch.tensor([0.2, 0.9, 0.5]))
    placed, kept = detector.place(picture(), camera(), given)
    assert kept.tolist() == [0, 1, 2]
    assert placed.labels == ("Car", "Cyclist", "Pedestrian")  # as the weights spell them
    torch.testing.assert_close(placed.xyxy, boxes)
    every = detector.predict(picture(), camera(), 0.0, boxes2d=given)
    assert every.scores.tolist() == sorted(placed.scores.tolist(), reverse=True)
    some = detector.predict(picture(), camera(), float(every.scores[1]), boxes2d=given)
    assert len(some) == 2
    # a box without a score is a sure one: its score is the root of the certainty
    sure = detector.place(picture(), camera(), Boxes2D(boxes, given.labels))[0]
    torch.testing.assert_close(placed.scores, sure.scores * torch.tensor([0.2, 0.9, 0.5]).sqrt())
    torch.testing.assert_close(placed.center, sure.center)


def test_boxes_are_clipped_and_empty_ones_left_out_by_number(detector: Detector) -> None:
    boxes = [
        [-30.0, 30, 50, 60],  # cut by the left border
        [400, 10, 500, 60],  # right of the image
        [20, 20, 20, 50],  # no width
        [250, 50, 900, 300],  # cut at the right and at the bottom
        [10, 10, 60, 10.5],  # half a pixel high
        [0, 0, WIDTH, HEIGHT],
    ]
    given = Boxes2D(torch.tensor(boxes), ("Car",) * 6, torch.linspace(0.1, 0.6, 6))
    placed, kept = detector.place(picture(), camera(), given)
    assert kept.tolist() == [0, 3, 5]
    assert placed.xyxy.tolist() == [[0, 30, 50, 60], [250, 50, WIDTH, HEIGHT], [0, 0, WIDTH, HEIGHT]]
    assert len(detector.predict(picture(), camera(), 0.0, boxes2d=given)) == 3
    for name in NAMES:
        assert getattr(placed, name).isfinite().all(), name


def test_no_boxes_give_no_boxes(detector: Detector) -> None:
    for given in (Boxes2D.empty(), Boxes2D(torch.tensor([[400.0, 0, 500, 50]]), ("Car",))):
        placed, kept = detector.place(picture(), camera(), given)
        assert len(placed) == len(kept) == 0
        assert len(detector.predict(picture(), camera(), boxes2d=given)) == 0


def test_boxes_that_cannot_be_are_refused_by_number(detector: Detector) -> None:
    box, image, view = [40.0, 30, 90, 60], picture(), camera()
    cases = [
        (([box, [90, 30, 40, 60]], None, ("Car", "Car")), "box 1 .*90 30 40 60"),
        (([box, [40, float("nan"), 50, 60]], None, ("Car", "Car")), "box 1 .*nan"),
        (([[0, 0, float("inf"), 9]], None, ("Car",)), "box 0 .*inf"),
        (([box, box], [0.5, 1.5], ("Car", "Car")), r"score 1\.5 of box 1"),
        (([box], [float("nan")], ("Car",)), "score nan of box 0"),
        (([box], None, ("Tram",)), "class 'Tram'.*Car, Pedestrian, Cyclist"),
    ]
    for (boxes, scores, labels), said in cases:
        given = Boxes2D(torch.tensor(boxes), labels, None if scores is None else torch.tensor(scores))  # type: ignore[arg-type]
        with pytest.raises(UserError, match=said):
            detector.predict(image, view, boxes2d=given)
    with pytest.raises(UserError, match="camera says"):
        detector.predict(image, camera(640, 192), boxes2d=Boxes2D.empty())


# -- the threshold that weights store ----------------------------------------------------------------------------------
def test_the_stored_threshold_is_the_default(detector: Detector) -> None:
    assert detector.threshold == DEFAULT_THRESHOLD
    every = detector.predict(picture(), camera(), 0.0)
    middle = float(every.scores.median())
    told = Detector(detector.student, detector.metadata | {"threshold": middle}, "cpu")
    assert told.threshold == middle
    assert 0 < len(told.predict(picture(), camera())) == int((every.scores >= middle).sum()) < len(every)
    assert len(told.predict(picture(), camera(), 0.0)) == len(every)
    given = Boxes2D(every.xyxy, every.labels)
    sure = told.place(picture(), camera(), given)[0]
    assert len(told.predict(picture(), camera(), boxes2d=given)) == int((sure.scores >= middle).sum())


def test_storing_a_threshold_changes_nothing_else(detector: Detector, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    detector.save(path)
    before, tensors = load_weights(path)[1], load_file(str(path))
    assert store(path, threshold=0.27) == path
    after = load_weights(path)[1]
    assert after == before | {"threshold": 0.27}
    assert all(torch.equal(value, tensors[name]) for name, value in load_file(str(path)).items())
    again = Detector.load(path, "cpu")
    assert again.threshold == 0.27
    again.save(tmp_path / "copy.safetensors")
    assert Detector.load(tmp_path / "copy.safetensors", "cpu").threshold == 0.27
    assert sorted(p.name for p in tmp_path.iterdir()) == ["copy.safetensors", "w.safetensors"]


def test_thresholds_that_cannot_be(detector: Detector, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    for value in (1.5, -0.1, float("nan")):
        with pytest.raises(UserError, match="threshold"):
            store("default", threshold=value)
    for wrong in ("high", 2, None, True):
        Detector(detector.student, detector.metadata | {"threshold": wrong}, "cpu").save(path)
        with pytest.raises(UserError, match=rf"w\.safetensors.*threshold.*{wrong!r}"):
            Detector.load(path, "cpu")
    with pytest.raises(UserError, match="no such file"):
        store(tmp_path / "none.safetensors", threshold=0.3)
