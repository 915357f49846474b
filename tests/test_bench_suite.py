"""Engines answer as the model they run; a suite holds every claim against the right peer and says who was missing."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from swindow import cli
from swindow.bench import engines
from swindow.bench import suite as suites
from swindow.bench.answers import check, distance
from swindow.bench.claims import Claim, grown, missing, on_gpus, quickest, weighed
from swindow.bench.contenders import contender, network, parameters, verify
from swindow.bench.imports import import_seconds
from swindow.bench.measuring import Comparison, Protocol, Row, compare
from swindow.bench.memory import peak
from swindow.bench.suite import FLOOR, Suite, suite, work_of
from swindow.bench.work import Work
from swindow.devices import Precision
from swindow.errors import ConfigError, MissingExtra, UnknownName
from swindow.model import ModelConfig, model_config

QUICK = Protocol(rounds=1, warmup=1, memory=False, floor=False)


def work(**changes: Any) -> Work:
    """Two images of 8x8 pixels, four classes."""
    return dataclasses.replace(Work(model="swin_tiny", size=(8, 8), batch=2, classes=4), **changes)


# Answers


def test_distance_is_relative_and_what_is_not_finite_is_infinitely_far() -> None:
    truth = torch.tensor([[3.0, 4.0]])
    assert distance(truth, truth) == 0
    assert distance(torch.tensor([[3.0, 4.5]]), truth) == pytest.approx(0.1)
    assert distance(torch.tensor([[3.0, float("nan")]]), truth) == float("inf")


@pytest.mark.parametrize(("dtype", "allowed"), [("fp32", 3e-5), ("bf16", 1e-2)])
def test_answers_may_differ_by_rounding_alone(dtype: Precision, allowed: float) -> None:
    def truth(images: Tensor) -> Tensor:
        return images.flatten(1)[:, :4]

    check(lambda images: truth(images) * (1 + allowed), truth, work(dtype=dtype))
    with pytest.raises(ConfigError, match=f"away from the model's, {dtype} allows"):
        check(lambda images: truth(images) * (1 + 10 * allowed), truth, work(dtype=dtype))


def test_what_optimize_returns_is_held_against_the_plain_model() -> None:
    config = model_config("swin_micro", dim=8, depths=(2, 2), num_heads=(2, 4), window=4, patch=2, num_classes=4)
    someone = contender("swin_micro:optimize")
    same = network(contender("swin_micro"), config, work())
    verify(someone, same, config, work())
    optimized = network(someone, config, work())
    verify(someone, optimized, config, work())
    assert parameters(optimized) is None  # they are packed: what is still to be seen would mislead
    with pytest.raises(ConfigError, match="logits"):
        verify(someone, lambda images: same(images.flip(3)), config, work())


# Engines


class Small(nn.Module):
    """Something that is quick to export."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.linear = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 4)

    def forward(self, images: Tensor) -> Tensor:
        return self.linear(nn.functional.gelu(self.convolution(images)).mean((2, 3)))


@pytest.fixture(name="small_peer")
def small_peer_fixture(monkeypatch: pytest.MonkeyPatch) -> Small:
    model = Small()
    monkeypatch.setattr(engines, "timm_model", lambda *_: model)
    return model


ENGINES = ["onnxruntime", "openvino"]


@pytest.mark.parametrize("name", ENGINES)
def test_an_engine_runs_the_peer_s_graph(name: str, small_peer: Small) -> None:
    pytest.importorskip(name)
    config = model_config("swin_tiny")
    found = network(contender(name), config, work())
    fresh = torch.randn(2, 3, 8, 8)
    assert distance(found(fresh), small_peer(fresh)) < 1e-5
    (done,) = compare([contender(name)], config, [work()], QUICK)
    assert len(done.rows[0].seconds) == 1
    assert done.rows[0].ready is not None
    assert peak(contender(name), config, work()) is None  # the exporter's memory is not the engine's


def test_openvino_computes_in_the_precision_that_it_was_asked_for(small_peer: Small) -> None:
    openvino = pytest.importorskip("openvino")
    if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this processor has no bf16 instructions")
    images = work().images()
    whole, half = (
        distance(
            network(contender("openvino"), model_config("swin_tiny"), work(dtype=dtype))(images), small_peer(images)
        )
        for dtype in ("fp32", "bf16")
    )
    assert whole < 1e-5 < half < 1e-2


@pytest.mark.parametrize("name", ENGINES)
def test_a_graph_with_other_answers_is_a_row_that_says_so(
    name: str, small_peer: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(name)
    written = engines.write_graph

    def wrong(model: nn.Module, images: Tensor, path: Path) -> None:
        written(nn.Sequential(model, nn.Hardtanh(-0.01, 0.01)), images, path)

    monkeypatch.setattr(engines, "write_graph", wrong)
    (done,) = compare([contender(name)], model_config("swin_tiny"), [work()], QUICK)
    assert not done.rows[0].seconds
    assert "its logits are" in done.rows[0].note


def test_engines_say_what_they_cannot_do(monkeypatch: pytest.MonkeyPatch) -> None:
    config = model_config("swin_tiny")
    with pytest.raises(ConfigError, match="no bf16 kernels"):
        network(contender("onnxruntime"), config, work(dtype="bf16"))
    for name in ENGINES:
        with pytest.raises(ConfigError, match="inference on a CPU"):
            network(contender(name), config, work(mode="train"))
        with pytest.raises(ConfigError, match="runs in one way"):
            network(contender(f"{name}:compile"), config, work())
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(MissingExtra, match=r"pip install 'swindow\[bench\]'"):
            network(contender(name), config, work())


def test_writing_onnx_needs_its_libraries(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(MissingExtra, match=r"onnxscript is not installed; run: pip install 'swindow\[bench\]'"):
        engines.write_graph(Small(), work().images(), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize(("model", "size"), [("swin_tiny", 224), ("swin_v2_tiny_w8", 256)])
def test_engines_run_timm_s_swin(name: str, model: str, size: int) -> None:
    pytest.importorskip(name)
    pytest.importorskip("timm")
    task = Work(model=model, size=(size, size), batch=1)
    found = network(contender(name), model_config(model), task)  # compares the logits by itself
    assert found(task.images()).shape == (1, 1000)


# Claims


def comparison(times: dict[str, tuple[float, ...] | str], **changes: Any) -> Comparison:
    """As if these had been measured, in seconds, or had failed for a reason."""
    rows = [
        Row(name=name, note=each) if isinstance(each, str) else Row(name=name, seconds=each, floor="floor" in name)
        for name, each in times.items()
    ]
    return Comparison(work=work(**changes), rows=tuple(rows))


TIMES: dict[str, tuple[float, ...] | str] = {
    "swin_tiny": (8.0, 9.0, 10.0),
    "swin_tiny:optimize": (6.0, 6.0, 6.0),
    "timm": (10.0, 10.0, 10.0),
    "torchvision": (12.0, 12.0, 12.0),
    "transformers": "not installed",
    "onnxruntime": (7.0, 7.0, 7.0),
    "openvino": (5.0, 5.0, 5.0),
    "timm:compile": (9.0, 9.0, 9.0),
    FLOOR: (4.0, 4.0, 4.0),
}


@pytest.mark.parametrize(
    ("measured", "incomplete", "verdict"),
    [(0.9, False, "pass"), (0.9, True, "incomplete"), (0.93, False, "falls short"), (0.93, True, "falls short")],
)
def test_verdicts(measured: float, incomplete: bool, verdict: str) -> None:
    assert Claim(what="", limit=0.92, measured=measured, incomplete=incomplete).verdict == verdict


def test_a_claim_is_against_the_fastest_of_those_it_names() -> None:
    claim = quickest(
        comparison(TIMES), "eager", "swin_tiny", ("timm", "torchvision"), 0.92, absent={"openvino": "gone"}
    )
    assert (claim.measured, claim.must, claim.verdict) == (0.9, "≤ 0.92", "pass")
    assert claim.remark == "4500.0 and 5000.0 ms an image, timm"


def test_whoever_is_missing_leaves_a_claim_incomplete() -> None:
    found = comparison(TIMES)
    expected = ("timm", "transformers", "somebody else")
    absent = missing(found, expected)
    assert absent == {"transformers": "not installed"}
    claim = quickest(found, "", "swin_tiny", expected, 0.92, absent=absent)
    assert claim.verdict == "incomplete"
    assert claim.remark.endswith("timm; without transformers: not installed")


def test_no_figure_says_why() -> None:
    found = comparison(TIMES | {"swin_tiny": "no kernel"})
    claim = quickest(found, "", "swin_tiny", ("timm",), 1.0, absent={})
    assert (claim.verdict, claim.remark) == ("not measured", "swin_tiny: no kernel")
    claim = quickest(found, "", "timm", ("transformers",), 1.0, absent=missing(found, ("transformers",)))
    assert (claim.verdict, claim.remark) == ("not measured", "without transformers: not installed")


def test_memory_is_against_the_leanest() -> None:
    peaks: dict[str, int | str] = {"ours": 3 * 2**20, "timm": 5 * 2**20, "torchvision": 4 * 2**20}
    claim = weighed(peaks, "", "ours", "ours", ("timm", "torchvision"), 0.75)
    assert (claim.measured, claim.verdict, claim.remark) == (0.75, "pass", "3 and 4 MiB, torchvision")
    without = weighed(peaks | {"torchvision": "failed"}, "", "ours", "ours", ("timm", "torchvision"), 0.75)
    assert (without.measured, without.verdict) == (0.6, "incomplete")
    assert "without torchvision: failed" in without.remark
    assert weighed(peaks | {"ours": "failed"}, "", "ours", "ours", ("timm",), 0.75).remark == "failed"


def test_growth_is_per_pixel() -> None:
    small = comparison({"swin_tiny": (4.0, 4.0)}, size=(8, 8), batch=64)
    large = comparison({"swin_tiny": (5.0, 5.0)}, size=(64, 64), batch=1)
    claim = grown([small, large], 1.15)
    assert (claim.measured, claim.verdict) == (1.25, "falls short")
    assert claim.what == "time per pixel, 64² at batch 1 ÷ 8² at batch 64"
    assert grown([small, comparison({"swin_tiny": "no memory"})], 1.15).remark == "no memory"


def test_gpus_are_not_measured_here_and_the_table_says_how_to() -> None:
    assert {claim.verdict for claim in on_gpus()} == {"not measured"}
    assert all("benchmarks/gpu.py" in claim.remark and claim.must for claim in on_gpus())


@pytest.mark.parametrize(("name", "optimized"), [("swin_tiny", 0.74), ("swin_v2_tiny_w8", 0.68)])
def test_claims_of_inference_and_their_limits(name: str, optimized: float) -> None:
    times = {key.replace("swin_tiny", name): each for key, each in TIMES.items()}
    claims = suites._of_inference(Suite(), comparison(times, model=name), {})
    assert [(claim.limit, claim.measured) for claim in claims] == [
        (0.92, 0.9),
        (optimized, 0.6),
        (1.00, 1.2),
        (1.15, 1.5),
    ]
    assert [claim.verdict for claim in claims] == ["incomplete", "incomplete", "falls short", "falls short"]


def test_onnxruntime_is_not_missed_where_it_cannot_be() -> None:
    times = TIMES | {"onnxruntime": "no bf16", "transformers": (9.5, 9.5, 9.5), "openvino": (7.0, 7.0, 7.0)}
    claims = suites._of_inference(Suite(), comparison(times, dtype="bf16"), {})
    assert [(claim.limit, claim.verdict) for claim in claims] == [(0.76, "pass"), (0.95, "pass"), (1.25, "falls short")]


# The suite


PEER = """
from torch import nn

def build(work):
    height, width = work.size
    return nn.Sequential(nn.Flatten(), nn.Linear(work.channels * height * width, work.classes))
"""


@pytest.fixture(name="plan")
def plan_fixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Suite:
    """Two tiny models against a linear layer; an engine that no library has a graph for."""
    (tmp_path / "peer.py").write_text(PEER)
    monkeypatch.setattr(suites, "USUAL", 32)
    peer = f"{tmp_path}/peer.py:build"
    return Suite(
        models=("swin_micro", "swin_nano"), eager=(peer,), engines=("openvino",), compiled=(), batch=1, rounds=1
    )


@pytest.fixture(name="measured_elsewhere")
def measured_elsewhere_fixture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Imports and peaks take processes of their own; they are tested by themselves."""
    monkeypatch.setattr(suites, "import_seconds", lambda names, **_: {name: [2.0] for name in names})
    monkeypatch.setattr(suites, "peak", lambda someone, *_: 2**20 * (1 + someone.ours))


@pytest.mark.usefixtures("measured_elsewhere")
def test_a_suite_measures_every_claim_or_says_why_not(plan: Suite) -> None:
    results = suite(plan)
    about = {(claim.model, claim.what.split(",")[0].split(" ÷")[0]) for claim in results.claims}
    for name in plan.models:
        for what in ("fp32 inference", "bf16 inference", "fp32 training step", "peak memory of a training step"):
            assert (name, what) in about
    assert {("", "import swindow"), ("swin_micro", "time per pixel")} < about
    for claim in results.claims:
        assert (claim.measured is None) == (claim.verdict == "not measured")
        assert claim.remark or claim.measured is not None
    eager = [claim for claim in results.claims if "eager ÷" in claim.what]
    assert [claim.measured is not None for claim in eager] == [True, True]
    assert {row.name: row.note for row in results.comparisons[0].rows}[
        "openvino"
    ] == "timm has no counterpart of swin_micro"
    assert json.loads(json.dumps(results.record()))["claims"][0]["verdict"] == "pass"


@pytest.mark.usefixtures("measured_elsewhere")
def test_compiled_peers_of_later_models_are_left_out_when_time_is_short(
    plan: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def recorded(contenders: Any, config: ModelConfig, works: Any, protocol: Protocol, *, say: Any) -> list[Comparison]:
        asked.append([someone.name for someone in contenders])
        rows = tuple(Row(name=someone.name, seconds=(1.0,), ready=60.0) for someone in contenders)
        return [Comparison(work=task, rows=(*rows, Row(name=FLOOR, seconds=(1.0,), floor=True))) for task in works]

    monkeypatch.setattr(suites, "compare", recorded)
    monkeypatch.setattr(suites, "pick_precision", lambda *_: "bf16")
    compiled = dataclasses.replace(plan, compiled=("timm:compile",))
    results = suite(dataclasses.replace(compiled, minutes=1.0))
    assert ["timm:compile" in names for names in asked].count(True) == 2  # fp32 and bf16 of the first
    later = [claim for claim in results.claims if claim.model == "swin_nano" and "any kind" in claim.what]
    assert len(later) == 2
    assert all("without timm:compile: left out: 108 s more" in claim.remark for claim in later)
    asked.clear()
    suite(dataclasses.replace(compiled, minutes=60.0))
    assert ["timm:compile" in names for names in asked].count(True) == 4


@pytest.mark.usefixtures("measured_elsewhere")
def test_without_bf16_instructions_bf16_is_not_measured(plan: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suites, "pick_precision", lambda *_: "fp32")
    results = suite(dataclasses.replace(plan, models=("swin_micro",)))
    half = [claim for claim in results.claims if claim.what.startswith("bf16")]
    assert [claim.limit for claim in half] == [0.76, 0.95, 1.25]
    assert {claim.remark for claim in half} == {"this processor has no bf16 instructions"}


def test_works_are_those_of_the_issue() -> None:
    sizes = {name: work_of(Suite(), name)[1].size for name in Suite().models}
    assert sizes == {"swin_tiny": (224, 224), "swin_v2_tiny_w8": (256, 256)}
    for wrong in (
        {"models": ()},
        {"eager": ()},
        {"batch": 0},
        {"rounds": 0},
        {"threads": -1},
        {"models": ("vit_tiny",)},
    ):
        with pytest.raises(ConfigError):
            Suite(**wrong)


@pytest.mark.usefixtures("measured_elsewhere")
def test_the_command(
    plan: Suite, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def replaced(**given: Any) -> Suite:
        return dataclasses.replace(plan, **given)

    monkeypatch.setattr(suites, "Suite", replaced)
    monkeypatch.setattr(suites, "GROWTH", 0.0)  # nothing can keep it
    with pytest.raises(SystemExit) as ended:
        cli.main(["bench", "--suite", "cpu", "--batch", "1", "--rounds", "1", "--out", str(tmp_path / "results")])
    said = capsys.readouterr()
    assert ended.value.code == 1
    assert "import swindow ÷ import torch" in said.out
    assert "falls short" in said.out
    (file,) = (tmp_path / "results").iterdir()
    assert file.name.startswith("suite-cpu-2")
    content = json.loads(file.read_text())
    assert {"date", "commit", "environment", "setting", "claims", "comparisons", "import_seconds"} <= content.keys()
    assert content["setting"]["rounds"] == 1


def test_a_suite_takes_no_models(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["bench", "swin_tiny", "--suite", "cpu", "--dtype", "bf16"])
    assert ended.value.code == 2
    assert "takes no models, dtype" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [{"batch": 0}, {"rounds": 0}, {"threads": -1}])
def test_a_suite_says_what_it_takes(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="batch and rounds must be at least 1, threads at least 0"):
        Suite(**wrong)


# Imports


def test_imports_are_timed_in_fresh_interpreters() -> None:
    found = import_seconds(("json", "email.mime.multipart"), rounds=2, warmup=0)
    assert {name: len(times) for name, times in found.items()} == {"json": 2, "email.mime.multipart": 2}
    assert all(0 < seconds < 5 for times in found.values() for seconds in times)
    with pytest.raises(ConfigError, match="No module named 'not_there'"):
        import_seconds(("not_there",), rounds=1)


# Where time goes


@pytest.fixture(name="where_time_goes")
def where_time_goes_fixture(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    import where_time_goes

    return where_time_goes


@pytest.mark.parametrize(
    ("name", "shapes", "kind"),
    [
        ("aten::addmm", (), "linear layers"),
        ("aten::mkldnn_convolution", (), "linear layers"),
        ("aten::convolution_backward", (), "linear layers"),
        ("mkldnn::_linear_pointwise", (), "linear layers"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", (), "attention"),
        ("aten::baddbmm", (), "attention"),
        ("aten::_softmax_backward_data", (), "attention"),
        ("aten::linalg_vector_norm", (), "attention"),  # V2's cosine
        ("aten::native_layer_norm", (), "norms"),
        ("autograd::engine::evaluate_function: NativeLayerNormBackward0", (), "norms"),
        ("aten::gelu_backward", (), "GELU"),
        ("aten::add", ([2, 8, 8, 96], [2, 8, 8, 96]), "residuals"),
        ("aten::add_", ([2, 64, 96], [2, 64, 96]), "residuals"),
        ("aten::add", ([8, 3, 16, 16], [1, 3, 16, 16]), "attention"),  # a bias
        ("aten::add", ([2, 4, 3, 16, 16], [1, 4, 1, 16, 16]), "attention"),  # a mask
        ("aten::add", ([], []), "rest"),
        ("aten::copy_", (), "copies"),
        ("aten::roll", (), "copies"),
        ("aten::index_select", (), "copies"),
        ("aten::_fused_adamw_", (), "optimizer"),
        ("aten::view", (), "rest"),
        ("swindow::attention_branch", (), "attention branch, one call"),
        ("swindow::mlp_branch", (), "MLP branch, one call"),
        ("swindow::linear_layer", (), "linear layers"),
        ("swindow::window_attention_backward", (), "attention"),
    ],
)
def test_operators_have_their_kind(where_time_goes: Any, name: str, shapes: Any, kind: str) -> None:
    assert where_time_goes.kind(name, shapes) == kind
    assert kind in where_time_goes.KINDS


def test_shares_add_up_and_what_no_operator_took_lies_between(where_time_goes: Any) -> None:
    events = [("aten::addmm", (), 30.0), ("aten::mm", (), 20.0), ("aten::gelu", (), 10.0)]
    assert where_time_goes.shares(events, 80.0) == {"linear layers": 0.625, "GELU": 0.125, "between operators": 0.25}
    assert sum(where_time_goes.shares(events, 50.0).values()) == pytest.approx(1)  # clocks may disagree a little


def test_a_profile_is_of_the_operators_that_ran(where_time_goes: Any) -> None:
    model, x = nn.Sequential(nn.Linear(256, 1024), nn.GELU(), nn.LayerNorm(1024)), torch.randn(512, 256)
    found = where_time_goes.profiled(lambda: model(x))
    assert {"linear layers", "GELU", "norms"} < found.keys()
    assert sum(found.values()) == pytest.approx(1)
    assert found.get("attention", 0.0) == found.get("residuals", 0.0) == 0.0


def test_where_time_goes_is_printed_drawn_and_recorded(where_time_goes: Any) -> None:
    task = Work(model="swin_micro", size=(32, 32), batch=1)
    profiles = where_time_goes.measure(task, ["timm", "swin_micro"], rounds=1)
    assert "no counterpart" in profiles[0].note
    said = where_time_goes.table(profiles, markdown=True).splitlines()
    assert said[:2] == ["| ms an image | swin_micro |", "|---|---:|"]
    assert said[-1] == "timm: timm has no counterpart of swin_micro"
    cells = {line.split(" | ")[0][2:]: line.split(" | ")[1][:-2] for line in said[2:-2]}
    total = float(cells.pop("all"))
    assert sum(float(cell) for cell in cells.values() if cell) == pytest.approx(total, abs=0.1)
    drawn = where_time_goes.picture(profiles, task.title)
    assert drawn.startswith(b"\x89PNG")
    assert len(drawn) < 300_000
    content = json.loads(json.dumps(where_time_goes.content(task, profiles, 1)))
    assert sum(content["profiles"][1]["ms_by_kind"].values()) == pytest.approx(content["profiles"][1]["ms"])


def test_peers_come_first_and_must_be_peers(where_time_goes: Any) -> None:
    assert where_time_goes.everybody("swin_tiny", "infer", ["timm", "torchvision"]) == [
        *("timm", "torchvision", "swin_tiny", "swin_tiny:optimize")
    ]
    assert where_time_goes.everybody("swin_tiny", "train", []) == ["swin_tiny"]
    with pytest.raises(UnknownName, match="peer 'nobody'"):
        where_time_goes.everybody("swin_tiny", "infer", ["nobody"])


@pytest.mark.slow
def test_the_script_says_how_many_threads_and_nothing_of_the_profiler_s(tmp_path: Path) -> None:
    script = Path(__file__).parents[1] / "benchmarks" / "where_time_goes.py"
    words = ["--quick", "--model", "swin_micro", "--size", "32", "--batch", "1", "--threads", "1"]

    def run(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, str(script), *words, *more], capture_output=True, text=True, check=False)

    refused = run("--against", "nobody")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.count("\n") == 1
    assert "nobody" in refused.stderr
    done = run("--against", "", "--picture", str(tmp_path / "drawn.png"))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("swin_micro, inference, 32x32, batch 1, fp32, cpu, 1 threads\n")
    assert (tmp_path / "drawn.png").read_bytes().startswith(b"\x89PNG")
