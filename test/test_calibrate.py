"""How far off boxes are, measured, stored and published: `eval real --calibrate`."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_eval_real import (
    Run,
    found,
    label,
    make_tree,
    objects,
    run,  # noqa: F401 (a fixture)
    tally,
    weights,  # noqa: F401 (a fixture)
)

from skd_core import Boxes3D, Detector
from skd_core.data.kitti import read_objects
from skd_core.errors import UserError
from skd_core.evaluation.calibrate import MIN_OBJECTS, calibrate, calibration_notes, held_out, stored
from skd_core.evaluation.real import COLUMNS, Tally
from skd_core.inference.weights import load_weights


def drawn(
    n: int, seed: int = 0, depth: float = 1.0, across: float = 0.01, yaw: float = 0.2, turned: float = 0.5
) -> Tally:
    """Of n objects that are found, with normal errors of these deviations."""
    rng, rows = np.random.default_rng(seed), np.zeros((n, len(COLUMNS)))
    values = {
        "spread": rng.normal(0, depth, n),
        "lateral": rng.normal(0, across, n), "vertical": rng.normal(0, across / 2, n),
        "yaw": np.degrees(np.abs(rng.normal(0, yaw, n))), "turned": rng.random(n) < turned,
    }  # fmt: skip
    for name, column in values.items():
        rows[:, COLUMNS.index(name)] = column
    return Tally(rows, np.zeros(0), np.zeros(0), n)


# -- what is measured --------------------------------------------------------------------------------------------------
def test_errors_of_one_box_by_hand(tmp_path: Path) -> None:
    """A label at (0, y, 20), found 2 m too far, .5 m to the right and .25 m too low, with a depth_std of .8 m."""
    labels = objects(tmp_path, label(yaw=0.1))
    box = found(((100, 40, 160, 80), 0.8), x=0.5, z=22.0, yaw=0.1 + math.pi)
    box.center[:, 1] += 0.25
    box.depth_std[:] = 0.8
    rows = tally(box, labels)
    assert rows["spread"].tolist() == pytest.approx([2.5])
    x, y, z = box.center[0].tolist()
    distance, flat = math.sqrt(x * x + y * y + z * z), math.hypot(x, z)
    off = np.array([0.5, 0.25, 2.0])
    assert abs(rows["lateral"][0]) == pytest.approx(abs(off @ [z, 0, -x]) / flat / distance, rel=1e-5)
    # across and upwards: at a right angle to the ray and to the level
    upwards = np.array([-x * y, flat**2, -z * y]) / (flat * distance)
    assert abs(rows["vertical"][0]) == pytest.approx(abs(off @ upwards) / distance, rel=1e-5)
    assert rows["turned"].tolist() == [1]
    assert rows["yaw"].tolist() == pytest.approx([0], abs=1e-4)
    missed = rows.at(0.9)
    assert all(math.isnan(missed[name][0]) for name in ("spread", "lateral", "vertical", "turned"))


def test_spreads_are_the_deviations_that_were_drawn() -> None:
    row = calibrate({"Car": drawn(20_000, depth=1.7, across=0.02, yaw=0.3)}, heading_known=False)["Car"]
    assert row.depth_scale == pytest.approx(1.7, rel=0.03)
    assert row.lateral_std == pytest.approx(0.02, rel=0.03)
    assert row.vertical_std == pytest.approx(0.01, rel=0.03)
    assert row.yaw_std == pytest.approx(0.3, rel=0.03)
    assert (row.flip, row.count, row.pooled) == (0.5, 20_000, False)


def test_pedestrians_and_cars_apart() -> None:
    kinds = {"Car": drawn(400, yaw=0.1), "Pedestrian": drawn(60, 1, yaw=0.7)}
    found_ = calibrate(kinds, heading_known=False)
    car, pedestrian = found_["Car"].yaw_std, found_["Pedestrian"].yaw_std
    assert car is not None
    assert pedestrian is not None
    assert pedestrian > 5 * car


def test_a_class_with_few_objects_takes_no_yaw_of_others() -> None:
    kinds = {"Car": drawn(400, depth=1.5), "Pedestrian": drawn(MIN_OBJECTS - 1, 1, depth=9.0), "Cyclist": drawn(0)}
    measured = calibrate(kinds, heading_known=True)
    for kind in ("Pedestrian", "Cyclist"):
        row = measured[kind]
        assert row.pooled
        assert row.yaw_std is None
        assert row.flip == 0.5
        assert row.depth_scale == pytest.approx(measured["Car"].depth_scale, rel=0.15)
    lines = calibration_notes(kinds, measured)
    assert [line.split(",")[0] for line in lines] == ["Pedestrian: 19 objects", "Cyclist: 0 objects"]


def test_too_few_objects_in_all_are_an_error() -> None:
    few = {"Car": drawn(12), "Pedestrian": drawn(7, 1)}
    assert calibrate(few, heading_known=False) == {}
    with pytest.raises(UserError, match="19 objects with a place are found, 20 are needed"):
        calibration_notes(few, {})


def test_a_flip_counts_only_where_the_weights_tell_front_from_rear() -> None:
    kinds = {"Car": drawn(98, turned=0.0)}
    assert calibrate(kinds, heading_known=True)["Car"].flip == pytest.approx(1 / 100)  # none of 98: (0 + 1) / (98 + 2)
    assert calibrate(kinds, heading_known=False)["Car"].flip == 0.5


def test_held_out_shares_tell_a_lucky_half() -> None:
    same = held_out([{"Car": drawn(4000, 1)}, {"Car": drawn(4000, 2)}], heading_known=False)["Car"]
    assert [share[0] for share in same.values() if share] == pytest.approx([0.68] * 4, abs=0.03)
    assert [share[1] for share in same.values() if share] == pytest.approx([0.95] * 4, abs=0.03)
    odd = held_out([{"Car": drawn(4000, 1, depth=1)}, {"Car": drawn(4000, 2, depth=3)}], heading_known=False)["Car"]
    assert odd["depth"] is not None
    # of one half (3 times too wide) .997, of the other (3 times too narrow) .26
    assert odd["depth"][0] == pytest.approx((0.997 + 0.261) / 2, abs=0.02)
    assert held_out([{"Car": drawn(3)}, {"Car": drawn(0)}], heading_known=False)["Car"]["depth"] is None


def test_what_is_stored_leaves_other_classes_as_they_are() -> None:
    measured = calibrate({"Car": drawn(100)}, heading_known=False)
    before: dict[str, Any] = {"calibration": {"Van": {"count": 3}, "Car": {"count": 1}}}
    after = stored(before, measured, ["streets:val"], 0.4)
    assert after["calibration"]["Van"] == {"count": 3}
    assert after["calibration"]["Car"]["count"] == 100
    assert after["calibrated_on"] == {"sets": ["streets:val"], "threshold": 0.4}


# -- the command -------------------------------------------------------------------------------------------------------
@pytest.fixture
def streets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """14 frames with 2 cars and a pedestrian; all are found 1.5 m too far along the ray, turned by .25, with a
    depth_std of 1 m, whatever the picture shows."""
    tree = make_tree(tmp_path / "streets", tuple(f"{i:06d}" for i in range(14)))
    labels = read_objects(tree / "training" / "label_2" / "000000.txt")
    labels = labels[labels.is_class(["Car", "Pedestrian"])]
    truth = labels.boxes3d()
    n = len(truth)
    at = Boxes3D(
        truth.center * (1 + 1.5 / truth.center[:, 2:]), truth.size, truth.yaw + 0.25, truth.labels,
        torch.full((n,), 0.9), torch.from_numpy(labels.xyxy), torch.ones(n), flip_odds=torch.full((n,), 0.5),
    )  # fmt: skip

    def predict(self: Detector, *_: object, **__: object) -> Boxes3D:
        return self.calibration(at.to(torch.float32), torch.tensor([self.classes.index(name) for name in at.labels]))

    monkeypatch.setattr(Detector, "predict", predict)
    return tree


def test_a_calibration_is_stored_and_published(streets: Path, weights: Path, run: Run, tmp_path: Path) -> None:  # noqa: F811
    copy = tmp_path / "w.safetensors"
    copy.write_bytes(weights.read_bytes())
    before, tensors = load_weights(copy)[1], load_file(str(copy))
    command = (streets, "--weights", copy, "--calibrate", "--json", tmp_path / "c.json")
    code, out, err = run(*command)
    assert code == 0, err
    assert load_weights(copy)[1] == before  # without --store nothing is written
    for _ in range(2):  # the second time the file holds the first one's calibration, which must not enter
        code, out, err = run(*command, "--store")
        assert code == 0, err
        assert "Pedestrian: 14 objects, fewer than 20" in out
        assert "wrote calibration into" in out
        after = load_weights(copy)[1]
        car, pedestrian = after["calibration"]["Car"], after["calibration"]["Pedestrian"]
        assert car["depth_scale"] == pytest.approx(1.5, rel=1e-4)
        assert car["yaw_std"] == pytest.approx(0.25, rel=1e-3)
        assert (car["count"], car["flip"], pedestrian["yaw_std"], pedestrian["pooled"]) == (28, 0.5, None, True)
        assert after["calibrated_on"]["sets"] == ["streets"]
    assert {k: v for k, v in after.items() if k not in ("calibration", "calibrated_on")} == before
    assert all(torch.equal(value, tensors[name]) for name, value in load_file(str(copy)).items())
    told = json.loads((tmp_path / "c.json").read_text())
    assert told["calibration"]["Car"] == car
    assert told["held_out"]["Car"]["depth"] == [1, 1]
    boxes = Detector.load(copy, "cpu").predict(np.zeros((1, 1, 3), np.uint8), None)  # type: ignore[arg-type]
    assert boxes.depth_std.tolist() == pytest.approx([1.5] * 3, rel=1e-4)
    assert boxes.yaw_std[:2].tolist() == pytest.approx([0.25] * 2, rel=1e-3)
    assert math.isnan(float(boxes.yaw_std[2]))


def test_one_class_is_calibrated_alone_and_a_threshold_is_not(
    streets: Path,
    weights: Path,  # noqa: F811
    run: Run,  # noqa: F811
    tmp_path: Path,
) -> None:
    copy = tmp_path / "w.safetensors"
    copy.write_bytes(weights.read_bytes())
    common = (streets, "--weights", copy, "--kind", "Car")
    code, _, err = run(*common, "--choose-threshold", "--store")
    assert code == 2
    assert "one threshold for all classes, and Pedestrian, Cyclist would not be looked at" in err
    assert run(*common, "--choose-threshold")[0] == 0  # to look at it harms nobody
    assert "threshold" not in load_weights(copy)[1]
    assert run(*common, "--calibrate", "--store")[0] == 0
    assert set(load_weights(copy)[1]["calibration"]) == {"Car"}
    both = run(streets, "--weights", copy, "--choose-threshold", "--calibrate", "--store")
    assert both[0] == 0
    assert load_weights(copy)[1]["threshold"] == 0.05
    assert set(load_weights(copy)[1]["calibration"]) == {"Car", "Pedestrian", "Cyclist"}


def test_options_that_do_not_go_together(streets: Path, weights: Path, run: Run) -> None:  # noqa: F811
    for more in (("--boxes", "labels"), ("--lift",)):
        code, _, err = run(streets, "--weights", weights, "--calibrate", *more)
        assert code == 2
        assert "--calibrate is for own boxes, without --lift" in err
    code, _, err = run(f"{streets}:first", "--weights", weights, "--calibrate")
    assert code == 2
    assert "3 objects with a place are found, 20 are needed" in err
