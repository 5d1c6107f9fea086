"""``ros2 run skd_wm3d_ros detector_node``: one detector, or one for each camera of a file (``--cameras FILE``).

Nothing heavy is imported before a signal is taken care of: torch alone takes seconds, and Ctrl-C must end those too.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING

from skd_core.errors import UserError
from skd_wm3d_ros.environment import import_advice, require_jazzy

if TYPE_CHECKING:
    from skd_wm3d_ros.node import DetectorNode, LoadDetector

STOP_TIMEOUT = 0.5  # seconds that a signal waits for the callbacks and for the frames in work


class Spinner:
    """Runs the callbacks of a node in a thread of its own: a transition of one camera must not hold up the others.

    Attributes:
        error: what a callback raised, which also sends the process a SIGTERM; None = nothing.
    """

    def __init__(self, node: DetectorNode) -> None:
        self.error: BaseException | None = None
        self._node, self._stopping = node, False
        self._guard = node.create_guard_condition(lambda: None)
        self._thread = threading.Thread(target=self._run, name=f"executor of {node.get_namespace()}", daemon=True)
        self._thread.start()

    def ask_to_stop(self) -> None:
        """End after the callback in work."""
        self._stopping = True
        self._guard.trigger()  # the executor sleeps in DDS

    def stopped(self, timeout: float) -> bool:
        """Whether it has ended within ``timeout`` seconds."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        from rclpy._rclpy_pybind11 import RCLError
        from rclpy.executors import SingleThreadedExecutor

        executor = SingleThreadedExecutor()
        executor.add_node(self._node)
        try:
            while not self._stopping:
                try:
                    executor.spin_once()
                except RCLError as error:
                    if "transition" not in str(error):
                        raise
                    # rclpy lets a request for an impossible transition end the process
                    self._node.get_logger().error("a lifecycle transition was asked for that this state does not have")
        except BaseException as error:
            self.error = error
            signal.raise_signal(signal.SIGTERM)  # the main thread waits for signals


def run(args: Sequence[str] | None = None, load: LoadDetector | None = None) -> int:
    """Run the node until SIGINT or SIGTERM; a second signal, as under `ros2 launch`, changes nothing.

    Args:
        args: command line without the program's name; the process's own if None.
        load: weights, device and precision -> a detector; another one only for measurements.

    Returns:
        the exit status: 0, or 2 for a parameter, an argument or a camera file that cannot be, or a package that is
        missing.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: os._exit(0))  # nothing to clean up while importing
    try:
        require_jazzy()
        import cv2
        import rclpy
        from rclpy._rclpy_pybind11 import RCLError, UnknownROSArgsError
        from rclpy.exceptions import ParameterException
        from rclpy.executors import ExternalShutdownException
        from rclpy.signals import SignalHandlerOptions
        from rclpy.utilities import remove_ros_args

        from skd_wm3d_ros.cameras import CameraFileError, read_cameras
        from skd_wm3d_ros.node import DetectorNode
    except UserError as error:
        return _complain(str(error))
    except ImportError as error:
        return _complain(import_advice(error))

    cv2.setNumThreads(1)  # its idle threads spin after every call: more CPU for each frame than converting it takes
    options = {"load": load} if load else {}
    arguments = list(sys.argv if args is None else ["detector_node", *args])
    parser = argparse.ArgumentParser(prog="detector_node", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cameras", metavar="FILE", help="YAML list of cameras: all of them in this process")

    stop, starting = False, True  # no threading.Event: a second signal inside its set() would wait for ever

    def on_signal(number: int, frame: object) -> None:
        nonlocal stop
        first, stop = not stop, True
        if starting and first:
            raise KeyboardInterrupt  # loading a model takes seconds, do not wait for it

    signal.signal(signal.SIGINT, on_signal)
    signal.signal(signal.SIGTERM, on_signal)
    nodes: list[DetectorNode] = []
    spinners: list[Spinner] = []
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    signal.set_wakeup_fd(writer.fileno())  # Python writes the signal's number to it at once
    try:
        parsed = parser.parse_args(remove_ros_args(arguments)[1:])
        rclpy.init(args=arguments, signal_handler_options=SignalHandlerOptions.NO)
        if parsed.cameras:
            cameras, namespace = read_cameras(parsed.cameras), _namespace()
            for camera in cameras:
                own = ["-r", f"__ns:={namespace}{camera.name}"]  # goes before one of the command line
                nodes.append(DetectorNode(cli_args=[*camera.ros_arguments(), *own], **options))
        else:
            nodes.append(DetectorNode(**options))
        for node in nodes:
            if node.get_parameter("autostart").value:
                node.autostart()
        starting = False
        spinners += [Spinner(node) for node in nodes]
        while not stop:
            reader.recv(1)
        for spinner in spinners:
            if spinner.error is not None:
                raise spinner.error
    except (ParameterException, CameraFileError) as error:
        return _complain(str(error))
    except UnknownROSArgsError as error:
        return _complain(f"unknown ROS arguments {error}")
    except RCLError as error:
        if "parse" not in str(error):
            raise
        return _complain(str(error).partition(", at ")[0])  # where in rcl's source
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    finally:
        starting = False
        if _leave(nodes, spinners):  # else an inference or a transition is still running and would crash without rclpy
            rclpy.try_shutdown()
        signal.set_wakeup_fd(-1)
        reader.close()
        writer.close()
    return 0


def _leave(nodes: Sequence[DetectorNode], spinners: Sequence[Spinner]) -> bool:
    """Stop and destroy the nodes, whatever they are doing, so that the ROS graph forgets them at once: DDS itself takes
    20 seconds to notice. False where a thread is still at work."""
    for spinner in spinners:
        spinner.ask_to_stop()
    deadline = time.monotonic() + STOP_TIMEOUT
    idle = [spinner.stopped(max(deadline - time.monotonic(), 0.0)) for spinner in spinners]
    deadline, done = time.monotonic() + STOP_TIMEOUT, all(idle)
    for number, node in enumerate(nodes):
        if number >= len(idle) or idle[number]:
            done &= node.close(max(deadline - time.monotonic(), 0.0))
        else:  # a transition is at work in the node's thread
            node.destroy_node()
    return done


def _namespace() -> str:
    """Namespace that the command line gives to all nodes, with a slash at its end."""
    import rclpy

    node = rclpy.create_node("detector", enable_rosout=False, start_parameter_services=False)
    try:
        return node.get_namespace().rstrip("/") + "/"
    finally:
        node.destroy_node()


def _complain(error: str) -> int:
    print(f"detector: error: {error}", file=sys.stderr)
    return 2


def main() -> None:
    """Entry point. Leaves without unloading Python: that takes a second with torch in it, and crashes while another
    thread is at work."""
    try:
        status = run()
    except Exception:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
