"""Score the live node on a recording: ``ros2 launch skd_wm3d_ros evaluate_bag.launch.py bag:=FOLDER``.

One process plays the bag (`ros2 bag play` where it is installed), runs the node, records its answers and scores them.
`ros2 launch` ends with status 1 where that fails, and with ``check:=true`` where live and offline differ.
"""

from launch import LaunchDescription
from launch.actions import ExecuteProcess, OpaqueFunction

from skd_wm3d_ros.launch_actions import Outcome, declared
from skd_wm3d_ros.launch_arguments import BAG, EVALUATION, evaluation_command


def evaluate(context, outcome):
    """The evaluation as a process."""
    command = evaluation_command(context.launch_configurations)
    return [ExecuteProcess(cmd=command, name="bag_evaluation", output="screen", **outcome.watched())]


def generate_launch_description():
    outcome = Outcome()
    evaluation = OpaqueFunction(function=evaluate, args=[outcome])
    return LaunchDescription([*declared([BAG, *EVALUATION]), *outcome.actions(), evaluation])
