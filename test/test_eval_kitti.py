"""The KITTI evaluator against a literal, slow one and against the official evaluator's numbers on real results."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely.geometry import Polygon
from typer.testing import CliRunner

from skd_core.boxes import Boxes3D
from skd_core.cli import app
from skd_core.data.kitti import KittiObjects
from skd_core.errors import UserError
from skd_core.evaluation.kitti import CLASSES, Scores, evaluate, no_objects, objects_from_boxes, read_folders

KITTI_EVAL = Path(__file__).resolve().parents[1].parent / "shared" / "data" / "kitti_eval"
needs_data = pytest.mark.skipif(not KITTI_EVAL.is_dir(), reason=f"no real labels and results at {KITTI_EVAL}")


# --- A literal evaluator: one frame, one label, one detection, one threshold at a time -------------------------------


def reference_overlap(metric: str, det: dict, gt: dict, of_detection: bool) -> float:
    if metric == "2d":
        (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = det["xyxy"], gt["xyxy"]
        w, h = min(ax2, bx2) - max(ax1, bx1), min(ay2, by2) - max(ay1, by1)
        if w <= 0 or h <= 0:
            return 0.0
        common = w * h
        size_det, size_gt = (ax2 - ax1) * (ay2 - ay1), (bx2 - bx1) * (by2 - by1)
    else:
        p, q = ground_polygon(det), ground_polygon(gt)
        common, size_det, size_gt = p.intersection(q).area, p.area, q.area
        if metric == "3d":
            top_det, top_gt = det["location"][1] - det["hwl"][0], gt["location"][1] - gt["hwl"][0]
            common *= max(0.0, min(det["location"][1], gt["location"][1]) - max(top_det, top_gt))
            size_det, size_gt = math.prod(det["hwl"]), math.prod(gt["hwl"])
    return common / size_det if of_detection else common / (size_det + size_gt - common)


def ground_polygon(box: dict) -> Polygon:
    (_, width, length), (x, _, z) = box["hwl"], box["location"]
    c, s = math.cos(box["ry"]), math.sin(box["ry"])
    ends = [(1, 1), (1, -1), (-1, -1), (-1, 1)]
    points = [(0.5 * i * length, 0.5 * j * width) for i, j in ends]
    return Polygon([(x + a * c + b * s, z - a * s + b * c) for a, b in points])


def reference_frame(frame: KittiObjects) -> list[dict]:
    return [
        {
            "type": frame.type[i].lower(), "truncated": frame.truncated[i], "occluded": frame.occluded[i],
            "alpha": frame.alpha[i], "xyxy": frame.xyxy[i].tolist(), "hwl": frame.dimensions[i].tolist(),
            "location": frame.location[i].tolist(), "ry": frame.rotation_y[i], "score": frame.score[i],
        }
        for i in range(len(frame))
    ]  # fmt: skip


def reference_clean(name: str, gts: list[dict], dets: list[dict], level: int) -> tuple[list[int], list[int]]:
    """0 valid, 1 ignored, -1 no part in this."""
    neighbour = {"car": "van", "pedestrian": "person_sitting"}.get(name)
    gt_state, det_state = [], []
    for gt in gts:
        height = gt["xyxy"][3] - gt["xyxy"][1]
        hard = (
            gt["occluded"] > (0, 1, 2)[level]
            or gt["truncated"] > (0.15, 0.3, 0.5)[level]
            or height <= (40, 25, 25)[level]
        )
        if gt["type"] == name:
            gt_state.append(1 if hard else 0)
        else:
            gt_state.append(1 if gt["type"] == neighbour else -1)
    for det in dets:
        if abs(det["xyxy"][3] - det["xyxy"][1]) < (40, 25, 25)[level]:
            det_state.append(1)
        else:
            det_state.append(0 if det["type"] == name else -1)
    return gt_state, det_state


def reference_statistics(
    overlap: dict, gts: list, dets: list, gt_state: list, det_state: list, least: float, threshold: float | None
) -> tuple[list[float], int, int, float]:
    """Scores of the true positives, their number, false positives, summed similarity; one frame, one threshold."""
    counting = threshold is not None
    assigned = [False] * len(dets)
    below = [counting and det["score"] < threshold for det in dets]
    scores, similarity = [], 0.0
    for i, gt in enumerate(gts):
        if gt_state[i] == -1:
            continue
        chosen, best, chosen_is_ignored = None, 0.0, False
        for j, det in enumerate(dets):
            if det_state[j] == -1 or assigned[j] or below[j]:
                continue
            value = overlap[i, j]
            if not value > least:
                continue
            if not counting:
                if chosen is None or det["score"] > best:
                    chosen, best = j, det["score"]
            elif det_state[j] == 0 and (value > best or chosen_is_ignored):
                chosen, best, chosen_is_ignored = j, value, False
            elif det_state[j] == 1 and chosen is None:
                chosen, chosen_is_ignored = j, True
        if chosen is None:
            continue
        assigned[chosen] = True
        if gt_state[i] == 0 and det_state[chosen] == 0:
            scores.append(dets[chosen]["score"])
            similarity += (1 + math.cos(gt["alpha"] - dets[chosen]["alpha"])) / 2
    fp = sum(not (assigned[j] or below[j]) and det_state[j] == 0 for j in range(len(dets)))
    for i, gt in enumerate(gts):
        if gt["type"] != "dontcare":
            continue
        for j in range(len(dets)):
            if not (assigned[j] or below[j]) and det_state[j] == 0 and overlap[i, j] > least:
                assigned[j] = True
                fp -= 1
    return scores, len(scores), fp, similarity


def reference_thresholds(scores: list[float], count: int) -> list[float]:
    scores = sorted(scores, reverse=True)
    chosen, current = [], 0.0
    for i, score in enumerate(scores):
        is_last = i == len(scores) - 1
        left, right = (i + 1) / count, (i + 1) / count if is_last else (i + 2) / count
        if right - current < current - left and not is_last:
            continue
        chosen.append(score)
        current += 1 / 40
    return chosen


def reference_evaluate(labels: list[KittiObjects], results: list[KittiObjects]) -> Scores:
    frames = [(reference_frame(a), reference_frame(b)) for a, b in zip(labels, results, strict=True)]
    out: dict = {}
    for metric in ("2d", "bev", "3d"):
        overlaps = [
            {
                (i, j): reference_overlap(metric, det, gt, gt["type"] == "dontcare")
                for i, gt in enumerate(gts)
                for j, det in enumerate(dets)
            }
            for gts, dets in frames
        ]
        for name in CLASSES:
            for least in (0.7, 0.5) if name == "Car" else (0.5, 0.25):
                for level in range(3):
                    states = [reference_clean(name.lower(), gts, dets, level) for gts, dets in frames]
                    everything = list(zip(frames, overlaps, states, strict=True))

                    def run(threshold: float | None, everything=everything, least=least):  # type: ignore[no-untyped-def]
                        return [reference_statistics(o, *f, *s, least, threshold) for f, o, s in everything]

                    count = sum(state.count(0) for state, _ in states)
                    thresholds = reference_thresholds([x for scores, *_ in run(None) for x in scores], count)
                    precision, orientation = [0.0] * 41, [0.0] * 41
                    for k, threshold in enumerate(thresholds):
                        tp, fp, similarity = (sum(column) for column in list(zip(*run(threshold), strict=True))[1:])
                        precision[k] = tp / (tp + fp) if tp + fp else 0.0
                        orientation[k] = similarity / (tp + fp) if tp + fp else 0.0
                    for key, curve in ((metric, precision), ("aos", orientation)):
                        if key == "aos" and metric != "2d":
                            continue
                        best = [max(curve[k:]) for k in range(41)]
                        for kind, points in (("R11", best[::4]), ("R40", best[1:])):
                            place = out.setdefault(name, {}).setdefault(key, {}).setdefault(kind, {})
                            place.setdefault(f"{least:.2f}", []).append(100 * sum(points) / len(points))
    return out


# --- Random streets ---------------------------------------------------------------------------------------------------

LABEL_TYPES = ("Car", "Car", "Car", "Van", "Pedestrian", "Pedestrian", "Person_sitting", "Cyclist", "Truck", "DontCare")


def objects(rows: list[tuple]) -> KittiObjects:
    """Rows of (type, truncated, occluded, alpha, xyxy, hwl, location, ry, score)."""
    if not rows:
        return no_objects()
    kind, *columns = zip(*rows, strict=True)
    return KittiObjects(list(kind), *(np.array(column, dtype=np.float64) for column in columns))


def random_frame(rng: random.Random) -> tuple[KittiObjects, KittiObjects]:
    """Crowded, so that objects compete; coarse numbers, so that scores, 2D overlaps and heights tie.

    3D places are no round numbers: shapely and our IoU may round an overlap of exactly 0.5 to different sides.
    """
    labels, results = [], []
    for _ in range(rng.choice((0, 1, 4, 7))):
        kind = rng.choice(LABEL_TYPES)
        x1, y1 = rng.randrange(0, 160, 8), rng.randrange(0, 40, 4)
        xyxy = (x1, y1, x1 + rng.choice((24, 40, 60)), y1 + rng.choice((20, 25, 26, 39, 40, 41, 60, 80, 80)))
        hwl = {"C": (1.5, 1.75, 4.0), "P": (1.75, 0.75, 0.75)}.get(kind[0], (2.0, 1.0, 2.0))
        location = (rng.choice((-2, 0, 1, 2)), rng.choice((1.5, 1.75)), rng.choice((10, 11, 12)))
        ry = rng.choice((0, 0.1, 1.5))
        truncated, occluded = rng.choice((0, 0, 0, 0, 0.15, 0.2, 0.4, 1)), rng.choice((0, 0, 0, 0, 1, 2, 3))
        alpha = rng.uniform(-3, 3)
        if kind == "DontCare":
            labels.append((kind, -1, -1, -10, xyxy, (-1, -1, -1), (-1000, -1000, -1000), -10, 1))
        else:
            labels.append((kind, truncated, occluded, alpha, xyxy, hwl, location, ry, 1))
        for _ in range(rng.choice((0, 1, 1, 2, 3))):
            found = rng.choice((kind, kind, kind, "car", "Pedestrian", "Cyclist", "Misc"))
            found = "Car" if found == "DontCare" else found
            box = tuple(v + rng.choice((0, 0, 0, 1, -2, 4)) for v in xyxy)
            place = tuple(v + rng.choice((0, 0, 0.1, -0.3, 0.5)) + rng.uniform(-1e-4, 1e-4) for v in location)
            size = tuple(v * rng.choice((1, 1, 1.1)) for v in hwl)
            turned = ry + rng.choice((0, 0, 0.05, 3.14))
            score = rng.choice((rng.random(), rng.random(), round(rng.random(), 1), -5.0))
            results.append((found, -1, -1, alpha + rng.choice((0, 0.3, 3.1)), box, size, place, turned, score))
    results += rng.sample(results, len(results) // 4)  # found twice, word for word
    rng.shuffle(results)
    return objects(labels), objects(results)


def assert_same(ours: Scores, wanted: Scores) -> None:
    assert ours.keys() == wanted.keys()
    for name in wanted:
        assert set(ours[name]) == {"2d", "bev", "3d", "aos"}
        for metric, kinds in wanted[name].items():
            assert set(ours[name][metric]) == {"R40", "R11"}
            for kind, ious in kinds.items():
                assert list(ours[name][metric][kind]) == (["0.70", "0.50"] if name == "Car" else ["0.50", "0.25"])
                for iou, values in ious.items():
                    assert ours[name][metric][kind][iou] == pytest.approx(values, abs=1e-9), (name, metric, kind, iou)


@pytest.mark.parametrize("seed", range(8))
def test_many_random_frames_agree_with_the_literal_evaluator(seed: int) -> None:
    rng = random.Random(seed)
    labels, results = zip(*(random_frame(rng) for _ in range(200)), strict=True)
    wanted = reference_evaluate(list(labels), list(results))
    assert sum(value > 0 for m in wanted["Car"].values() for k in m.values() for v in k.values() for value in v) > 20
    assert_same(evaluate(labels, results), wanted)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 4))
def test_few_random_frames_agree_with_the_literal_evaluator(seed: int, frames: int) -> None:
    rng = random.Random(seed)
    labels, results = zip(*(random_frame(rng) for _ in range(frames)), strict=True)
    assert_same(evaluate(labels, results), reference_evaluate(list(labels), list(results)))


# --- Hand-worked rules ------------------------------------------------------------------------------------------------

CAR = ("Car", 0, 0, 0.5, (100, 100, 200, 160), (1.5, 1.7, 4.0), (1.0, 1.6, 20.0), 0.55, 1)
DONT_CARE = ("DontCare", -1, -1, -10, (400, 100, 500, 200), (-1, -1, -1), (-1000, -1000, -1000), -10, 1)


def changed(row: tuple, **columns: object) -> tuple:
    names = ("type", "truncated", "occluded", "alpha", "xyxy", "hwl", "location", "ry", "score")
    return tuple(columns.get(name, value) for name, value in zip(names, row, strict=True))


def elsewhere(row: tuple, score: float) -> tuple:
    return changed(row, xyxy=(700, 100, 800, 160), location=(9.0, 1.6, 40.0), score=score)


def many(label_rows: list[tuple], result_rows: list[tuple], frames: int = 80) -> Scores:
    """The same frame 80 times: then every recall point is reached and a constant precision is the AP."""
    return evaluate([objects(label_rows)] * frames, [objects(result_rows)] * frames)


@pytest.mark.parametrize("metric", ["2d", "bev", "3d", "aos"])
def test_perfect_detections(metric: str) -> None:
    scores = many([CAR], [CAR])["Car"][metric]
    assert scores["R40"] == {"0.70": [100, 100, 100], "0.50": [100, 100, 100]}
    assert scores["R11"] == {"0.70": [100, 100, 100], "0.50": [100, 100, 100]}


def test_one_false_detection_per_true_one_halves_precision() -> None:
    scores = many([CAR], [CAR, elsewhere(CAR, 1)])["Car"]
    assert scores["3d"]["R40"]["0.70"] == pytest.approx([50, 50, 50])
    assert scores["aos"]["R40"]["0.70"] == pytest.approx([50, 50, 50])
    low = many([CAR], [CAR, elsewhere(CAR, 0.5)])["Car"]  # never reaches a threshold
    assert low["3d"]["R40"]["0.70"] == pytest.approx([100, 100, 100])


def test_half_the_recall() -> None:
    """20 of 40 found: recalls 0, 1/40 ... 19/40 have precision 1; R11 sees 0, .1, ... .4, R40 leaves recall 0 out."""
    scores = evaluate([objects([CAR])] * 40, [objects([CAR])] * 20 + [no_objects()] * 20)["Car"]["3d"]
    assert scores["R40"]["0.70"] == pytest.approx([100 * 19 / 40] * 3)
    assert scores["R11"]["0.70"] == pytest.approx([100 * 5 / 11] * 3)


def test_few_labels_cannot_reach_all_recall_points() -> None:
    """The official rule gives one threshold per true positive: a single perfect car scores 0 in R40 and 1/11 in R11."""
    scores = evaluate([objects([CAR])], [objects([CAR])])["Car"]["3d"]
    assert scores["R40"]["0.70"] == [0, 0, 0]
    assert scores["R11"]["0.70"] == pytest.approx([100 / 11] * 3)


def test_overlap_must_exceed_the_minimum() -> None:
    half = changed(CAR, xyxy=(100, 100, 200, 130))  # 2D IoU exactly .5, still above the minimum height of 25
    assert many([CAR], [half])["Car"]["2d"]["R40"]["0.50"] == [0, 0, 0]
    more = changed(CAR, xyxy=(100, 100, 200, 130.1))
    assert many([CAR], [more])["Car"]["2d"]["R40"]["0.50"] == [0, 100, 100]  # lower than 40: ignored when easy


@pytest.mark.parametrize(
    ("height", "counted"), [(25, [0, 0, 0]), (25.01, [0, 1, 1]), (40, [0, 1, 1]), (40.01, [1, 1, 1])]
)
def test_labels_must_be_higher_than_the_minimum(height: float, counted: list[int]) -> None:
    row = changed(CAR, xyxy=(100, 100, 200, 100 + height))
    assert many([row], [row])["Car"]["2d"]["R40"]["0.70"] == [100 * c for c in counted]


@pytest.mark.parametrize(
    ("columns", "counted"),
    [
        ({"occluded": 1}, [0, 1, 1]), ({"occluded": 2}, [0, 0, 1]), ({"occluded": 3}, [0, 0, 0]),
        ({"truncated": 0.15}, [1, 1, 1]), ({"truncated": 0.3}, [0, 1, 1]), ({"truncated": 0.51}, [0, 0, 0]),
    ],
)  # fmt: skip
def test_difficulties(columns: dict, counted: list[int]) -> None:
    """An ignored label takes its detection along: it is neither found nor is the detection wrong."""
    other = changed(CAR, xyxy=(400, 100, 500, 160), location=(-3.0, 1.6, 15.0))
    alone = many([changed(CAR, **columns)], [CAR])["Car"]["3d"]["R40"]["0.70"]
    assert alone == [100 * c for c in counted]
    assert many([changed(CAR, **columns), other], [CAR, other])["Car"]["3d"]["R40"]["0.70"] == [100, 100, 100]


def test_a_van_is_no_wrong_car_and_a_truck_is() -> None:
    other = elsewhere(CAR, 1)
    for kind, precision in (("Van", 100), ("van", 100), ("Truck", 50), ("Person_sitting", 50)):
        scores = many([CAR, changed(other, type=kind)], [CAR, other])["Car"]
        assert scores["2d"]["R40"]["0.70"] == pytest.approx([precision] * 3), kind
        assert scores["3d"]["R40"]["0.70"] == pytest.approx([precision] * 3), kind


def test_dont_care_forgives_in_the_image_only() -> None:
    inside = changed(elsewhere(CAR, 1), xyxy=(410, 110, 490, 190))
    scores = many([CAR, DONT_CARE], [CAR, inside])["Car"]
    assert scores["2d"]["R40"]["0.70"] == [100, 100, 100]
    assert scores["bev"]["R40"]["0.70"] == pytest.approx([50, 50, 50])
    assert scores["3d"]["R40"]["0.70"] == pytest.approx([50, 50, 50])


def test_a_low_detection_of_any_class_absorbs_a_label() -> None:
    """An oddity of the official evaluator: below the minimum height the class of a detection is not looked at."""
    row = changed(CAR, xyxy=(100, 100, 200, 126))
    low = changed(row, type="Pedestrian", xyxy=(100, 101, 200, 125), score=2)
    assert many([row], [row])["Car"]["2d"]["R40"]["0.70"] == [0, 100, 100]
    assert many([row], [row, low])["Car"]["2d"]["R40"]["0.70"] == [0, 0, 0]


def test_orientation_similarity_by_hand() -> None:
    turned = changed(CAR, alpha=0.5 + math.pi / 3)
    assert many([CAR], [turned])["Car"]["aos"]["R40"]["0.70"] == pytest.approx([75, 75, 75])  # (1 + cos 60 deg) / 2
    assert many([CAR], [changed(CAR, alpha=0.5 + math.pi)])["Car"]["aos"]["R40"]["0.70"] == pytest.approx([0, 0, 0])


def test_what_cannot_be_computed_is_none_and_what_was_not_found_is_zero() -> None:
    scores = many([CAR], [CAR, changed(elsewhere(CAR, 0.1), alpha=-10)])
    assert scores["Car"]["aos"]["R40"]["0.70"] == [None] * 3
    assert scores["Car"]["2d"]["R40"]["0.70"] == [100] * 3
    image_only = many([CAR], [changed(CAR, hwl=(-1, -1, -1), location=(-1000, -1000, -1000))])["Car"]
    assert image_only["2d"]["R40"]["0.70"] == [100] * 3
    assert image_only["bev"]["R40"]["0.70"] == image_only["3d"]["R11"]["0.50"] == [None] * 3
    assert scores["Cyclist"]["3d"]["R40"]["0.25"] == [0, 0, 0]
    nothing = evaluate([objects([CAR])], [no_objects()])
    assert nothing["Car"]["aos"]["R40"]["0.70"] == [0, 0, 0]


def test_boxes_in_memory_score_as_their_file() -> None:
    labels, results = objects([CAR] * 1), objects([CAR])
    boxes = Boxes3D.from_kitti(
        results.location, results.dimensions, torch.from_numpy(results.rotation_y), results.type,
        scores=torch.from_numpy(results.score), xyxy=torch.from_numpy(results.xyxy),
    )  # fmt: skip
    memory = objects_from_boxes(boxes)
    np.testing.assert_allclose(memory.location, results.location)
    np.testing.assert_allclose(memory.alpha, 0.55 - math.atan2(1, 20))
    assert evaluate([labels] * 80, [memory] * 80)["Car"]["3d"]["R40"]["0.70"] == [100] * 3
    boxes.xyxy = torch.full((1, 4), math.nan)
    with pytest.raises(UserError, match="without a 2D box"):
        objects_from_boxes(boxes)


def test_wrong_arguments() -> None:
    with pytest.raises(UserError, match="2 frames of labels, 1 of results"):
        evaluate([no_objects()] * 2, [no_objects()])
    with pytest.raises(UserError, match="unknown class 'Bus'; KITTI evaluates Car, Pedestrian, Cyclist"):
        evaluate([no_objects()], [no_objects()], classes=("Bus",))


# --- Folders and the command ------------------------------------------------------------------------------------------


def write_frame(folder: Path, name: str, rows: list[tuple], scores: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for kind, truncated, occluded, alpha, xyxy, hwl, location, ry, score in rows:
        values = [truncated, occluded, alpha, *xyxy, *hwl, *location, ry] + ([score] if scores else [])
        lines.append(" ".join([kind, *map(str, values)]) + "\n")
    (folder / f"{name}.txt").write_text("".join(lines))


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    for i in range(40):
        write_frame(tmp_path / "label_2", f"{i:06d}", [CAR, DONT_CARE], scores=False)
        if i < 30:
            write_frame(tmp_path / "results", f"{i:06d}", [CAR], scores=True)
    write_frame(tmp_path / "results", "000099", [CAR], scores=True)
    return tmp_path / "label_2", tmp_path / "results"


def command(*arguments: object):  # type: ignore[no-untyped-def]
    return CliRunner().invoke(app, ["eval", "kitti", *map(str, arguments)])


def test_command(folders: tuple[Path, Path], tmp_path: Path) -> None:
    labels, results = folders
    done = command("--labels", labels, "--results", results, "--json", tmp_path / "ap.json")
    assert done.exit_code == 0, done.output
    assert "10 of 40 frames have no result file" in done.output
    assert "1 result files have no label file and are left out, first 000099" in done.output
    scores = json.loads((tmp_path / "ap.json").read_text())
    assert list(scores) == ["Car", "Pedestrian", "Cyclist"]
    assert scores["Car"]["3d"]["R40"]["0.70"] == pytest.approx([100 * 29 / 40] * 3)
    assert "72.50" in done.output
    first = done.stdout.splitlines()
    assert first[0].startswith("KITTI AP (R40), percent; the figure usually quoted: 3D, moderate")
    car = next(line.split() for line in first if line.strip().startswith("Car"))
    assert car == ["Car", "0.70", "72.50", "72.50", "72.50", "72.50", "72.50", "40"]
    assert "R11" not in done.stdout.replace("other overlaps and R11", "")
    assert "Car: 40 labels count at moderate difficulty, too few for an AP to compare by" in done.output
    assert "Cyclist: no label counts at moderate difficulty; its AP has no meaning" in done.output
    everything = command("--labels", labels, "--results", results, "--full").stdout
    assert "R11" in everything
    assert "AOS" in everything
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ap.json", "label_2", "results"]


def test_command_with_error_budget(folders: tuple[Path, Path], tmp_path: Path) -> None:
    labels, results = folders
    done = command("--labels", labels, "--results", results, "--json", tmp_path / "ap.json", "--error-budget")
    assert done.exit_code == 0, done.output
    data = json.loads((tmp_path / "ap.json").read_text())
    assert data["error_budget"]["baseline"]["Car"] == data["Car"]
    assert data["errors"]["Car"]["count"] == 30
    assert data["errors"]["Cyclist"]["depth_median"] is None


def test_results_in_the_official_subfolder(folders: tuple[Path, Path], tmp_path: Path) -> None:
    labels, results = folders
    results.rename(tmp_path / "data")
    (tmp_path / "run").mkdir()
    (tmp_path / "data").rename(tmp_path / "run" / "data")
    assert len(read_folders(labels, tmp_path / "run").missing) == 10


def test_wrong_folders_and_files(folders: tuple[Path, Path], tmp_path: Path) -> None:
    labels, results = folders
    with pytest.raises(UserError, match="nowhere: no such folder of labels"):
        read_folders(tmp_path / "nowhere", results)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty: no results here"):
        read_folders(labels, tmp_path / "empty")
    write_frame(tmp_path / "other", "000777", [CAR], scores=True)
    with pytest.raises(UserError, match="other: no result file is named like a label file"):
        read_folders(labels, tmp_path / "other")
    (results / "000003.txt").write_text("Car 1 2\n")
    with pytest.raises(UserError, match=r"000003.txt:1: expected 16 columns"):
        read_folders(labels, results)


def test_a_result_clipped_to_nothing_is_a_miss_not_an_error(folders: tuple[Path, Path]) -> None:
    """Detectors clip boxes beside the image to x2 < x1; the official evaluator takes them, and so do we."""
    labels, results = folders
    write_frame(results, "000000", [changed(CAR, xyxy=(1300, 100, 1242, 160))], scores=True)
    read = read_folders(labels, results)
    scores = evaluate(read.labels, read.results)["Car"]
    assert scores["2d"]["R40"]["0.70"] == pytest.approx([100 * 28 / 40 * 29 / 30] * 3)  # also a false one
    assert scores["3d"]["R40"]["0.70"] == pytest.approx([100 * 29 / 40] * 3)


@needs_data
def test_official_numbers_of_point_gnn() -> None:
    official = json.loads((KITTI_EVAL / "official_ap.json").read_text())
    folders = read_folders(KITTI_EVAL / "label_2", KITTI_EVAL / "pointgnn")
    assert (len(folders.names), folders.missing, folders.unknown) == (1641, [], [])
    scores = evaluate(folders.labels, folders.results)["Car"]
    metrics = {"car_detection": "2d", "car_detection_ground": "bev", "car_detection_3d": "3d"}
    compared = 0
    for key, difficulties in official.items():
        for level, difficulty in enumerate(("easy", "moderate", "hard")):
            for kind, value in difficulties[difficulty].items():
                ours = scores[metrics[key.split("/")[1]]][kind]["0.70"][level]
                assert ours == pytest.approx(value, abs=0.001), (key, difficulty, kind)
                compared += 1
    assert compared == 18


@needs_data
def test_real_frames_agree_with_the_literal_evaluator() -> None:
    folders = read_folders(KITTI_EVAL / "label_2", KITTI_EVAL / "pointgnn")
    labels, results = folders.labels[:60], folders.results[:60]
    assert_same(evaluate(labels, results), reference_evaluate(labels, results))
