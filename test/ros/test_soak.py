"""The soak command: a short run on real processes, and that it finds what is wrong."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys

import pytest

from skd_wm3d_ros.postprocess import finite
from skd_wm3d_ros.tools.overhead import BOXES, NullDetector
from skd_wm3d_ros.tools.soak import Result, main, malformed


def test_a_short_soak():
    """Its verdict on memory needs more frames than a test has time for: growth is only bounded loosely."""
    command = [sys.executable, "-m", "skd_wm3d_ros.tools.soak", "--frames", "150", "--size", "320x96"]
    command += ["--malformed", "0.1"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=580, env=environment)
    rows = dict(re.findall(r"^\| (.+?) \| (.+?) \|$", done.stdout, re.MULTILINE))
    failures = [line for line in done.stderr.splitlines() if "soak: " in line and "memory grew" not in line]
    assert not failures, done.stderr
    assert rows["answered twice"] == "0"
    assert int(rows["answered"]) > 50
    assert int(rows["rejected"]) > 0
    first, last = (float(part.split(" MiB")[0]) for part in rows["memory"].split(", ")[:2])
    assert last < 1.2 * first


GOOD = Result(
    sent=1000,
    malformed=50,
    answers=list(range(900)),
    status={
        "pairs": "960", "frames answered": "900", "frames rejected": "50", "frames dropped for newer ones": "9",
        "frames in work": "1",
    },
    memory=[(i, 500.0) for i in range(100, 1001, 100)],
    seconds=50.0,
)  # fmt: skip


def test_a_good_result_is_good():
    assert GOOD.failures() == []
    for row in (
        "| answered | 900 |",
        "| arrived in pairs | 960 |",
        "| answered, rejected, dropped or in work | 960 |",
        "| answers in the order of their stamps | yes |",
        "| memory | 500.0 MiB at first, 500.0 MiB at last, +0.00% after the first 100 frames |",
    ):
        assert row in GOOD.table()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"answers": [*range(899), 5]}, "1 frames were answered twice"),
        ({"answers": [*range(898), 899, 898]}, "wrong order"),
        ({"status": GOOD.status | {"pairs": "961"}}, "961 frames arrived, but 960 are accounted for"),
        ({"answers": list(range(899))}, "counts 900 answers, 899 came"),
        ({"memory": [(i, 500 + i / 20) for i in range(100, 1001, 100)]}, "memory grew"),
        ({"status": {}}, "arrived"),
    ],
)
def test_a_bad_result_is_bad(change, said):
    failures = dataclasses.replace(GOOD, **change).failures()
    assert any(said in failure for failure in failures), failures


def test_each_malformed_frame_is_malformed():
    from skd_wm3d_ros.decoding import Decoder
    from skd_wm3d_ros.rejection import Rejection

    for kind in range(8):
        with pytest.raises(Rejection):
            Decoder("/image", "/camera_info")(*malformed(kind, 320, 96))


@pytest.mark.parametrize("arguments", [["--size", "big"], ["--frames", "3"], ["--malformed", "2"]])
def test_wrong_arguments(arguments, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert "error: --" in capsys.readouterr().err


def test_the_null_detector_finds_boxes_that_are_published():
    boxes = NullDetector().predict(None, None, 0.5)
    assert len(finite(boxes)) == len(boxes) == BOXES
