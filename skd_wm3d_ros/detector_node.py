"""``ros2 run skd_wm3d_ros detector_node``: one detector, or one for each camera of a file (``--cameras FILE``).

Nothing heavy is imported before a signal is taken care of: torch alone takes seconds, and Ctrl-C must end those too.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from skd_wm3d_ros.node import DetectorNode, LoadDetector


@contextlib.contextmanager
def woken_by_signals(node: DetectorNode) -> Iterator[None]:
    """In the block, a signal wakes the executor of the node.

    It sleeps in DDS, where Python runs no signal handler, so that a handler alone would need an executor that wakes
    many times a second for nothing.
    """
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    guard = node.create_guard_condition(lambda: None)

    def wake() -> None:
        while reader.recv(1):
            guard.trigger()

    thread = threading.Thread(target=wake, name="signals", daemon=True)
    thread.start()
    signal.set_wakeup_fd(writer.fileno())  # Python writes the signal's number to it at once
    try:
        yield
    finally:
        signal.set_wakeup_fd(-1)
        writer.close()  # ends the thread
        thread.join()
        reader.close()
        node.destroy_guard_condition(guard)


def run(args: Sequence[str] | None = None, load: LoadDetector | None = None) -> int:
    """Run the node until SIGINT or SIGTERM; a second signal, as under `ros2 launch`, changes nothing.

    Args:
        args: command line without the program's name; the process's own if None.
        load: weights, device and precision -> a detector; another one only for measurements.

    Returns:
        the exit status: 0, or 2 for a parameter or a camera file that cannot be.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: os._exit(0))  # nothing to clean up while importing
    import cv2
    import rclpy
    from rclpy._rclpy_pybind11 import RCLError
    from rclpy.exceptions import ParameterException
    from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
    from rclpy.signals import SignalHandlerOptions
    from rclpy.utilities import remove_ros_args

    from skd_wm3d_ros.cameras import CameraFileError, read_cameras
    from skd_wm3d_ros.node import DetectorNode

    cv2.setNumThreads(1)  # its idle threads spin after every call: more CPU for each frame than converting it takes
    options = {"load": load} if load else {}
    arguments = list(sys.argv if args is None else ["detector_node", *args])
    parser = argparse.ArgumentParser(prog="detector_node", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cameras", metavar="FILE", help="YAML list of cameras: all of them in this process")
    parsed = parser.parse_args(remove_ros_args(arguments)[1:])

    stop, starting = threading.Event(), True

    def on_signal(number: int, frame: object) -> None:
        if starting and not stop.is_set():
            stop.set()
            raise KeyboardInterrupt  # loading a model takes seconds, do not wait for it
        stop.set()

    signal.signal(signal.SIGINT, on_signal)
    signal.signal(signal.SIGTERM, on_signal)
    nodes: list[DetectorNode] = []
    try:
        rclpy.init(args=arguments, signal_handler_options=SignalHandlerOptions.NO)
        executor = SingleThreadedExecutor()
        if parsed.cameras:
            for camera in read_cameras(parsed.cameras):
                nodes.append(DetectorNode(namespace=camera.name, cli_args=camera.ros_arguments(), **options))
        else:
            nodes.append(DetectorNode(**options))
        for node in nodes:
            executor.add_node(node)
            if node.get_parameter("autostart").value:
                node.autostart()
        with woken_by_signals(nodes[0]):
            starting = False
            while not stop.is_set():
                try:
                    executor.spin_once()
                except RCLError as error:
                    if "transition" not in str(error):
                        raise
                    # rclpy lets a request for an impossible transition end the process
                    nodes[0].get_logger().error("a lifecycle transition was asked for that this state does not have")
    except (ParameterException, CameraFileError) as error:
        print(f"detector: error: {error}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    finally:
        starting = False
        closed = [node.close() for node in nodes]
        if all(closed):  # else an inference is still running and would crash without rclpy
            rclpy.try_shutdown()
    return 0


def main() -> None:
    """Entry point. Leaves without unloading Python: with torch in it that takes a second."""
    status = run()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
