"""Many runs, several at a time, in processes that end with this one."""

import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, TypeVar

Job = TypeVar("Job")
Result = dict[str, Any]


def run_all(
    work: Callable[[Job], Result], jobs: Sequence[Job], parallel: int, told: Callable[[Result], str]
) -> list[Result]:
    """work(job) of every job in order, `parallel` at a time; a line of stderr for each that is done, which `told` makes."""
    if parallel == 1:
        return _counted(map(work, jobs), len(jobs), told)
    # fresh processes: a forked one would inherit torch's threads, and a CUDA context that does not survive;
    # that may have children of their own, as the loading of data has
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(parallel, mp_context=context, initializer=end_with_parent) as pool:
        return _counted(pool.map(work, jobs), len(jobs), told)


def end_with_parent() -> None:
    """Ends this process as soon as its parent has ended, however: a killed run leaves nobody computing."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _counted(results: Iterable[Result], total: int, told: Callable[[Result], str]) -> list[Result]:
    done = []
    for index, result in enumerate(results, start=1):
        print(f"[{index}/{total}] {told(result)}", file=sys.stderr, flush=True)
        done.append(result)
    return done
