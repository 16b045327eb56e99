"""Device, clocks, driver, versions, and what `python -m difnet_kernels info` says."""

from __future__ import annotations

import shutil
import subprocess
import sys

import torch

from benchmarks.gpu.stage import Report, parser


def _said(*command: str) -> str | None:
    if shutil.which(command[0]) is None:
        return None
    return subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.strip()


def main() -> int:
    options = parser(__doc__).parse_args()
    report = Report(options.out)
    properties = torch.cuda.get_device_properties(0)
    report.add(
        name=properties.name,
        arch=f"sm_{properties.major}{properties.minor}",
        multiprocessors=properties.multi_processor_count,
        memory_bytes=properties.total_memory,
        l2_bytes=getattr(properties, "L2_cache_size", None),
        shared_bytes=getattr(properties, "shared_memory_per_block_optin", None),
    )
    query = (
        "driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.limit,temperature.gpu,clocks_throttle_reasons.active"
    )
    report.add(nvidia_smi=_said("nvidia-smi", f"--query-gpu={query}", "--format=csv"))
    report.add(info=_said(sys.executable, "-m", "difnet_kernels", "info"))
    report.add(sanitizer=shutil.which("compute-sanitizer"), graphs=hasattr(torch.cuda, "CUDAGraph"))
    return report.done()


if __name__ == "__main__":
    raise SystemExit(main())
