"""Questions of `benchmarks.questions` on the GPU, in the format of `benchmarks.record`, so the tables are made from
these files."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.gpu.stage import parser
from benchmarks.questions import all_tasks
from benchmarks.record import record
from benchmarks.tasks import FAILED

# peers that start at once, and peers that compile (and tune) for every shape: the first must not wait for the second
PEERS = {
    "quick": ("ours", "dense", "sdpa_flash", "sdpa_efficient", "sdpa_cudnn", "flash_attention_2", "flash_attention_3"),
    "compiled": ("dense_compiled", "flex"),
}


def main() -> int:
    made = parser(__doc__)
    made.add_argument("--question", default="cascade")
    made.add_argument("--peers", choices=tuple(PEERS), help="only these contenders")
    options = made.parse_args()
    tasks = all_tasks("cuda", (options.question,))
    if options.peers:
        tasks = [
            replace(task, contenders=tuple(name for name in task.contenders if name in PEERS[options.peers]))
            for task in tasks
        ]
    rows = record(tasks, "cuda", options.out, minutes=options.seconds / 60)
    return 1 if any(row.status == FAILED for row in rows) else 0


if __name__ == "__main__":
    raise SystemExit(main())
