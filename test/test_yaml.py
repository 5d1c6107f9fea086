"""The one YAML reader: what PyYAML lets through or answers with another exception."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from skd_core.camera import Camera
from skd_core.config import load_config
from skd_core.errors import UserError
from skd_core.yaml_files import MAX_BYTES, MAX_VALUES, load_yaml, read_yaml

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 9)}]\n" for k in range(1, 12)
)
MERGE_BOMB = "a0: &a0 {x: 1}\n" + "".join(f"a{k}: &a{k} {{<<: [*a{k - 1}, *a{k - 1}]}}\n" for k in range(1, 30))
REFUSED = {
    "5000 digits": ("a: " + "9" * 5000, "digits"),
    "deep": ("[" * 5000, "nested more than"),
    "deep block": ("".join(f"{' ' * k}a:\n" for k in range(60)), "nested more than"),
    "bomb": (BOMB, f"more than {MAX_VALUES} values"),
    "merge bomb": (MERGE_BOMB, f"more than {MAX_VALUES} values"),
    "in itself": ("a: &a [*a]", "an alias stands for what it is in"),
    "twice": ("data:\n  a: 1\n  b: 2\n  a: 3\n", r"key 'a' is given twice \(line 4, column 3\)"),
    "twice in flow": ("{seed: 1, seed: 2}", "key 'seed' is given twice"),
    "two documents": ("a: 1\n---\nb: 2\n", "single document"),
    "no alias": ("a: *b", "undefined alias"),
    "key is a list": ("? [1, 2]\n: 3", "unhashable"),
    "control": ("a: \x07", "special characters"),
    "object": ("!!python/object/apply:os.system [echo]", "could not determine a constructor"),
    "int": ("!!int x", "invalid literal"),
    "empty float": ("!!float ''", "not what its tag says"),
    "bool": ("!!bool perhaps", "not what its tag says"),
    "timestamp": ("!!timestamp x", "not what its tag says"),
    "long": ("a" * (MAX_BYTES + 1), "too long"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_settings_file_is_refused_in_one_line(kind):
    text, words = REFUSED[kind]
    with pytest.raises(UserError, match=words) as caught:
        load_yaml(text, "file.yaml")
    assert str(caught.value).startswith("file.yaml: ")
    assert "\n" not in str(caught.value)


def test_a_date_stays_text_and_the_first_document_can_be_asked_for():
    assert load_yaml("a: 2001-99-99\nb: 2001-01-01", "f") == {"a": "2001-99-99", "b": "2001-01-01"}
    assert load_yaml("a: 1\n---\n[", "f", first=True) == {"a": 1}
    assert load_yaml("", "f") is None
    assert load_yaml("", "f", first=True) is None


def test_aliases_and_merges_of_reasonable_size_are_read():
    assert load_yaml("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: [*a, *a]", "f") == {
        "a": {"x": 1, "y": 2}, "b": {"x": 1, "y": 3}, "c": [{"x": 1, "y": 2}] * 2,
    }  # fmt: skip


def test_only_regular_utf8_files_are_opened(tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    (tmp_path / "latin").write_bytes(b"a: \xe9")
    (tmp_path / "mark").write_bytes(b"\xef\xbb\xbfa: 1")
    for name, words in (("fifo", "not a regular file"), ("latin", "not a text file"), ("none", "No such file"),
                        (".", "Is a directory")):  # fmt: skip
        with pytest.raises(UserError, match=words):
            read_yaml(tmp_path / name)
    assert read_yaml(tmp_path / "mark") == {"a": 1}


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)


@given(plain)
def test_what_pyyaml_writes_is_read_as_it_reads_it(value):
    text = yaml.safe_dump(value)
    assert load_yaml(text, "f") == value


fragments = st.sampled_from(
    ["a", ": ", "- ", "\n", "  ", "[", "]", "{", "}", ",", "&a ", "*a", "<<: ", "!!int ", "!!float ", "!!set ",
     "!!omap ", "!!binary ", "!!timestamp ", "!!pairs ", "? ", "'", '"', "|\n", "%YAML 1.1\n", "---\n", "...\n", ".inf",
     ".nan", "~", "9" * 4400, "1:1:1", "2001-99-99", "0x", "\t", "\\", "#", "\x85", "é", "\0"]
)  # fmt: skip


def fault(work: Callable[[], object]) -> str:
    """The message of a UserError, "" without one; anything else fails the test."""
    try:
        work()
    except UserError as error:
        return str(error)
    return ""


@settings(max_examples=300, deadline=None)
@given(st.lists(fragments, max_size=25).map("".join) | st.text(max_size=60))
def test_any_text_is_data_or_a_user_error(text):
    said = fault(lambda: load_yaml(text, "f"))
    assert said == "" or said.startswith("f: ")
    assert "\n" not in said


@settings(max_examples=60, deadline=None)
@given(plain | st.dictionaries(st.sampled_from(["data", "model", "seed", "schedule", "augment", "method"]), plain))
def test_any_yaml_is_a_config_or_a_user_error(tmp_path_factory, value):
    path = tmp_path_factory.mktemp("config") / "train.yaml"
    path.write_text(yaml.safe_dump(value), encoding="utf-8")
    said = fault(lambda: load_config(path))
    assert str(path) in said
    assert len(said.splitlines()) == 1


KEYS = ["image_width", "image_height", "width", "height", "camera_matrix", "projection_matrix", "p", "k", "d", "P", "K",
        "D", "roi", "binning_x", "distortion_model", "rectification_matrix", "r", "cameras", "cam0"]  # fmt: skip
extremes = st.sampled_from([float("inf"), float("nan"), 10**400, -1, 0, 1e308, "x", None, [], {}, True])
matrix = st.lists(extremes | st.floats(), min_size=0, max_size=12)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from(KEYS), plain | extremes | matrix | matrix.map(lambda row: {"data": row})))
def test_any_camera_yaml_is_a_camera_or_a_user_error(tmp_path_factory, value):
    path = tmp_path_factory.mktemp("camera") / "camera.yaml"
    path.write_text(yaml.safe_dump(value), encoding="utf-8")
    said = fault(lambda: Camera.from_file(path, 640, 480))
    assert said == "" or str(path) in said


@pytest.mark.parametrize(
    ("item", "words"),
    [("seed=-1", "greater than or equal to 0"), (f"seed={2**64}", "less than 4294967296"),
     ("model.input_size=[1000000000, 64]", "32 to 16384 pixels"), ("model.input_size=[.inf, 64]", "model.input_size"),
     ("model.head_channels=99999999", "4096"), ("model.roi_size=99999999", "64"), ("schedule.epochs=1e30", "epochs"),
     ("schedule.batch_size=99999999999", "65536"), ("seed={a: 1, a: 2}", "key 'a' is given twice"),
     ("seed=" + "9" * 5000, "digits"), ("data.train.root=2001-99-99", "")],
)  # fmt: skip
def test_sizes_and_seeds_of_a_config_are_bounded(tmp_path, item, words):
    path = tmp_path / "train.yaml"
    path.write_text("data: {train: {root: ~/streets}}\n")
    said = fault(lambda: load_config(path, [item]))
    assert words in said
    assert bool(said) == bool(words)


def test_a_tilde_in_a_config_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home_of_a_test")
    path = tmp_path / "train.yaml"
    path.write_text("data: {train: [{root: ~/a, depth_dir: ~/d}], val: {root: '~'}}\ninitial: {weights: ~/w}\n")
    config = load_config(path)
    assert config.data.sets[0].root == "/home_of_a_test/a"
    assert config.data.sets[0].depth_dir == "/home_of_a_test/d"
    assert config.data.val.root == "/home_of_a_test"
    assert config.initial.weights == "/home_of_a_test/w"
