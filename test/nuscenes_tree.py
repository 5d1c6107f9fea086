"""Writes nuScenes trees: all 13 tables of v1.0 as its schema has them, images and maps; and one miniature world."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

Quaternion = tuple[float, float, float, float]  # w, x, y, z
Vector = tuple[float, float, float]

ATTRIBUTES = ("vehicle.parked", "vehicle.moving", "pedestrian.moving", "cycle.without_rider")
VISIBILITY = {"1": "v0-40", "2": "v40-60", "3": "v60-80", "4": "v80-100"}
MOUNTS = {  # degrees to the left of forward, focal length in pixels of a 1600x900 image
    "CAM_FRONT": (0, 1266.0), "CAM_FRONT_RIGHT": (-55, 1260.0), "CAM_BACK_RIGHT": (-110, 1257.0),
    "CAM_BACK": (180, 809.0), "CAM_BACK_LEFT": (110, 1256.0), "CAM_FRONT_LEFT": (55, 1272.0),
}  # fmt: skip


@dataclass
class Thing:
    """An object in one key frame, in the global frame; size is (w, l, h), yaw about z up."""

    instance: str
    category: str
    translation: Vector
    size: Vector
    yaw: float
    visibility: str = "4"
    points: int = 20
    attribute: str | None = None


@dataclass
class Shot:
    """What one sensor took: its calibration, and the ego pose at that time."""

    rotation: Quaternion
    translation: Vector
    ego_rotation: Quaternion
    ego_translation: Vector
    intrinsic: list[list[float]] = field(default_factory=list)
    size: tuple[int, int] = (0, 0)
    picture: Path | None = None  # linked; drawn without it
    name: str = ""  # of the file, without suffix


@dataclass
class KeyFrame:
    """One sample: shots by channel, LIDAR_TOP among them."""

    timestamp: int  # microseconds
    shots: dict[str, Shot]
    things: list[Thing]


def token(*parts: object) -> str:
    """32 hexadecimal digits, as nuScenes' are."""
    return hashlib.md5("/".join(map(str, parts)).encode()).hexdigest()


def quaternion(*, yaw: float = 0.0, pitch: float = 0.0, roll: float = 0.0) -> Quaternion:
    """Rz(yaw) Ry(pitch) Rx(roll), radians."""
    (cy, sy), (cp, sp), (cr, sr) = ((math.cos(a / 2), math.sin(a / 2)) for a in (yaw, pitch, roll))
    return (
        cy * cp * cr + sy * sp * sr, cy * cp * sr - sy * sp * cr, cy * sp * cr + sy * cp * sr,
        sy * cp * cr - cy * sp * sr,
    )  # fmt: skip


def matrix(q: Quaternion) -> np.ndarray:
    """shape (3, 3), by rotating the axes with the sandwich product v + 2 w (u x v) + 2 u x (u x v)."""
    w, u = q[0], np.array(q[1:])
    columns = [v + 2 * w * np.cross(u, v) + 2 * np.cross(u, np.cross(u, v)) for v in np.eye(3)]
    return np.stack(columns, 1)


def camera_quaternion(left: float, down: float, roll: float) -> Quaternion:
    """Camera (x right, z forward) to ego of one that looks ``left`` of forward and ``down``, radians.

    Rz(left - 90 degrees) Rx(-90 degrees - down), after Rz(roll) about the optical axis.
    """
    w, x, y, z = quaternion(yaw=left - math.pi / 2, roll=-math.pi / 2 - down)
    k, s = math.cos(roll / 2), math.sin(roll / 2)
    return (w * k - z * s, x * k + y * s, y * k - x * s, z * k + w * s)


def corners(thing: Thing) -> np.ndarray:
    """shape (8, 3), global."""
    width, length, height = thing.size
    signs = np.array([[a, b, c] for a in (-1, 1) for b in (-1, 1) for c in (-1, 1)])
    return (0.5 * signs * [length, width, height]) @ matrix(quaternion(yaw=thing.yaw)).T + thing.translation


def to_pixels(shot: Shot, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """shape (N, 3) global -> pixels (N, 2) and depths (N,)."""
    ego = (points - shot.ego_translation) @ matrix(shot.ego_rotation)
    camera = (ego - shot.translation) @ matrix(shot.rotation)
    uvw = camera @ np.array(shot.intrinsic).T
    return uvw[:, :2] / uvw[:, 2:], camera[:, 2]


def miniature(key_frames: int = 2, width: int = 160) -> dict[str, list[KeyFrame]]:
    """Two scenes, one of mini_train and one of mini_val, each with every class and things that do not count.

    The car drives 5 m/s; it leans, its cameras are mounted a little askew, and no two images have the same ego pose.
    """
    return {
        name: [_key_frame(name, scene, number, width) for number in range(key_frames)]
        for scene, name in enumerate(("scene-0061", "scene-0103"))
    }


def _key_frame(name: str, scene: int, number: int, width: int) -> KeyFrame:
    heading, origin = 0.7 + 2.0 * scene, np.array([611.0 + 300 * scene, 1204.0, 0.0])
    start = 1532402927_600000 + 10**9 * scene + 500_000 * number
    forward = np.array([math.cos(heading), math.sin(heading), 0])

    def ego(timestamp: int) -> tuple[Quaternion, Vector]:
        place = origin + 5.0 * (timestamp - start + 500_000 * number) * 1e-6 * forward
        return quaternion(yaw=heading, pitch=0.021, roll=-0.012), tuple(place.tolist())

    scale = width / 1600
    shots = {}
    for i, (channel, (left, focal)) in enumerate(MOUNTS.items()):
        taken = start + 8000 * i
        mount = (1.0 - abs(left) / 180, math.copysign(0.5, left), 1.5)
        K = [[focal * scale, 0.0, 812.0 * scale], [0.0, focal * scale, 470.0 * scale], [0.0, 0.0, 1.0]]
        tilted = camera_quaternion(math.radians(left), 0.008, -0.004)
        size = (width, width * 9 // 16)
        shots[channel] = Shot(tilted, mount, *ego(taken), K, size, None, f"n015__{channel}__{taken}")
    shots["LIDAR_TOP"] = Shot(quaternion(yaw=-1.57), (0.94, 0.0, 1.84), *ego(start + 47951))

    kinds = [  # category, size (w, l, h), bearing in degrees to the left, distance, yaw, attribute
        ("vehicle.car", (1.95, 4.63, 1.73), 0, 14, 0.1, "vehicle.parked"),
        ("vehicle.car", (1.90, 4.40, 1.60), 27, 17, 1.8, "vehicle.parked"),  # between two cameras
        ("human.pedestrian.adult", (0.67, 0.73, 1.78), -20, 11, -2.0, "pedestrian.moving"),
        ("vehicle.truck", (2.53, 7.05, 2.90), 55, 22, 0.4, "vehicle.parked"),
        ("vehicle.bus.rigid", (2.93, 11.29, 3.53), -55, 27, 0.1, "vehicle.moving"),
        ("vehicle.bicycle", (0.62, 1.74, 1.32), 82, 9, 2.4, "cycle.without_rider"),  # between two cameras
        ("vehicle.motorcycle", (0.78, 2.11, 1.51), -82, 10, 0.9, "cycle.without_rider"),
        ("vehicle.trailer", (2.89, 12.22, 3.86), 120, 29, -0.3, "vehicle.parked"),
        ("vehicle.construction", (2.88, 7.06, 3.25), -120, 24, 2.9, "vehicle.parked"),
        ("movable_object.trafficcone", (0.43, 0.44, 1.09), 170, 8, 0.0, None),
        ("movable_object.barrier", (2.54, 0.50, 0.99), -160, 11, 0.2, None),
        ("vehicle.emergency.police", (1.95, 4.63, 1.73), 145, 18, 0.3, "vehicle.parked"),  # of no class
    ]
    things = []
    for i, (category, size, bearing, distance, yaw, attribute) in enumerate(kinds):
        direction = heading + math.radians(bearing)
        x, y = origin[:2] + (distance + 0.7 * scene) * np.array([math.cos(direction), math.sin(direction)])
        things.append(
            Thing(f"{name}/{i}", category, (x, y, size[2] / 2 - 0.1), size, heading + yaw, "4", 20 + i, attribute)
        )
    hidden = Thing(
        f"{name}/hidden", "vehicle.car", _beside(things[0], 6.0), (1.9, 4.5, 1.6), heading, "1", 0, "vehicle.parked"
    )
    return KeyFrame(start, shots, [*things, hidden])


def _beside(thing: Thing, metres: float) -> Vector:
    x, y, z = thing.translation
    return (x + metres * math.cos(thing.yaw), y + metres * math.sin(thing.yaw), z)


def write_tree(root: Path, scenes: Mapping[str, Sequence[KeyFrame]], version: str = "v1.0-mini") -> Path:
    """Write tables, images and a map."""
    first = next(iter(scenes.values()))[0]
    tables: dict[str, list[dict[str, Any]]] = {
        "attribute": [{"token": token(name), "name": name, "description": ""} for name in ATTRIBUTES],
        "visibility": [{"token": key, "level": level, "description": ""} for key, level in VISIBILITY.items()],
        "category": [], "instance": [], "calibrated_sensor": [], "ego_pose": [], "scene": [], "sample": [],
        "sample_data": [], "sample_annotation": [],
        "sensor": [
            {"token": token(channel), "channel": channel, "modality": "camera" if channel in MOUNTS else "lidar"}
            for channel in first.shots
        ],
        "log": [
            {"token": token("log"), "logfile": "n015-2018-07-24", "vehicle": "n015", "date_captured": "2018-07-24",
             "location": "singapore-onenorth"},
        ],
        "map": [
            {"token": token("map"), "log_tokens": [token("log")], "category": "semantic_prior",
             "filename": "maps/map.png"},
        ],
    }  # fmt: skip
    categories = sorted({t.category for frames in scenes.values() for frame in frames for t in frame.things})
    tables["category"] = [{"token": token(name), "name": name, "description": ""} for name in categories]
    for name, frames in scenes.items():
        _add_scene(tables, root, name, frames)
    (root / "maps").mkdir(parents=True)
    Image.new("L", (20, 20), 255).save(root / "maps" / "map.png")
    folder = root / version
    folder.mkdir()
    for table, rows in tables.items():
        (folder / f"{table}.json").write_text(json.dumps(rows, indent=0), encoding="utf-8")
    return root


def _add_scene(tables: dict[str, list[dict[str, Any]]], root: Path, name: str, frames: Sequence[KeyFrame]) -> None:
    tokens = [token(name, "sample", i) for i in range(len(frames))]
    tables["scene"].append(
        {"token": token(name), "name": name, "description": "", "log_token": token("log"), "nbr_samples": len(frames),
         "first_sample_token": tokens[0], "last_sample_token": tokens[-1]}
    )  # fmt: skip
    for i, frame in enumerate(frames):
        previous, following = ("" if i == 0 else tokens[i - 1]), ("" if i + 1 == len(frames) else tokens[i + 1])
        tables["sample"].append(
            {"token": tokens[i], "timestamp": frame.timestamp, "scene_token": token(name), "prev": previous,
             "next": following}
        )  # fmt: skip
        for channel in frame.shots:
            _add_shot(tables, root, name, i, channel, frame, tokens[i])
    by_instance: dict[str, list[tuple[int, Thing]]] = {}
    for i, frame in enumerate(frames):
        for thing in frame.things:
            by_instance.setdefault(thing.instance, []).append((i, thing))
    for instance, seen in by_instance.items():
        own = [token(instance, i) for i, _ in seen]
        tables["instance"].append(
            {"token": token(instance), "category_token": token(seen[0][1].category), "nbr_annotations": len(seen),
             "first_annotation_token": own[0], "last_annotation_token": own[-1]}
        )  # fmt: skip
        for j, (i, thing) in enumerate(seen):
            tables["sample_annotation"].append(
                {"token": own[j], "sample_token": tokens[i], "instance_token": token(instance),
                 "visibility_token": thing.visibility,
                 "attribute_tokens": [] if thing.attribute is None else [token(thing.attribute)],
                 "translation": list(thing.translation), "size": list(thing.size),
                 "rotation": list(quaternion(yaw=thing.yaw)), "prev": own[j - 1] if j else "",
                 "next": own[j + 1] if j + 1 < len(own) else "", "num_lidar_pts": thing.points, "num_radar_pts": 0}
            )  # fmt: skip


def _add_shot(
    tables: dict[str, list[dict[str, Any]]], root: Path, scene: str, i: int, channel: str, frame: KeyFrame, sample: str
) -> None:
    """A shot's tables and image, and an image between key frames ("sweep"), which has no file here."""
    shot = frame.shots[channel]
    calibration = token(scene, channel, "calibration", i)
    tables["calibrated_sensor"].append(
        {"token": calibration, "sensor_token": token(channel), "translation": list(shot.translation),
         "rotation": list(shot.rotation), "camera_intrinsic": shot.intrinsic}
    )  # fmt: skip
    kind, suffix = ("jpg", "jpg") if channel in MOUNTS else ("pcd", "pcd.bin")
    own, between = token(scene, channel, i), token(scene, channel, i, "sweep")
    for name, at, is_key, folder in ((own, 0, True, "samples"), (between, 83_000, False, "sweeps")):
        tables["ego_pose"].append(
            {"token": name, "timestamp": frame.timestamp + at, "rotation": list(shot.ego_rotation),
             "translation": list(shot.ego_translation)}
        )  # fmt: skip
        tables["sample_data"].append(
            {"token": name, "sample_token": sample, "ego_pose_token": name, "calibrated_sensor_token": calibration,
             "timestamp": frame.timestamp + at, "fileformat": kind, "is_key_frame": is_key, "height": shot.size[1],
             "width": shot.size[0], "filename": f"{folder}/{channel}/{(is_key and shot.name) or name}.{suffix}",
             "prev": own if not is_key else "", "next": between if is_key else ""}
        )  # fmt: skip
    if channel in MOUNTS:
        path = root / "samples" / channel / f"{shot.name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        if shot.picture is None:
            _draw(shot, frame.things).save(path, quality=90)
        else:
            path.symlink_to(shot.picture)


def _draw(shot: Shot, things: Sequence[Thing]) -> Image.Image:
    """The things' faces in flat colours, far ones first."""
    width, height = shot.size
    picture = Image.new("RGB", (width, height), (140, 165, 190))
    pen = ImageDraw.Draw(picture)
    pen.rectangle([0, height * 0.52, width, height], fill=(95, 95, 98))
    faces = ((0, 1, 3, 2), (4, 5, 7, 6), (0, 1, 5, 4), (2, 3, 7, 6), (0, 2, 6, 4), (1, 3, 7, 5))
    for thing in sorted(things, key=lambda t: -math.dist(t.translation, shot.ego_translation)):
        uv, z = to_pixels(shot, corners(thing))
        if (z > 0.1).all():
            red, green, blue = hashlib.md5(thing.category.encode()).digest()[:3]
            for shade, face in enumerate(faces):
                light = 1 - 0.08 * shade
                color = tuple(int(light * (60 + c // 2)) for c in (red, green, blue))
                pen.polygon([tuple(uv[k]) for k in face], fill=color)
    return picture
