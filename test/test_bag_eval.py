"""Data sets as bags, and their evaluation: the same numbers as from the folder."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

from skd_core.data.bag import find_cameras, read_detections, read_frames, read_texts
from skd_core.data.bag_make import make_bag
from skd_core.data.kitti import KittiDataset, read_objects
from skd_core.errors import UserError

CLASSES = ("Car", "Pedestrian", "Cyclist", "Van", "Truck")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_dataset(tmp_path_factory.mktemp("data") / "set", frames=5)


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_a_data_set_survives_as_a_bag(root: Path, tmp_path: Path, storage: str) -> None:
    assert make_bag("kitti", root, tmp_path / "bag", rate=20, storage=storage) == 5
    dataset = KittiDataset(root)
    frames = list(read_frames(tmp_path / "bag"))
    truth = list(read_detections(tmp_path / "bag", classes=CLASSES))
    texts = list(read_texts(tmp_path / "bag", "/camera/ground_truth_kitti"))
    assert {b.stamp - a.stamp for a, b in itertools.pairwise(frames)} == {50_000_000}
    for index in range(5):
        assert np.array_equal(frames[index].image, dataset[index].image.permute(1, 2, 0).numpy())
        assert torch.equal(frames[index].camera.P, dataset[index].camera.P)
        label = dataset.files(index)["label"]
        expected, (stamp, frame_id, boxes) = read_objects(label).boxes3d(), truth[index]
        assert (stamp, frame_id, boxes.labels) == (frames[index].stamp, "camera_optical_frame", expected.labels)
        torch.testing.assert_close(boxes.center, expected.center, rtol=0, atol=0)
        torch.testing.assert_close(boxes.size, expected.size, rtol=0, atol=0)
        torch.testing.assert_close(boxes.yaw, expected.yaw, rtol=0, atol=1e-12)
        assert texts[index] == (stamp, label.read_text())


def test_a_folder_of_images_as_a_bag(root: Path, tmp_path: Path) -> None:
    images, calib = root / "training" / "image_2", root / "training" / "calib" / "000000.txt"
    assert make_bag("folder", images, tmp_path / "bag", camera=calib) == 5
    assert [c.image for c in find_cameras(tmp_path / "bag")] == ["/camera/image"]
    with pytest.raises(UserError, match="no Detection3DArray"):
        list(read_detections(tmp_path / "bag"))


def test_wrong_options_of_bag_make_are_named(root: Path, tmp_path: Path) -> None:
    for arguments, message in [
        (("kitty", root, tmp_path / "x"), "must be kitti, folder or nuscenes"),
        (("folder", root, tmp_path / "x"), "--camera FILE goes with folder"),
        (("kitti", root, tmp_path / "x", None, root / "calib.txt"), "--camera FILE goes with folder"),
        (("kitti", root, tmp_path / "x", None, None, 0.0), "--rate 0"),
        (("kitti", root, tmp_path / "x", None, None, 10.0, "hdf5"), "--storage hdf5"),
    ]:
        with pytest.raises(UserError, match=message):
            make_bag(*arguments)
    assert list(tmp_path.iterdir()) == []
