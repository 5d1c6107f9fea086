"""Metrics by distance and over time on cases worked by hand; figures say what the numbers say."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from skd_core.boxes import Boxes3D
from skd_core.data.kitti import KittiObjects
from skd_core.errors import UserError
from skd_core.evaluation import plots
from skd_core.evaluation.errors import pair_errors
from skd_core.evaluation.kitti import evaluate, no_objects, objects_from_boxes, precision_recall
from skd_core.evaluation.overlaps import Table
from skd_core.evaluation.range_metrics import depth_error_by_range, distance_ap, distance_curve, recall_by_range
from skd_core.evaluation.temporal import Linker, jitter
from skd_core.training.records import read_run


def objects(*places: tuple[float, float], scores: list[float] | None = None, kind: str = "Car") -> KittiObjects:
    """Cars at (x, z), as wide in the image as they would be."""
    n = len(places)
    if not n:
        return no_objects()
    center = torch.tensor([[x, 1.0, z] for x, z in places], dtype=torch.float64)
    size = torch.tensor([[4.0, 1.6, 1.5]] * n, dtype=torch.float64)
    u, half = 600 + 700 * center[:, 0] / center[:, 2], 700 * 0.9 / center[:, 2]
    xyxy = torch.stack([u - half, 200 - half, u + half, 200 + half], -1)
    given = torch.tensor(scores or [1.0] * n, dtype=torch.float64)
    boxes = Boxes3D(center, size, torch.zeros(n, dtype=torch.float64), (kind,) * n, given, xyxy)
    found = objects_from_boxes(boxes)
    found.truncated[:], found.occluded[:] = 0, 0
    return found


def table(*frames: KittiObjects) -> Table:
    return Table.of(frames)


def test_distance_ap_by_hand() -> None:
    """Two labels; detections by score: hit .3 m off, false, hit 1.5 m off.

    At 2 m the three points (recall, precision) are (.5, 1), (.5, 1/2), (1, 2/3); linear between them, 1 before. At 1 m
    they are (.5, 1), (.5, 1/2), (.5, 1/3), and 0 beyond.
    """
    labels = table(objects((0, 20), (5, 30)))
    results = table(objects((0.3, 20), (-9, 40), (5, 31.5), scores=[0.9, 0.8, 0.7]))
    curve = distance_curve(labels, results, "Car", 2.0)
    assert curve is not None
    assert curve.precision[49] == pytest.approx(1)
    assert curve.precision[50] == pytest.approx(1 / 2)
    assert curve.precision[75] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert curve.precision[100] == pytest.approx(2 / 3)
    strict = distance_curve(labels, results, "car", 1.0)
    assert strict is not None
    assert strict.ap == pytest.approx((39 * 0.9 + (1 / 3 - 0.1)) / 90 / 0.9)  # at recalls .11-.49, .50, then 0
    ap = distance_ap(labels, results, ["Car", "Cyclist"])
    assert ap["Car"]["0.5"] == ap["Car"]["1.0"] == strict.ap
    assert ap["Car"]["2.0"] == ap["Car"]["4.0"] == curve.ap
    assert ap["Car"]["mean"] == pytest.approx((strict.ap + curve.ap) / 2)
    assert ap["Cyclist"] == dict.fromkeys(["0.5", "1.0", "2.0", "4.0", "mean"])


def test_a_label_is_found_once_and_frames_are_apart() -> None:
    labels = table(objects((0, 20)), objects((0, 20)))
    twice = table(objects((0.1, 20), (0, 20), scores=[0.9, 0.8]), no_objects())
    curve = distance_curve(labels, twice, "Car", 0.5)
    assert curve is not None
    assert curve.precision[50] == pytest.approx(1 / 2)  # at recall 1/2 the last of two detections is the false one
    assert curve.precision[51] == 0
    perfect = distance_curve(labels, labels, "Car", 0.5)
    assert perfect is not None
    assert perfect.ap == pytest.approx(1)
    nothing = distance_curve(labels, table(no_objects(), no_objects()), "Car", 0.5)
    assert nothing is not None
    assert nothing.ap == 0


def test_distance_ap_agrees_with_the_devkit() -> None:
    pytest.importorskip("nuscenes")
    from nuscenes.eval.common.data_classes import EvalBoxes
    from nuscenes.eval.common.utils import center_distance
    from nuscenes.eval.detection.algo import accumulate, calc_ap
    from nuscenes.eval.detection.data_classes import DetectionBox

    rng = np.random.default_rng(5)
    truth = [objects(*map(tuple, rng.uniform([-20, 5], [20, 60], (6, 2)))) for _ in range(12)]
    found = []
    for frame in truth:
        keep = frame.location[rng.random(6) < 0.8][:, [0, 2]]
        places = np.concatenate([keep + rng.normal(0, 0.4, keep.shape), rng.uniform([-20, 5], [20, 60], (3, 2))])
        scores = np.concatenate([rng.uniform(0.4, 1, len(keep)), rng.uniform(0, 0.7, 3)])
        found.append(objects(*map(tuple, places), scores=scores.tolist()))

    def eval_boxes(frames: list[KittiObjects]) -> EvalBoxes:
        out = EvalBoxes()
        for i, frame in enumerate(frames):
            places = zip(frame.location[:, [0, 2]].tolist(), frame.score.tolist(), strict=True)
            out.add_boxes(
                str(i),
                [
                    DetectionBox(str(i), (x, z, 0), (1, 1, 1), (1, 0, 0, 0), detection_name="car", detection_score=s)
                    for (x, z), s in places
                ],
            )
        return out

    for distance in (0.5, 1.0, 2.0, 4.0):
        theirs = accumulate(eval_boxes(truth), eval_boxes(found), "car", center_distance, distance)
        ours = distance_curve(table(*truth), table(*found), "Car", distance)
        assert ours is not None
        assert 0 < ours.ap < 1
        assert ours.ap == pytest.approx(calc_ap(theirs, 0.1, 0.1), abs=1e-12)
        np.testing.assert_allclose(ours.precision, theirs.precision, atol=1e-12)


def test_recall_and_depth_error_by_range() -> None:
    labels = [objects((0, 8), (3, 25), (-3, 28), (0, 80))]
    results = [objects((0, 8.4), (3, 22.5))]
    recall = recall_by_range(*map(Table.of, (labels, results)), ["Car", "Cyclist"])["Car"]
    assert {key: (row["labels"], row["found"], row["recall"]) for key, row in recall.items()} == {
        "0-10": (1, 1, 1), "10-20": (0, 0, None), "20-30": (2, 1, 0.5), "30-50": (0, 0, None), "50+": (1, 0, 0),
        "all": (4, 2, 0.5),
    }  # fmt: skip
    errors = depth_error_by_range(pair_errors(labels, results))
    assert errors["0-10"]["count"] == errors["20-30"]["count"] == 1
    assert errors["0-10"]["bias"] == pytest.approx(0.05)
    assert errors["20-30"]["bias"] == pytest.approx(-0.1)
    assert errors["20-30"]["relative_median"] == pytest.approx(0.1)
    assert errors["20-30"]["metres_median"] == pytest.approx(2.5)
    assert errors["50+"] == {"count": 0} | dict.fromkeys(["relative_median", "relative_p90", "bias", "metres_median"])


def test_jitter_is_the_noise_and_not_the_motion() -> None:
    """Four cars stand, one drives 8 m/s ahead, the camera 10 m/s; depth noise 2 %, lateral 0.1 m."""
    rng = np.random.default_rng(3)
    linker = Linker()
    standing = np.array([[-6.0, 60], [6, 66], [-7, 72], [7, 80]])
    for step in range(40):
        moved = standing - [0, step * 1.0]
        places = np.concatenate([moved, [[0, 50 - 0.2 * step]]])
        clean = objects(*map(tuple, places))
        noise = rng.normal(size=(5, 2))
        clean.location[:, 2] *= 1 + 0.02 * noise[:, 0]
        clean.location[:, 0] += 0.1 * noise[:, 1]
        linker.add(step * 100_000_000, clean)
    assert len(linker.tracks) == 5
    found = jitter(linker.tracks)
    assert found["static"]["tracks"] == 4
    assert found["moving"]["tracks"] == 1
    assert found["unknown"]["tracks"] == 0
    assert found["unknown"]["depth"] is None
    for group, slack in (("static", 0.25), ("all", 0.25), ("moving", 0.5)):
        assert found[group]["depth"] == pytest.approx(0.02, rel=slack)
        assert found[group]["lateral"] == pytest.approx(0.1, rel=slack)
        assert found[group]["yaw"] == 0


def test_tracks_end_at_gaps_and_keep_to_their_class() -> None:
    """Four in a row are a track; a pedestrian in the same place and what is alone after a gap are too short for one."""
    linker = Linker()
    seen = {
        0: "Car",
        1: "Car",
        2: "Car",
        3: "Car",
        4: "Pedestrian",
        9: "Car",
        10: "Car",
        20: "Car",
    }  # tenths of seconds
    for tenth, kind in seen.items():
        linker.add(tenth * 100_000_000, objects((0, 20), kind=kind))
    linker.add(2_100_000_000, no_objects())
    for tenth in (22, 23, 24):
        linker.add(tenth * 100_000_000, objects((0, 20)))
    assert [track.steps.tolist() for track in linker.tracks] == [[0, 1, 2, 3], [9, 10, 11]]
    assert jitter([])["all"]["tracks"] == 0


def test_kitti_curves_are_those_behind_ap() -> None:
    labels = [objects((0, 12), (4, 20)), objects((-3, 15))]
    results = [objects((0, 12.1), (4, 26), scores=[0.9, 0.8]), objects((-3, 15), scores=[0.7])]
    scores = evaluate(labels, results)
    for metric, iou in (("2d", 0.7), ("bev", 0.5), ("3d", 0.5)):
        curves = precision_recall(labels, results, "Car", metric, iou)
        assert [100 * c[1:].mean() for c in curves] == scores["Car"][metric]["R40"][f"{iou:.2f}"]
    with pytest.raises(UserError, match="give the same frames"):
        precision_recall(labels, results[:1], "Car", "3d", 0.5)


def test_figures_of_an_evaluation(tmp_path: Path) -> None:
    labels = [objects((0, 12), (4, 20)), no_objects()]
    results = [objects((0, 12.5)), no_objects()]
    written = plots.plot_kitti(labels, results, tmp_path / "plots")
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written)
    assert len(list((tmp_path / "plots").iterdir())) == len(written) == 4
    nothing = [no_objects(), no_objects()]
    plots.png_bytes(plots.plot_depth_errors(pair_errors(labels, nothing)))
    plots.png_bytes(plots.plot_recall(recall_by_range(table(*nothing), table(*results), ["Car"])))
    figure = plots.plot_distance_curves(table(*labels), table(*results), ["Car", "Bus"])
    assert [axes.get_title() for axes in figure.axes] == ["Car"]
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot make this folder"):
        plots.plot_kitti(labels, results, tmp_path / "file" / "x")


def test_runs_over_each_other(tmp_path: Path) -> None:
    ap = {"3d": {"R40": {"0.70": [1.0, 2.5, 3.0]}}, "bev": {"R40": {"0.70": [4.0, None, 6.0]}}}
    lines = [
        {"epoch": 1, "step": 5, "lr": 0.1, "loss": 2.0, "gtm/rho": 1.5},
        {"epoch": 2, "step": 10, "lr": 0.1, "loss": 1.0, "gtm/rho": 1.2, "val": {"student": {"ap": {"Car": ap}}}},
    ]
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        text = "".join(json.dumps(line) + "\n" for line in lines) + '{"epoch": 3, "st'  # cut while it was written
        (tmp_path / name / "metrics.jsonl").write_text(text)
    runs = {name: read_run(tmp_path / name) for name in ("a", "b")}
    assert runs["a"] == lines
    figure = plots.plot_runs(runs)
    panels = {axes.get_title(): axes for axes in figure.axes if axes.get_visible()}
    assert list(panels) == ["AP 3D Car 0.70, student", "loss", "gtm/rho"]
    assert [line.get_label() for line in panels["loss"].get_lines()] == ["a", "b"]
    assert panels["loss"].get_lines()[0].get_xydata().tolist() == [[5, 2], [10, 1]]
    assert panels["AP 3D Car 0.70, student"].get_lines()[0].get_ydata().tolist() == [2.5]
    plots.write_figure(tmp_path / "runs.png", figure)
    assert (tmp_path / "runs.png").read_bytes().startswith(b"\x89PNG")


def test_runs_that_show_nothing_are_named() -> None:
    with pytest.raises(UserError, match="no runs"):
        plots.plot_runs({})
    with pytest.raises(UserError, match="no losses"):
        plots.plot_runs({"a": [{"step": 1, "x": math.nan}]})


def test_extreme_values_and_thousands_of_keys_make_a_bounded_figure(tmp_path: Path) -> None:
    many = {f"k{k}": float(k) for k in range(3000)}
    odd = {
        "loss": 10**400,
        "a": 1e308,
        "b": math.inf,
        "c": -1e308,
        "d": True,
        "$x_{": 1.0,
        "_under": 2.0,
        "e" * 9999: 3,
    }
    odd |= {"val": [1], "f": None, "gtm/rho": 0.5}
    broken = [{"student": None}, {"student": {"ap": 7}}, {"s": {"ap": {"Car": {"3d": {"R40": {"0.70": 5}}}}}}]
    records = [{"step": 1, **many, **odd}, *({"step": 2 + k, "val": val} for k, val in enumerate(broken))]
    (tmp_path / "metrics.jsonl").write_text("\n".join(json.dumps(record) for record in records))
    figure = plots.plot_runs({"_run": read_run(tmp_path)})
    titles = [axes.get_title() for axes in figure.axes if axes.get_visible()]
    assert len(titles) == plots.MAX_PANELS
    assert titles[0] == "gtm/rho"
    assert figure.get_suptitle().endswith(
        f"not drawn: {3004 - plots.MAX_PANELS} more curves, 4 values that are not finite or beyond 1e+30"
    )
    assert all(axes.get_lines() for axes in figure.axes if axes.get_visible())
    width, height = figure.get_size_inches()
    assert width < 20
    assert height < 40
    assert plots.png_bytes(figure).startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "line", ['{"step": null}', '{"step": "1"}', '{"step": -1}', '{"step": 1e3}', '{"step": ' + "9" * 50 + "}", "[1]",
             '{"step": ' + "9" * 5000 + "}", "[" * 10**5, "null", '{"step": true}'],
)  # fmt: skip
def test_a_line_that_is_no_record_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "metrics.jsonl").write_text(f'{line}\n{{"step": 1, "loss": 1}}\n')
    with pytest.raises(UserError, match=r"metrics.jsonl:1: no "):
        read_run(tmp_path)
