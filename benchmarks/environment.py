"""The machine that figures were measured on, and warnings against them."""

import os
import platform
from pathlib import Path


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(("model name", "Model")):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def header() -> str:
    """Returns the lines above figures: machine, versions, and warnings."""
    lines = [
        f"machine   {_cpu_model()}, {os.cpu_count()} cores, Linux {platform.release()}",
        f"python    {platform.python_version()} ({platform.python_implementation()})",
    ]
    load = os.getloadavg()[0]
    if load > 0.5:
        lines.append(f"WARNING   load average {load:.1f}: another program is running; figures are too high")
    if "hypervisor" in Path("/proc/cpuinfo").read_text():
        lines.append(
            "WARNING   a virtual machine: its neighbours' load shows in these figures; compare ratios, not runs"
        )
    return "\n".join(lines)
