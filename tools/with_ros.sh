#!/usr/bin/env bash
# Run a command in the ROS environment of this machine: `tools/with_ros.sh COMMAND...`
#
# A sourced ROS 2 is used as it is; an installed one (/opt/ros) that is not sourced yet is sourced if its rclpy fits the
# system's python3. Otherwise ROS comes from PyPI (tools/ros_from_pypi) and only needs to know where .venv is.
set -eo pipefail
root="$(cd "$(dirname "$0")/.." && pwd)"

# Left behind by another environment's interpreter (see tools/ros_from_pypi/install.py).
unset _ROS_WHEELS_BOOTSTRAP_COMPLETE

has_rclpy() { "${PYTHON:-python3}" -c 'import rclpy' 2>/dev/null; }
if ! has_rclpy; then
    for setup in /opt/ros/*/setup.bash; do
        if [ -f "$setup" ] && (source "$setup" && has_rclpy); then
            source "$setup"
            break
        fi
    done
fi

export AMENT_PREFIX_PATH="$root/.venv${AMENT_PREFIX_PATH:+:$AMENT_PREFIX_PATH}"
exec "$@"
