"""The command line: `skd_core <command>`. Each command parses, calls one function, prints."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from skd_core.command_line import CheckedCommand, end_with_signals, run_app
from skd_core.errors import UserError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # loading rich takes a third of the time of --help
    help="Monocular 3D detection learnt without 3D labels.",
)
EXTRAS = {
    "lightning": "train", "matplotlib": "eval", "numba": "synth", "nuscenes": "nuscenes", "onnx": "export",
    "ray": "ray", "rerun": "rerun", "shapely": "nuscenes", "tensorboard": "train", "transformers": "depth",
}  # fmt: skip
"""Module -> the extra of this package that installs it."""

eval_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Score detections against labels.")
app.add_typer(eval_app, name="eval")


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if version:
        from skd_core import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.command(cls=CheckedCommand)
def synth(
    out: Annotated[Path, typer.Argument(help="Output folder; written completely or not at all.")],
    frames: Annotated[int, typer.Option(help="Number of frames.")] = 100,
    seed: Annotated[
        int, typer.Option(help="Random seed: the same seed gives the same frames, whatever their number.")
    ] = 0,
    layouts: Annotated[Path | None, typer.Option(help="Folder of KITTI label files to place objects by.")] = None,
    size: Annotated[str, typer.Option(help="WIDTHxHEIGHT, pixels.")] = "640x192",
    depth_noise: Annotated[float, typer.Option(help="Relative error of the simulated depth estimator, 0..0.5.")] = 0.06,
    boxes: Annotated[
        str, typer.Option(help="'amodal' (projected 3D box, as KITTI) or 'tight' (around the pixels).")
    ] = "amodal",
    shapes: Annotated[str, typer.Option(help="Body shapes: 'train', 'heldout' or 'all'.")] = "train",
    sequence: Annotated[bool, typer.Option(help="Consecutive frames of one drive, 10 Hz.")] = False,
    workers: Annotated[int, typer.Option(help="Processes.")] = 1,
    overwrite: Annotated[bool, typer.Option(help="Replace a folder that is not empty.")] = False,
) -> None:
    """Render street scenes with labels and depth maps. The labels are exact, the layout is KITTI's."""
    from skd_core.synthetic import parse_config, write_dataset

    config = parse_config(size, depth_noise, boxes, shapes, layouts, sequence)
    rate = write_dataset(out, config, frames, seed, workers, overwrite)
    print(f"{out}: {frames} frames, {rate:.1f} frames/s")


@app.command(cls=CheckedCommand)
def depth(
    images: Annotated[list[Path], typer.Argument(help="Image files and folders of images.")],
    model: Annotated[str, typer.Option(help="FILE.onnx, a folder saved by transformers, or a hub name.")],
    out: Annotated[Path, typer.Option(help="Folder for NAME.png (metres x 256) or NAME.npy (inverse depth).")],
    kind: Annotated[str | None, typer.Option(help="metric or relative. Default: as the model declares.")] = None,
    camera: Annotated[Path | None, typer.Option(help="For --model-focal: calibration or folder of NAME.txt.")] = None,
    model_focal: Annotated[float | None, typer.Option(help="Focal length that a metric model assumes, pixels.")] = None,
    download: Annotated[bool, typer.Option(help="Allow fetching a hub name.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Estimate depth maps with an off-the-shelf network. They fill a cache for training."""
    from skd_core.supervision.depth import depth_command

    made, there = depth_command(
        images, model, out, kind=kind, camera=camera, model_focal=model_focal, download=download, device=device
    )
    print(f"{out}: {made} maps made, {there} were there")


@app.command(cls=CheckedCommand)
def autolabel(
    source: Annotated[Path, typer.Argument(help="Folder of images, KITTI tree or bag.")],
    detector: Annotated[str, typer.Option(help="2D detector: FILE.onnx in YOLOX's format, or torchvision:MODEL@FILE.")],
    out: Annotated[Path, typer.Option(help="KITTI tree to write, with review/index.html; an interrupted run resumes.")],
    camera: Annotated[Path | None, typer.Option(help="Calibration of a folder's images, as for predict.")] = None,
    split: Annotated[
        str | None, typer.Option(help="Of a KITTI tree: a name in ImageSets/. Default: all frames.")
    ] = None,
    image_topic: Annotated[str | None, typer.Option(help="Image topic of a bag with several cameras.")] = None,
    raw_images: Annotated[
        bool, typer.Option("--raw-images", help="Of a bag: images are not rectified, undistort them with K and D.")
    ] = False,
    class_map: Annotated[
        str | None, typer.Option(help="The detector's classes to KITTI's, names or ids: 2:car,person:pedestrian.")
    ] = None,
    tiles: Annotated[int, typer.Option(min=0, help="Crops that the detector processes besides the whole image.")] = 4,
    keep: Annotated[str | None, typer.Option(help="Minimum score of a label: 0.4, or Car=0.4,Pedestrian=0.5.")] = None,
    doubtful: Annotated[
        float, typer.Option(min=0, max=1, help="Minimum score of a DontCare box (ignored in training).")
    ] = 0.2,
    given: Annotated[
        Path | None, typer.Option(help="Folder of incomplete labels: lines are kept, missing objects added.")
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(help="True labels to compare with. Default: a KITTI tree's own, if any.")
    ] = None,
    rejected: Annotated[
        Path | None, typer.Option(help="rejected.txt of the review pages: boxes to turn into DontCare.")
    ] = None,
    copy: Annotated[bool, typer.Option("--copy", help="Copy the images instead of linking them.")] = False,
    review: Annotated[bool, typer.Option(help="Write the pages to check the boxes on.")] = True,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads of an ONNX detector; 0: all cores.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    json: Annotated[Path | None, typer.Option(help="JSON file for all numbers.")] = None,
) -> None:
    """Label images with a 2D detector, for training. Writes a KITTI tree; manual corrections are kept."""
    from skd_core.devices import pick_device
    from skd_core.supervision.autolabel_command import Options, run_autolabel

    options = Options(
        camera, split, image_topic, not raw_images, tuple(class_map.split(",")) if class_map else None, tiles,
        threads, str(pick_device(device)), doubtful, keep, given, labels, rejected, copy, review, json,
    )  # fmt: skip
    print(run_autolabel(source, detector, out, options))


@app.command(cls=CheckedCommand)
def pseudo(
    root: Annotated[Path, typer.Argument(help="Data set in the KITTI layout, with depth maps.")],
    split: Annotated[str | None, typer.Option(help="A name in ImageSets/. Default: all images.")] = None,
    depth_dir: Annotated[str, typer.Option(help="Folder of depth maps beside image_2.")] = "depth",
    depth_kind: Annotated[str, typer.Option(help="metric, or relative (inverse, any scale and shift).")] = "metric",
    camera_height: Annotated[float, typer.Option(min=0.1, help="Metres above the road; relative depth only.")] = 1.65,
    classes: Annotated[str, typer.Option(help="Comma-separated.")] = "Car,Pedestrian,Cyclist",
    json: Annotated[Path | None, typer.Option(help="JSON file for all numbers.")] = None,
) -> None:
    """Count 2D boxes that get a pseudo-target. That is the teacher's depth target; with 3D labels, its errors too."""
    from skd_core.supervision.target_report import report_targets
    from skd_core.supervision.targets import TargetMaker

    if depth_kind not in ("metric", "relative"):
        raise UserError(f"--depth-kind {depth_kind}: use metric or relative")
    names = [name.strip() for name in classes.split(",")]
    report_targets(root, split, depth_dir, TargetMaker(depth_kind, camera_height), names, json)  # type: ignore[arg-type]


@app.command(cls=CheckedCommand)
def train(
    config: Annotated[Path, typer.Argument(help="Training config, such as config/train/own.yaml.")],
    out: Annotated[Path, typer.Option(help="The run's folder; an interrupted run there resumes.")],
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="section.key=value, overrides the config; may be repeated.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Overrides the config's seed.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    resume: Annotated[
        bool, typer.Option(help="Resume from the checkpoint; --no-resume keeps it as *.previous.")
    ] = True,
    stop_after: Annotated[float | None, typer.Option(help="Minutes after which to stop with a checkpoint.")] = None,
) -> None:
    """Train teacher and student without 3D labels. Needs images, cameras, 2D boxes and estimated depth."""
    from skd_core.training.command import run_training

    overrides = [*(set_ or []), *([] if seed is None else [f"seed={seed}"])]
    if status := run_training(config, overrides, out, device, resume, stop_after):
        raise typer.Exit(status)


@app.command(cls=CheckedCommand)
def ablate(
    config: Annotated[Path, typer.Argument(help="Training config, without GTM; each row changes a part of it.")],
    out: Annotated[Path, typer.Option(help="Folder for ROW/SEED/, ablation.json and .md; an interrupted run resumes.")],
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="section.key=value, overrides the config; may be repeated.")
    ] = None,
    rows: Annotated[str, typer.Option(help="Comma-separated, or 'all'.")] = "all",
    seeds: Annotated[int, typer.Option(min=1, help="Runs per row.")] = 3,
    jobs: Annotated[int, typer.Option(min=1, help="Runs in parallel; they share the CPU cores.")] = 1,
    ray: Annotated[
        str | None,
        typer.Option(
            help="A Ray cluster: HOST:PORT, ray://HOST:PORT or auto. A run takes this machine's cores / jobs there."
        ),
    ] = None,
    gpus: Annotated[
        float, typer.Option(min=0, help="With --ray: GPUs that each run has for itself; 0: they share.")
    ] = 0,
    stop_after: Annotated[
        float | None, typer.Option(help="Minutes after which to stop; runs keep checkpoints.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Train every row of the ablation over several seeds. Writes mean and spread of AP and errors."""
    from skd_core.config import load_config
    from skd_core.files import lock_folder
    from skd_core.training.ablation import rows_of, run_ablation, table
    from skd_core.training.ablation_runs import Place

    if gpus and ray is None:
        raise UserError(
            f"--gpus {gpus:g}: goes with --ray; without it, runs share the GPUs that CUDA_VISIBLE_DEVICES names"
        )
    base = load_config(config, set_)
    chosen = list(rows_of(base)) if rows == "all" else [row.strip() for row in rows.split(",")]
    with lock_folder(out):
        where = Place(jobs, device, ray, gpus)
        print(table(run_ablation(base, out, chosen, seeds, where, stop_after=stop_after)))


@app.command(cls=CheckedCommand)
def predict(
    images: Annotated[list[Path], typer.Argument(help="Image files and folders of images.")],
    camera: Annotated[
        Path,
        typer.Option(
            help="Calibration of KITTI, ROS, OpenCV or Kalibr (FILE:NAME picks a camera), or a folder of one per image."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for results/NAME.txt (KITTI format) and pictures/NAME.png.")],
    weights: Annotated[str, typer.Option(help="A weights file, or bundled: default, street, street-dsn.")] = "default",
    threshold: Annotated[
        float | None, typer.Option(min=0, max=1, help="Minimum score, by default the weights'.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    draw: Annotated[bool, typer.Option(help="Write annotated pictures.")] = True,
    boxes: Annotated[Path | None, typer.Option(help="2D boxes to place: folder of KITTI files, NAME.txt.")] = None,
    detector: Annotated[
        str | None, typer.Option(help="Or a 2D detector for them: FILE.onnx in YOLOX's format.")
    ] = None,
    tiles: Annotated[
        int, typer.Option(min=0, help="Crops that the 2D detector processes besides the whole image.")
    ] = 4,
    raw_images: Annotated[
        bool, typer.Option("--raw-images", help="Images are not rectified: undistort them with K and D.")
    ] = False,
    backend: Annotated[str, typer.Option(help="torch, onnx, or auto: onnx on a CPU if NAME.onnx exists.")] = "auto",
) -> None:
    """Detect 3D boxes in the images of one camera."""
    from skd_core.inference.detector import Detector
    from skd_core.inference.outside import open_source
    from skd_core.inference.predict import predict_images

    network = Detector.load(weights, device, backend=backend)
    source = open_source(boxes, detector, tiles, network.classes)
    done = predict_images(images, camera, network, out, threshold, draw=draw, source=source, rectified=not raw_images)
    print(done)


@app.command(cls=CheckedCommand)
def export(
    weights: Annotated[str, typer.Argument(help="A weights file, or bundled: default, street, street-dsn.")],
    out: Annotated[Path | None, typer.Option(help="File to write. Default: NAME.onnx beside the weights.")] = None,
    format: Annotated[str, typer.Option("--format", help="onnx.")] = "onnx",
    precision: Annotated[str, typer.Option(help="Of backbone and neck: fp32, fp16 or int8.")] = "fp32",
    check: Annotated[
        list[Path] | None,
        typer.Option(help="Images or folders to compare with PyTorch on; int8 calibrates on them."),
    ] = None,
    camera: Annotated[Path | None, typer.Option(help="Calibration of the --check images, as for predict.")] = None,
    size: Annotated[str | None, typer.Option(help="WIDTHxHEIGHT: fix the image size. Default: any size.")] = None,
) -> None:
    """Write weights as one ONNX graph, from image to boxes. It is compared with PyTorch first."""
    from skd_core.data.image_size import parse_size
    from skd_core.export.command import ExportOptions, export_weights, target

    if format != "onnx":
        raise UserError(f"--format '{format}': only onnx is known")
    path = target(weights, out, precision)
    options = ExportOptions(weights, precision, parse_size(size), tuple(check or ()), camera)
    print(f"{path}: {export_weights(options, path)}")


@app.command(cls=CheckedCommand)
def lift(
    images: Annotated[list[Path], typer.Argument(help="Images and folders of images, or one KITTI tree.")],
    out: Annotated[Path, typer.Option(help="Folder for results/NAME.txt (KITTI format).")],
    camera: Annotated[
        Path | None, typer.Option(help="Calibration of the images (a KITTI tree has its own), as for predict.")
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Of a KITTI tree: a name in ImageSets/. Default: all frames.")
    ] = None,
    boxes: Annotated[Path | None, typer.Option(help="The 2D boxes: folder of KITTI files, NAME.txt.")] = None,
    detector: Annotated[
        str | None, typer.Option(help="Or a 2D detector for them: FILE.onnx in YOLOX's format.")
    ] = None,
    tiles: Annotated[
        int, typer.Option(min=0, help="Crops that the 2D detector processes besides the whole image.")
    ] = 4,
    draw: Annotated[bool, typer.Option(help="Write pictures/NAME.png too.")] = False,
) -> None:
    """Place 2D boxes in 3D without a network. Average class sizes give the depth: the baseline for trained weights."""
    from skd_core.inference.outside import open_source
    from skd_core.inference.predict import lift_images

    source = open_source(boxes, detector, tiles)
    if source is None:
        raise UserError("lift: give 2D boxes with --boxes DIR or --detector FILE.onnx")
    print(lift_images(images, camera, source, out, split, draw))


@app.command(cls=CheckedCommand)
def bench(
    weights: Annotated[str, typer.Option(help="A weights file, or bundled: default, street, street-dsn.")] = "default",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    precision: Annotated[str, typer.Option(help="Of predict: auto, fp32, fp16 or bf16.")] = "fp32",
    repeat: Annotated[int | None, typer.Option(min=1, help="Rounds of each measurement.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer frames and rounds, under a minute.")] = False,
    json: Annotated[Path | None, typer.Option(help="JSON file for all numbers.")] = None,
    training: Annotated[
        bool, typer.Option("--training", help="Only training: images/s, and the time of each part of a step.")
    ] = False,
    config: Annotated[
        Path | None,
        typer.Option(help="A training config: its network, untrained, in place of weights. With --training: that run."),
    ] = None,
    scaling: Annotated[
        bool, typer.Option("--scaling", help="Only how evaluation, rendering and labelling grow with their input.")
    ] = False,
    plot: Annotated[Path | None, typer.Option(help="With --scaling: PNG file of the curves.")] = None,
) -> None:
    """Measure speed, side by side with alternatives. Measured are network, evaluation, IoU, rendering and training."""
    from dataclasses import replace

    if plot is not None and not scaling:
        raise UserError("--plot: needs --scaling")
    if training and scaling:
        raise UserError("give --training or --scaling, not both")
    if config is not None and (scaling or weights != "default"):
        raise UserError("--config: stands in place of --weights, and --scaling takes neither")
    if weights != "default" and (scaling or training):
        raise UserError("--weights: --scaling and --training take none")
    if scaling:
        from skd_core.benchmark_scaling import report_scaling

        report_scaling(repeat or (3 if quick else 7), 0.1 if quick else 1.0, json, plot)
        return
    if training:
        from skd_core.benchmark_training import training_report

        training_report(config, repeat or (5 if quick else 20), device, json)
        return

    from skd_core.benchmark import QUICK, Workload, report_benchmark, untrained_network
    from skd_core.config import load_config
    from skd_core.files import keep_inputs
    from skd_core.inference.bundled import resolve
    from skd_core.inference.detector import Detector
    from skd_core.inference.weights import load_weights

    keep_inputs([] if json is None else [json], [config or resolve(weights)])
    student, about = load_weights(weights) if config is None else untrained_network(load_config(config).model)
    workload = QUICK if quick else Workload()
    if repeat is not None:
        workload = replace(workload, rounds=repeat)
    report_benchmark(Detector(student, about, device, precision), workload, json)


@app.command(cls=CheckedCommand)
def doctor(
    weights: Annotated[
        list[str] | None, typer.Option(help="A weights file to check; may be repeated. Default: the bundled ones.")
    ] = None,
    json: Annotated[Path | None, typer.Option(help="JSON file for all findings.")] = None,
) -> None:
    """Check this machine and the installation. Exit status 1 if a check fails."""
    from skd_core.doctor import report

    if status := report(json, weights or []):
        raise typer.Exit(status)


@app.command("predict-nuscenes", cls=CheckedCommand)
def predict_nuscenes(
    root: Annotated[Path, typer.Argument(help="Folder that holds samples/ and v1.0-*.")],
    out: Annotated[Path, typer.Option(help="The submission, a JSON file.")],
    split: Annotated[str, typer.Option(help="val, test, mini_val, ..., or one of a splits.json.")] = "val",
    version: Annotated[str | None, typer.Option(help="v1.0-trainval, ...; if there is more than one.")] = None,
    cameras: Annotated[
        str | None, typer.Option(help="Cameras to use, such as CAM_FRONT,CAM_FRONT_LEFT. Default: all six.")
    ] = None,
    weights: Annotated[str, typer.Option(help="A weights file, or bundled: default, street, street-dsn.")] = "default",
    threshold: Annotated[float, typer.Option(min=0, max=1, help="Minimum score; AP needs a low one.")] = 0.05,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Detect in all nuScenes key frames. Writes one submission, in the global frame."""
    from skd_core.data.nuscenes import CAMERAS, NuScenesDataset
    from skd_core.evaluation.nuscenes import predict_split
    from skd_core.files import keep_inputs
    from skd_core.inference.bundled import resolve
    from skd_core.inference.detector import Detector

    keep_inputs([out], [resolve(weights)])
    detector = Detector.load(weights, device)
    chosen = CAMERAS if cameras is None else cameras.split(",")
    dataset = NuScenesDataset(root, split, version=version, cameras=chosen)
    count = predict_split(dataset, detector, out, threshold)
    print(f"{out}: {count} detections in {len(dataset)} images of {len(dataset.sample_tokens)} key frames")


@app.command("bag-make", cls=CheckedCommand)
def bag_make(
    kind: Annotated[str, typer.Argument(help="kitti, folder or nuscenes.")],
    source: Annotated[Path, typer.Argument(help="Root of the data set, or folder of images.")],
    out: Annotated[Path, typer.Argument(help="Bag folder to create; written completely or not at all.")],
    split: Annotated[str | None, typer.Option(help="Split of KITTI or nuScenes. Default: all frames.")] = None,
    camera: Annotated[Path | None, typer.Option(help="Calibration of a folder's images.")] = None,
    rate: Annotated[float, typer.Option(help="Frames per second, if the set has no times.")] = 10.0,
    storage: Annotated[str, typer.Option(help="mcap or sqlite3.")] = "mcap",
    version: Annotated[str | None, typer.Option(help="Of nuScenes, if there is more than one.")] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace a bag.")] = False,
) -> None:
    """Write a data set as a rosbag2 bag. Ground truth is written where there is any."""
    from skd_core.data.bag_make import BagOptions, make_bag

    count = make_bag(kind, source, out, BagOptions(split, camera, rate, storage, version, overwrite))
    print(f"{out}: {count} images")


@app.command("bag-eval", cls=CheckedCommand)
def bag_eval(
    bag: Annotated[Path, typer.Argument(help="rosbag2 folder, or an .mcap or .db3 file.")],
    out: Annotated[
        Path, typer.Option(help="Folder for report.html, scores.json, results/NAME.txt, detections (a bag).")
    ],
    weights: Annotated[str, typer.Option(help="A weights file, or bundled: default, street, street-dsn.")] = "default",
    truth: Annotated[
        str | None, typer.Option(help="Topic of true boxes. Default: the one that bag-make writes.")
    ] = None,
    labels: Annotated[Path | None, typer.Option(help="Folder of KITTI label files, one per frame.")] = None,
    class_map: Annotated[
        str | None, typer.Option(help="Class ids of the true boxes: ID:CLASS,..., such as 0:car,1:pedestrian.")
    ] = None,
    image_topic: Annotated[str | None, typer.Option(help="Image topic, if there are several cameras.")] = None,
    camera_info_topic: Annotated[
        str | None, typer.Option(help="Calibration topic, if it is not the one next to the image topic.")
    ] = None,
    camera: Annotated[Path | None, typer.Option(help="Calibration file in place of camera_info.")] = None,
    raw_images: Annotated[
        bool, typer.Option("--raw-images", help="Images are not rectified: undistort them with K and D.")
    ] = False,
    threshold: Annotated[float, typer.Option(min=0, max=1, help="Minimum score; AP needs a low one.")] = 0.2,
    boxes: Annotated[
        Path | None, typer.Option(help="2D boxes to place: folder of KITTI files, one for each image.")
    ] = None,
    detector: Annotated[
        str | None, typer.Option(help="Or a 2D detector for them: FILE.onnx in YOLOX's format.")
    ] = None,
    tiles: Annotated[
        int, typer.Option(min=0, help="Crops that the 2D detector processes besides the whole image.")
    ] = 0,
    boxes_topic: Annotated[
        str | None, typer.Option(help="Or a recorded Detection2DArray topic with the images' stamps.")
    ] = None,
    boxes_size: Annotated[
        str | None, typer.Option(help="WIDTHxHEIGHT that its pixels refer to (default: the image's).")
    ] = None,
    boxes_fit: Annotated[
        str, typer.Option(help="How the image was fitted into that size: stretch or letterbox.")
    ] = "stretch",
    boxes_class_map: Annotated[str | None, typer.Option(help="Its class ids: ID:CLASS,..., such as 2:car.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    json: Annotated[Path | None, typer.Option(help="JSON file for all numbers.")] = None,
) -> None:
    """Detect in a recording and score the detections. Reports AP, recall, depth error by range, jitter, latency."""
    from skd_core.evaluation.bag_boxes import BoxOptions, box_fit
    from skd_core.evaluation.bag_eval import BagEvalOptions
    from skd_core.evaluation.bag_eval import bag_eval as run

    options = BagEvalOptions(
        truth_topic=truth,
        labels=labels,
        image_topic=image_topic,
        camera_info_topic=camera_info_topic,
        json_file=json,
        rectified=not raw_images,
        threshold=threshold,
        device=device,
        boxes=BoxOptions(
            boxes,
            detector,
            tiles,
            boxes_topic,
            box_fit(boxes_size, boxes_fit),
            tuple(boxes_class_map.split(",")) if boxes_class_map else (),
        ),
        class_map=tuple(class_map.split(",")) if class_map else (),
        camera_file=camera,
    )
    run(bag, weights, out, options)


@app.command(cls=CheckedCommand)
def many(
    command: Annotated[
        str, typer.Argument(help='Quoted, such as "bag-eval {} --out out/{name}": {} is a path, {name} its name.')
    ],
    recordings: Annotated[list[Path], typer.Argument(help="Recordings or folders.")],
    ray: Annotated[
        str | None, typer.Option(help="A Ray cluster: HOST:PORT, ray://HOST:PORT or auto. Default: this machine.")
    ] = None,
    cores: Annotated[int, typer.Option(min=1, help="CPU cores for each.")] = 1,
    gpus: Annotated[float, typer.Option(min=0, help="GPUs that each has for itself, such as 0.25; 0: they share.")] = 0,
    json: Annotated[Path | None, typer.Option(help="JSON file: what became of each, and merged scores.")] = None,
) -> None:
    """Run a command for each of many recordings. Ray spreads them over cores or machines."""
    from skd_core.many import run_many

    run_many(command, recordings, ray, cores, gpus, json)


@app.command(cls=CheckedCommand)
def show(
    source: Annotated[Path, typer.Argument(help="Root of a KITTI tree, or a bag.")],
    out: Annotated[Path, typer.Option(help="Folder for NAME.png.")] = Path("out/show"),
    weights: Annotated[
        str | None, typer.Option(help="Detect with a weights file, or bundled: default, street, street-dsn.")
    ] = None,
    results: Annotated[Path | None, typer.Option(help="Or show KITTI result files, NAME.txt.")] = None,
    frames: Annotated[str, typer.Option(help="NUMBER or FIRST:LAST:STEP.")] = "::",
    threshold: Annotated[
        float | None, typer.Option(min=0, max=1, help="Minimum score, by default the weights'.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    labels: Annotated[Path | None, typer.Option(help="Of a bag: folder of KITTI label files, one per frame.")] = None,
    truth: Annotated[str | None, typer.Option(help="Of a bag: topic of true boxes, as for bag-eval.")] = None,
    class_map: Annotated[
        str | None, typer.Option(help="Class ids of that topic: ID:CLASS,..., as for bag-eval.")
    ] = None,
    image_topic: Annotated[str | None, typer.Option(help="Image topic of a bag with several cameras.")] = None,
    camera: Annotated[Path | None, typer.Option(help="Of a bag: calibration file in place of camera_info.")] = None,
    raw_images: Annotated[
        bool, typer.Option("--raw-images", help="Of a bag: images are not rectified, undistort them with K and D.")
    ] = False,
    range_m: Annotated[float, typer.Option("--range", min=1, max=1000, help="Of the view from above, metres.")] = 60.0,
    window: Annotated[bool, typer.Option("--window", help="Step through in a window: arrow keys, q.")] = False,
    rerun: Annotated[Path | None, typer.Option(help="Write a recording for the rerun viewer instead, *.rrd.")] = None,
) -> None:
    """Draw labels and detections, on images and from above."""
    from skd_core.evaluation.show import Choice, draw_pictures, inputs, step_through, views
    from skd_core.evaluation.show_rerun import write_recording
    from skd_core.files import keep_inputs

    if window and rerun is not None:
        raise UserError("show: give --window or --rerun, not both")
    choice = Choice(
        weights, results, frames, threshold, device, labels, image_topic, not raw_images, camera, truth,
        tuple(class_map.split(",")) if class_map else (),
    )  # fmt: skip
    keep_inputs(out.glob("*.png") if rerun is None else [rerun], inputs(source, choice))
    if rerun is not None:
        print(f"{rerun}: {write_recording(rerun, views(source, choice))} frames; look at them with: rerun {rerun}")
    elif window:
        print(f"{step_through(views(source, choice), range_m)} frames shown")
    else:
        print(f"{out}: {draw_pictures(out, views(source, choice), range_m)} pictures")


@app.command("plot", cls=CheckedCommand)
def plot(
    runs: Annotated[list[Path], typer.Argument(help="Folders of training runs (or their metrics.jsonl).")],
    out: Annotated[Path, typer.Option(help="PNG file to write.")] = Path("runs.png"),
) -> None:
    """Plot training runs in one figure. It has losses, AP and factors of GTM (gradient-targeted modulation)."""
    from skd_core.evaluation.plots import plot_runs, write_figure
    from skd_core.files import check_outputs
    from skd_core.training.records import read_run

    check_outputs([out], [run / "metrics.jsonl" if run.is_dir() else run for run in runs])
    write_figure(out, plot_runs({str(run): read_run(run) for run in runs}))
    print(f"wrote {out}")


@eval_app.command("kitti", cls=CheckedCommand)
def eval_kitti(
    labels: Annotated[Path, typer.Option(help="Folder of label files, NAME.txt.")],
    results: Annotated[Path, typer.Option(help="Folder of result files, NAME.txt, with scores.")],
    json: Annotated[Path | None, typer.Option(help="JSON file for all numbers, percent, full precision.")] = None,
    error_budget: Annotated[bool, typer.Option("--error-budget", help="Also show where AP is lost.")] = False,
    plots: Annotated[Path | None, typer.Option(help="Folder for PNGs: precision-recall, error by distance.")] = None,
    full: Annotated[bool, typer.Option("--full", help="All metrics, overlaps, R40 and R11.")] = False,
) -> None:
    """Compute KITTI's AP: 2D, bird's-eye view, 3D, orientation. The numbers are the official evaluator's."""
    from skd_core.evaluation.report import report_kitti

    report_kitti(labels, results, json, error_budget, plots, full=full)


@eval_app.command("real", cls=CheckedCommand)
def eval_real(
    trees: Annotated[list[str], typer.Argument(help="Roots of KITTI trees with 3D labels, each ROOT or ROOT:SPLIT.")],
    split: Annotated[str | None, typer.Option(help="Split of roots that name none. Default: all frames.")] = None,
    weights: Annotated[str, typer.Option(help="A weights file, or bundled: default, street, street-dsn.")] = "default",
    boxes: Annotated[
        str, typer.Option(help="2D boxes: own, labels, a folder of KITTI files by frame, or a detector's FILE.onnx.")
    ] = "own",
    threshold: Annotated[
        str | None, typer.Option(help="Minimum score, or 'stored' (in the weights): default of own boxes; others 0.")
    ] = None,
    lift: Annotated[
        bool, typer.Option("--lift", help="Place the 2D boxes without a network, as `skd_core lift`.")
    ] = False,
    kind: Annotated[list[str] | None, typer.Option(help="Car, Pedestrian or Cyclist. Default: all.")] = None,
    choose_threshold: Annotated[
        bool, typer.Option("--choose-threshold", help="Lowest threshold with at most 0.3 boxes on nothing a frame.")
    ] = False,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Measure the errors of each class, for the covariances.")
    ] = False,
    store: Annotated[
        bool, typer.Option("--store", help="Write the threshold or calibration into the weights file.")
    ] = False,
    tiles: Annotated[
        int, typer.Option(min=0, help="Crops that the 2D detector processes besides the whole image.")
    ] = 4,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    json: Annotated[Path | None, typer.Option(help="JSON file for all numbers.")] = None,
) -> None:
    """Compute recall, position, size and yaw errors per object. Needs frames with 3D labels."""
    from skd_core.evaluation.real_report import CalibrationOptions, EvalOptions, report_real

    options = EvalOptions(weights, boxes, threshold, lift, tuple(kind or ()), tiles, device)
    report_real(trees, split, options, json, CalibrationOptions(choose_threshold, calibrate, store))


@eval_app.command("nuscenes", cls=CheckedCommand)
def eval_nuscenes(
    root: Annotated[Path, typer.Option(help="Folder that holds samples/ and v1.0-*.")],
    results: Annotated[Path, typer.Option(help="A submission, as predict-nuscenes writes it.")],
    split: Annotated[str, typer.Option(help="val, mini_val, ..., or one of a splits.json.")] = "val",
    version: Annotated[str | None, typer.Option(help="v1.0-trainval, ...; if there is more than one.")] = None,
    cameras: Annotated[
        str | None, typer.Option(help="Score only objects that these cameras see, such as CAM_FRONT.")
    ] = None,
    json: Annotated[Path | None, typer.Option(help="JSON file for all numbers.")] = None,
    plots: Annotated[
        Path | None, typer.Option(help="Folder that gets nuscenes_summary.png, the devkit's curves.")
    ] = None,
) -> None:
    """Compute nuScenes' mAP, errors and NDS with its devkit. The errors are those of true positives."""
    from skd_core.data.nuscenes import parse_cameras
    from skd_core.evaluation.nuscenes import report_nuscenes

    chosen = None if cameras is None else parse_cameras(cameras.split(","))
    report_nuscenes(results, root, split, version, json, plots, cameras=chosen)


def main() -> None:
    """Entry point: wrong input ends as one line on stderr and exit code 2."""
    end_with_signals()
    sys.exit(run_app(app, EXTRAS))


if __name__ == "__main__":
    main()
