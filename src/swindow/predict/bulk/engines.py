"""Who does the parts of a job: this process, or workers of Ray."""

import contextlib
import json
import logging
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from swindow.checkpoints import WEIGHTS, save
from swindow.errors import ConfigError, DataError, SwindowError, require
from swindow.images import ImageLimits
from swindow.predict.bulk.work import Done, Job, Worker
from swindow.predict.predictor import Predictor
from swindow.views import Views

CPUS = 4
"""Cores of a worker without a GPU, where nobody says how many workers there are."""
DEATHS = 2
"""Workers that may die of a part before it is given up."""
GIVEN_UP = f"its worker died {DEATHS} times (out of memory, or an image that ends it?)"
_STORE = 256 * 2**20  # bytes of Ray's shared memory: the weights and a few words for each part lie in it
SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is reported to anybody
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # on our screen; what fails is told by the parts that are missing
}

Outcome = tuple[int, Done | str]
"""A part, and what it came to or why it was not done."""


def here(predictor: Predictor, job: Job, parts: Sequence[int], advance: Callable[[], None]) -> Iterator[Outcome]:
    """The parts one after the other in this process."""
    with contextlib.closing(Worker(predictor, job)) as worker:
        for part in parts:
            try:
                yield part, worker.do(part, advance)
            except DataError as error:
                yield part, str(error)


def on_ray(
    predictor: Predictor, job: Job, parts: Sequence[int], *, workers: int | None, device: str
) -> Iterator[Outcome]:
    """The parts as they are finished by workers of Ray, each with the model in its memory.

    Ray Data maps the workers over the numbers of the parts, not over images: a worker reads, predicts and commits a
    part by itself, so images never travel through Ray's shared memory, a worker that dies costs its part at most, and
    what is committed is exactly what a single process would have written. Ray restarts a worker that dies and gives it
    its part again; the second time the part is given up, and the others go on.

    Where a cluster is at hand (Ray is initialised, or RAY_ADDRESS is set) it is used; else one is started on this
    machine for as long as this takes, in the system's folder for temporary files.

    Raises:
        MissingExtra: ray is not installed.
        ConfigError: more workers than the cluster has room for, or Ray does not start.
    """
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    if not any(name in os.environ for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN")):
        # Whoever talks to our own Ray must know this; Ray by itself would keep one in the user's home.
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    if not os.environ.get("RAY_ADDRESS"):
        # A cluster of our own is of one machine: it listens on the loopback, as Ray does by itself on Windows and macOS
        # but not on Linux. Ray reads this when it is imported.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    ray = require("ray", extra="ray")
    data = require("ray.data", extra="ray")
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with _running(ray):
        cpus, gpus = _shares(ray.cluster_resources(), workers, device)
        size = workers or _workers(ray.cluster_resources(), gpus)
        context = data.DataContext.get_current()
        context.enable_progress_bars, context.max_errored_blocks = False, -1
        deaths = ray.remote(num_cpus=0)(_Starts).remote()
        arguments = (ray.put(_weights(predictor)), _facts(predictor, device, cpus), job, deaths)
        numbers = data.from_items([{"part": part} for part in parts], override_num_blocks=len(parts))
        done = numbers.map_batches(
            RayWorker,
            batch_size=1,
            compute=data.ActorPoolStrategy(size=min(size, len(parts)), max_tasks_in_flight_per_actor=1),
            fn_constructor_args=arguments,
            num_cpus=cpus,
            num_gpus=gpus or None,
        )
        left = set(parts)
        try:
            for row in done.iter_rows():
                left.discard(int(row["part"]))
                yield int(row["part"]), _outcome(row)
        except ray.exceptions.RayError as error:
            raise ConfigError(f"ray: {_first_line(error)}; leave out --engine ray to do without") from error
        for part in sorted(left):
            yield part, GIVEN_UP


class RayWorker:
    """What an actor of Ray runs: a `Worker` that is given numbers of parts."""

    def __init__(self, weights: Any, facts: dict[str, Any], job: Job, starts: Any) -> None:
        import ray
        import torch

        torch.set_num_threads(max(1, int(facts["cpus"])))
        content = ray.get(weights) if isinstance(weights, ray.ObjectRef) else weights
        with tempfile.TemporaryDirectory(prefix="swindow-model-") as folder:
            path = Path(folder, WEIGHTS)
            path.write_bytes(content)
            predictor = Predictor(path, device=facts["device"], **facts["how"])
        predictor.readers = max(predictor.readers, int(facts["cpus"]))
        self.worker, self.starts = Worker(predictor, job), starts

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        import ray

        outcomes = [self._outcome(ray, int(part)) for part in batch["part"]]
        return {
            "part": list(batch["part"]),
            "done": [done for done, _ in outcomes],
            "error": [why for _, why in outcomes],
        }

    def _outcome(self, ray: Any, part: int) -> tuple[str, str]:
        if ray.get(self.starts.of.remote(part)) > DEATHS:
            return "", GIVEN_UP
        try:
            return self.worker.do(part).text(), ""
        except SwindowError as error:
            return "", str(error)


class _Starts:
    """How often each part was begun: it outlives the workers."""

    def __init__(self) -> None:
        self.counts: dict[int, int] = {}

    def of(self, part: int) -> int:
        self.counts[part] = self.counts.get(part, 0) + 1
        return self.counts[part]


def _outcome(row: dict[str, Any]) -> Done | str:
    return row["error"] or Done.read(row["done"].encode())


@contextlib.contextmanager
def _running(ray: Any) -> Iterator[None]:
    """Ray, for as long as the block takes if it was not there before."""
    if ray.is_initialized():
        yield
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    with contextlib.ExitStack() as stack:
        if not os.environ.get("RAY_ADDRESS"):
            folder = tempfile.mkdtemp(prefix="swindow-ray-")
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            quiet |= {"address": "local", "_temp_dir": folder}
            quiet |= {"include_dashboard": False, "object_store_memory": _STORE}
        stack.callback(ray.shutdown)
        try:
            ray.init(**quiet)
        except Exception as error:  # some are no more than that
            raise ConfigError(f"ray does not start: {_first_line(error)}; try again, see docs/predict.md") from error
        yield


def _workers(there: dict[str, float], gpus: float) -> int:
    """One for each GPU, or for each few cores."""
    return int(there["GPU"]) if gpus else max(1, int(there.get("CPU", 1)) // CPUS)


def _shares(there: dict[str, float], workers: int | None, device: str) -> tuple[float, float]:
    """Cores and GPUs of each worker.

    Raises:
        ConfigError: so many workers do not fit.
    """
    cpus, gpus = int(there.get("CPU", 0)), int(there.get("GPU", 0))
    wants_gpu = device.startswith("cuda") or (device == "auto" and gpus > 0)
    if wants_gpu and not gpus:
        raise ConfigError(f"device is {device} and Ray has no GPU; give --device cpu")
    room = gpus if wants_gpu else cpus
    if workers is not None and not 1 <= workers <= room:
        raise ConfigError(f"workers is {workers}; Ray has room for 1 to {room} here ({cpus} cores, {gpus} GPUs)")
    size = workers or _workers(there, float(wants_gpu))
    return float(max(1, cpus // size)), float(wants_gpu)


def _weights(predictor: Predictor) -> bytes:
    """The model as a file of ours: workers need neither the run's folder nor a network."""
    with tempfile.TemporaryDirectory(prefix="swindow-model-") as folder:
        return save(predictor.asked.model, Path(folder, WEIGHTS)).read_bytes()


def _facts(predictor: Predictor, device: str, cpus: float) -> dict[str, Any]:
    """How a worker makes the same predictor."""
    views: Views | None = None if predictor.segmenter is None else predictor.segmenter.views
    limits: ImageLimits = predictor.limits
    how = {"precision": predictor.asked.precision, "limits": limits, "views": views, "batch": predictor.given_batch}
    return {"device": device, "cpus": cpus, "how": how}


def _first_line(error: BaseException) -> str:
    return json.dumps(next(iter(str(error).splitlines()), type(error).__name__))[1:-1]
