"""Processes that read images beside the one that computes."""

import multiprocessing
import os
import signal
from collections.abc import Mapping
from multiprocessing.context import BaseContext

import torch

GRACE = 30  # seconds


def context() -> BaseContext:
    """How reading processes start: from a clean server process, never as a copy of this one.

    By the time they start, this process has threads (the arithmetic's, the progress bar's, perhaps a GPU driver's), and
    a copy would inherit their locks without the threads that would open them.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["swindow.data.loading", "torchvision.transforms.v2"])  # imported once, not by each
    return server


def cores() -> int:
    """Processor cores that this process may use: its share of them, where torchrun started several on this machine."""
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(here // int(os.environ.get("LOCAL_WORLD_SIZE", "1")), 1)


def start_quietly(_worker: int = 0, environment: Mapping[str, str] | None = None) -> None:
    """What a reading process does first: one thread, and no opinion of its own about stopping.

    The server that it comes from may be older than the environment of this program (credentials, endpoints), which is
    therefore handed on.

    Ctrl-C and a polite kill reach the whole group; the main process finishes its step and saves, for which it may need
    one more batch. A reader that nobody stops by then goes by itself.
    """
    os.environ.update(environment or {})
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "alarm"):
        signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE))
