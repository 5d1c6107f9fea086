"""Errors by axis and the error budget: known errors put in must come out, on their own axis only."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from skd_core.data.kitti import KittiObjects
from skd_core.errors import UserError
from skd_core.evaluation.errors import SUBSTITUTES, error_budget, match, pair_errors
from skd_core.evaluation.kitti import no_objects
from skd_core.evaluation.overlaps import Table

FRAMES = 90


def cars(seed: int, count: int = 2) -> KittiObjects:
    """Cars side by side, far enough apart not to be taken for each other."""
    rng = np.random.default_rng(seed)
    dimensions = np.array([1.5, 1.7, 4.0]) * rng.uniform(0.9, 1.1, (count, 3))
    location = np.stack([8.0 * np.arange(count) - 4, np.full(count, 1.6), rng.uniform(12, 30, count)], 1)
    yaw = rng.uniform(-3, 3, count)
    xyxy = np.array([[100.0 + 300 * i, 100.0, 220.0 + 300 * i, 170.0] for i in range(count)])
    alpha = yaw - np.arctan2(location[:, 0], location[:, 2])
    zero = np.zeros(count)
    return KittiObjects(["Car"] * count, zero, zero, alpha, xyxy, dimensions, location, yaw, np.ones(count))


def center(objects: KittiObjects) -> np.ndarray:
    return objects.location - objects.dimensions[:, :1] * [0, 0.5, 0]


def with_center(objects: KittiObjects, wanted: np.ndarray, dimensions: np.ndarray | None = None) -> KittiObjects:
    dimensions = objects.dimensions if dimensions is None else dimensions
    return replace(objects, dimensions=dimensions, location=wanted + dimensions[:, :1] * [0, 0.5, 0])


def farther(objects: KittiObjects) -> KittiObjects:
    return with_center(objects, 1.15 * center(objects))


def aside(objects: KittiObjects) -> KittiObjects:
    return with_center(objects, center(objects) + np.array([1.5, 0.1, 0.0]))


def bigger(objects: KittiObjects) -> KittiObjects:
    return with_center(objects, center(objects), 1.3 * objects.dimensions)


def turned(objects: KittiObjects) -> KittiObjects:
    return replace(objects, rotation_y=objects.rotation_y + 1.2, alpha=objects.alpha + 1.2)


def loose_2d(objects: KittiObjects) -> KittiObjects:
    return replace(objects, xyxy=objects.xyxy + np.array([-40, 0, 40, 0]))


LABELS = [cars(seed) for seed in range(FRAMES)]


@pytest.mark.parametrize(
    ("spoil", "cure", "metric"),
    [
        (farther, "depth", "3d"),
        (aside, "ray", "3d"),
        (bigger, "size", "3d"),
        (turned, "yaw", "3d"),
        (loose_2d, "box2d", "2d"),
    ],
)
def test_each_substitute_fixes_its_own_error_and_no_other(spoil, cure: str, metric: str) -> None:  # type: ignore[no-untyped-def]
    budget = error_budget(LABELS, [spoil(frame) for frame in LABELS], classes=("Car",))
    assert list(budget) == ["baseline", *SUBSTITUTES]
    ap = {what: scores["Car"][metric]["R40"]["0.70"][1] for what, scores in budget.items()}
    assert ap["baseline"] is not None
    assert ap["baseline"] < 60
    assert ap[cure] == pytest.approx(100)
    assert ap["all"] == pytest.approx(100)
    for other in set(SUBSTITUTES) - {cure, "all"}:
        assert ap[other] < 90, other


def test_orientation_is_corrected_with_yaw() -> None:
    budget = error_budget(LABELS, [turned(frame) for frame in LABELS], classes=("Car",))
    aos = {what: scores["Car"]["aos"]["R40"]["0.70"][1] for what, scores in budget.items()}
    assert aos["baseline"] == pytest.approx(50 * (1 + math.cos(1.2)))
    assert aos["yaw"] == pytest.approx(100)


def test_missed_objects_and_false_detections_stay() -> None:
    results = [farther(frame) for frame in LABELS]
    for i in range(0, FRAMES, 2):
        results[i] = results[i][[0]]
    all_corrected = error_budget(LABELS, results, classes=("Car",))["all"]["Car"]["3d"]["R40"]["0.70"][1]
    assert all_corrected == pytest.approx(100 * 30 / 40, abs=2.6)
    far = replace(cars(99), xyxy=cars(99).xyxy + 1000, location=cars(99).location + np.array([0, 0, 60]))
    doubled = [join(frame, far) for frame in LABELS]
    assert error_budget(LABELS, doubled)["all"]["Car"]["3d"]["R40"]["0.70"][1] == pytest.approx(50)


def join(a: KittiObjects, b: KittiObjects) -> KittiObjects:
    return Table.of([a, b]).objects


def test_errors_come_out_on_their_axis() -> None:
    scaled = pair_errors(LABELS, [farther(frame) for frame in LABELS])
    assert len(scaled) == 2 * FRAMES
    np.testing.assert_allclose(scaled.depth, 0.15)
    np.testing.assert_allclose(scaled.size, 0, atol=1e-12)
    np.testing.assert_allclose(scaled.yaw, 0, atol=1e-12)
    np.testing.assert_allclose(scaled.z, np.concatenate([frame.location[:, 2] for frame in LABELS]))
    sideways = pair_errors(LABELS, [aside(frame) for frame in LABELS])
    np.testing.assert_allclose(sideways.lateral, 1.5)
    np.testing.assert_allclose(sideways.vertical, 0.1)
    np.testing.assert_allclose(sideways.depth, 0, atol=1e-12)
    np.testing.assert_allclose(pair_errors(LABELS, [bigger(frame) for frame in LABELS]).size, 0.3)
    longer = [replace(f, dimensions=f.dimensions * [1, 1, 1.5]) for f in LABELS]
    np.testing.assert_allclose(pair_errors(LABELS, longer).size.mean(0), [0.5, 0, 0], atol=1e-12)


def test_yaw_errors_are_folded() -> None:
    """An error of 200 degrees is 160, mod pi 20; alpha 30 for -30 is 60 off and, folded, right."""
    label = cars(0, 1)
    straight = replace(label, location=np.array([[0.0, 1.6, 20.0]]), rotation_y=np.array([math.radians(-30)]))
    for yaw, wanted in (
        (170, (160, 20, 20)),
        (30, (60, 60, 0)),
        (-150, (120, 60, 0)),
        (-30, (0, 0, 0)),
        (40, (70, 70, 10)),
    ):
        found = replace(straight, rotation_y=np.array([math.radians(yaw)]))
        errors = pair_errors([straight], [found])
        got = np.degrees([errors.yaw[0], errors.yaw_mod_pi[0], errors.yaw_folded[0]])
        np.testing.assert_allclose(got, wanted, atol=1e-9, err_msg=str(yaw))


def test_folding_uses_the_angle_of_sight_not_yaw() -> None:
    """At 45 degrees to the right alpha = yaw - 45: yaw 45 + 30 and 45 - 30 look the same in projection."""
    label = replace(cars(0, 1), location=np.array([[10.0, 1.6, 10.0]]), rotation_y=np.radians([75.0]))
    found = replace(label, rotation_y=np.radians([15.0]))
    errors = pair_errors([label], [found])
    assert math.degrees(errors.yaw_mod_pi[0]) == pytest.approx(60)
    assert errors.yaw_folded[0] == pytest.approx(0, abs=1e-12)


def test_statistics() -> None:
    results = [with_center(frame, center(frame) * (1 + 0.01 * (i - 44.5))) for i, frame in enumerate(LABELS)]
    of = pair_errors(LABELS, results).statistics("Car")
    assert of["count"] == 2 * FRAMES
    assert of["depth_bias"] == pytest.approx(0, abs=1e-9)
    assert of["depth_median"] == pytest.approx(0.225)
    assert of["depth_p90"] == pytest.approx(0.405, abs=0.005)
    assert pair_errors(LABELS, results).statistics()["depth_p90"] == of["depth_p90"]
    none = pair_errors(LABELS, results).statistics("Cyclist")
    assert none["count"] == 0
    assert math.isnan(none["yaw_folded_median"])


def test_the_better_score_is_matched_and_each_thing_once() -> None:
    label = cars(0, 1)
    twice = replace(join(label, label), score=np.array([0.4, 0.9]))
    assert [index.tolist() for index in match(Table.of([label]), Table.of([twice]))] == [[0], [1]]
    assert [index.tolist() for index in match(Table.of([twice]), Table.of([label]))] == [[0], [0]]


def test_matching_by_place_where_the_2d_box_is_missing() -> None:
    label = cars(0)
    unseen = replace(label, xyxy=np.full((2, 4), -1.0), location=label.location[::-1] + np.array([0.5, 0, 0]))
    assert [index.tolist() for index in match(Table.of([label]), Table.of([unseen]))] == [[0, 1], [1, 0]]
    too_far = replace(unseen, location=unseen.location + np.array([2.0, 0, 0]))
    assert len(match(Table.of([label]), Table.of([too_far]))[0]) == 0


def test_matching_keeps_classes_and_frames_apart() -> None:
    label = cars(0, 1)
    walker = replace(label, type=["Pedestrian"])
    assert len(match(Table.of([label]), Table.of([walker]))[0]) == 0
    assert len(match(Table.of([label, no_objects()]), Table.of([no_objects(), label]))[0]) == 0
    lower = replace(label, type=["car"])
    assert pair_errors([label], [lower]).kind == ["Car"]


def test_detections_without_3d_values_are_left_alone() -> None:
    label = cars(0, 1)
    flat = replace(label, dimensions=np.full((1, 3), -1.0), location=np.full((1, 3), -1000.0))
    assert len(pair_errors([label], [flat])) == 0
    assert pair_errors([label], [flat]).statistics()["count"] == 0
    budget = error_budget([label] * 90, [flat] * 90, classes=("Car",))
    assert budget["all"]["Car"]["3d"]["R40"]["0.70"] == [None] * 3
    assert budget["all"]["Car"]["2d"]["R40"]["0.70"] == [100] * 3


def test_inputs_stay_as_they_were() -> None:
    results = [farther(frame) for frame in LABELS[:3]]
    before = [frame.location.copy() for frame in results]
    error_budget(LABELS[:3], results)
    for frame, location in zip(results, before, strict=True):
        np.testing.assert_array_equal(frame.location, location)


def test_empty_and_wrong_input() -> None:
    assert len(pair_errors([no_objects()], [no_objects()])) == 0
    assert error_budget([no_objects()], [no_objects()])["all"]["Car"]["3d"]["R40"]["0.70"] == [0, 0, 0]
    with pytest.raises(UserError, match="2 frames of labels, 1 of results"):
        pair_errors([no_objects()] * 2, [no_objects()])
