#!/usr/bin/env bash
# .venv-numpy2: numpy 2, and for everything else the packages of .venv (compiled ones work with both numpy versions).
set -euo pipefail
cd "$(dirname "$0")/.."
[ -f .venv-numpy2/.ready ] && exit 0
echo "setup: making .venv-numpy2"
unset _ROS_WHEELS_BOOTSTRAP_COMPLETE
"${PYTHON:-python3}" -m venv --clear .venv-numpy2
.venv-numpy2/bin/pip install -qq --disable-pip-version-check 'numpy>=2,<3'
packages() { "$1" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }
packages .venv/bin/python > "$(packages .venv-numpy2/bin/python)/packages_of_venv.pth"
touch .venv-numpy2/.ready .venv-numpy2/COLCON_IGNORE
