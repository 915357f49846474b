"""Inference engines on a peer's graph: timm's model of the same shape, written as ONNX and read by the engine.

Both read the same file. OpenVINO can also convert a torch module by itself: that graph is no faster, and takes twice as
long to make.
"""

import io
import tempfile
import warnings
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from swindow.bench.answers import check
from swindow.bench.peers import timm_model
from swindow.bench.work import Network, Work
from swindow.errors import ConfigError, require
from swindow.model import ModelConfig

_HINTS = {"fp32": "f32", "bf16": "bf16"}


def onnxruntime_engine(config: ModelConfig, work: Work) -> Network:
    """ONNX Runtime on timm's graph, with torch's number of threads.

    Raises:
        MissingExtra: timm, onnxruntime, or what writes ONNX is not installed.
        ConfigError: timm has no model of this shape, this is no work for the engine, or its logits are not timm's.
    """
    _for_engines(work)
    if work.dtype != "fp32":
        raise ConfigError(f"onnxruntime has no {work.dtype} kernels for a CPU")
    runtime = require("onnxruntime", extra="bench")
    settings = runtime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    # Its threads spin after a run, in the time of whoever comes next: 17 ms of the first 50, where this is not set.
    settings.add_session_config_entry("session.force_spinning_stop", "1")

    def load(graph: Path) -> Network:
        session = runtime.InferenceSession(graph, settings, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        return lambda images: torch.from_numpy(session.run(None, {name: images.numpy()})[0])

    return _engine(load, config, work)


def openvino_engine(config: ModelConfig, work: Work) -> Network:
    """OpenVINO on timm's graph, with torch's number of threads, one stream, and the work's precision and no other.

    Raises:
        MissingExtra: timm, openvino, or what writes ONNX is not installed.
        ConfigError: timm has no model of this shape, this is no work for the engine, or its logits are not timm's.
    """
    _for_engines(work)
    openvino = require("openvino", extra="bench")
    settings = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": _HINTS[work.dtype],  # left alone it takes bf16 where the processor has it
    }

    def load(graph: Path) -> Network:
        core = openvino.Core()
        request = core.compile_model(core.read_model(graph), "CPU", settings).create_infer_request()

        def run(images: Tensor) -> Tensor:
            return torch.from_numpy(request.infer({0: images.numpy()}, share_inputs=True)[0])

        return run

    return _engine(load, config, work)


ENGINES: Mapping[str, Callable[[ModelConfig, Work], Network]] = {
    "onnxruntime": onnxruntime_engine,
    "openvino": openvino_engine,
}


def _for_engines(work: Work) -> None:
    if work.mode != "infer" or work.device != "cpu" or work.dtype not in _HINTS:
        raise ConfigError("engines are measured in fp32 or bf16 inference on a CPU")


def _engine(load: Callable[[Path], Network], config: ModelConfig, work: Work) -> Network:
    """What `load` makes of timm's graph, once its logits have been found to be timm's."""
    model = timm_model(config, work).eval()
    with tempfile.TemporaryDirectory(prefix="swindow-bench-") as folder:
        graph = Path(folder) / "model.onnx"
        write_graph(model, work.images(), graph)
        found = load(graph)
        check(found, model, work)
    return found


def write_graph(model: nn.Module, images: Tensor, path: Path) -> None:
    """The model as ONNX for images of this shape; its weights lie in a file beside it.

    Raises:
        MissingExtra: onnx or onnxscript is not installed.
    """
    for module in ("onnx", "onnxscript"):
        require(module, extra="bench")
    exported: Any
    with redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the exporter's own workings, not about the model
        exported = torch.onnx.export(model, (images,), dynamo=True, verbose=False)
        exported.save(path, external_data=True)
