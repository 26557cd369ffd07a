"""The network on OpenVINO, its graphs built op by op.

`import openvino` sends an event to Google Analytics, from a process that it forks for that. Who listens to a recording
here has not agreed to it, so the package that sends is kept out; openvino goes without it.
"""

import sys

sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

import openvino  # noqa: E402

__all__ = ["openvino"]
