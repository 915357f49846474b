"""The bench measures what it says: order, medians, ratios, the floor's products, peers, files. No time is asserted."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from swindow import cli
from swindow.bench import Bench, bench
from swindow.bench.contenders import Contender, contender, network, parameters
from swindow.bench.measuring import Comparison, Protocol, Row, compare, line, made_for, sweep
from swindow.bench.memory import above_imports, peak
from swindow.bench.peers import PEERS, architecture
from swindow.bench.products import Product, products, replay
from swindow.bench.record import commit, record
from swindow.bench.roofline import Rates, Roofline, measure, roofline, roofline_of
from swindow.bench.tables import growth, per_pixel, roofline_line, sweep_chart, table, write
from swindow.bench.timing import interleave, ratio, spread
from swindow.bench.work import Work
from swindow.counting import count
from swindow.errors import ConfigError, MissingExtra, SwindowError, UnknownName
from swindow.model import Model, ModelConfig, model_config

Tiny = Callable[..., Model]
ROOT = Path(__file__).parents[1]
QUICK = Protocol(rounds=2, warmup=1, memory=False)


def work(**changes: Any) -> Work:
    """Two images of 16x16 pixels for the tiny model."""
    return dataclasses.replace(Work(model="tiny", size=(16, 16), batch=2, classes=5), **changes)


@pytest.fixture(name="config")
def config_fixture(tiny: Tiny) -> ModelConfig:
    return tiny().config


# Rounds


def test_runs_alternate_and_what_warms_up_does_not_count() -> None:
    time, order = iter(range(100)), []
    runs = {name: (lambda name=name: order.append(name)) for name in "abc"}
    samples = interleave(runs, rounds=3, warmup=2, clock=lambda: float(next(time)))
    assert "".join(order) == "abc" * 5
    assert samples == {name: [1.0, 1.0, 1.0] for name in "abc"}


def test_each_sample_is_the_time_of_its_own_run() -> None:
    now = [0.0]
    costs = {"slow": iter([100.0, 3.0, 5.0]), "fast": iter([200.0, 1.0, 2.0])}

    def run(name: str) -> None:
        now[0] += next(costs[name])

    runs = {name: (lambda name=name: run(name)) for name in costs}
    samples = interleave(runs, rounds=2, warmup=1, clock=lambda: now[0])
    assert samples == {"slow": [3.0, 5.0], "fast": [1.0, 2.0]}


def test_medians_quartiles_and_ratios() -> None:
    assert spread([4.0, 1.0, 3.0, 2.0, 5.0]) == (2.0, 3.0, 4.0)
    assert spread([7.0]) == (7.0, 7.0, 7.0)
    assert ratio([2.0, 30.0, 9.0], [1.0, 10.0, 1.0]) == 3.0  # rounds side by side, not 9 by 1


# Who takes part


@pytest.mark.parametrize(
    ("text", "source", "ways"),
    [
        ("swin_tiny", "swin_tiny", ()),
        ("timm:compile", "timm", ("compile",)),
        ("swin_tiny:checkpoint:amp", "swin_tiny", ("checkpoint", "amp")),
        ("swin_tiny.ms_in1k", "swin_tiny.ms_in1k", ()),
    ],
)
def test_a_contender_is_a_source_and_ways(text: str, source: str, ways: tuple[str, ...]) -> None:
    assert contender(text) == Contender(source=source, ways=ways)
    assert contender(text).name == text


def test_what_cannot_take_part_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="did you mean compile"):
        contender("timm:compil")
    with pytest.raises(ConfigError, match="no such file"):
        contender(f"{tmp_path}/none.py:build")
    with pytest.raises(UnknownName, match="did you mean timm"):
        line(["swin_tiny"], ["tim"])
    with pytest.raises(ConfigError, match="--against"):
        line(["timm"], [])


def test_ways_of_one_model_stand_in_one_line_with_every_peer() -> None:
    lines = line(["swin_tiny", "vit_tiny", "swin_tiny:compile"], ["timm", "timm"])
    assert {model: [one.name for one in line] for model, line in lines.items()} == {
        "swin_tiny": ["swin_tiny", "swin_tiny:compile", "timm"],
        "vit_tiny": ["vit_tiny", "timm"],
    }


@pytest.mark.parametrize(
    ("name", "timm", "torchvision"),
    [
        ("swin_tiny", "swin_tiny_patch4_window7_224", "swin_t"),
        ("swin_v2_base_w8", "swinv2_base_window8_256", "swin_v2_b"),
        ("vit_base", "vit_base_patch16_224", "vit_b_16"),
    ],
)
def test_peers_names_are_those_of_the_published_weights(name: str, timm: str, torchvision: str) -> None:
    assert architecture(model_config(name), "timm") == timm
    assert architecture(model_config(name, drop_path=0.0), "torchvision") == torchvision


def test_a_model_of_another_shape_has_no_counterpart() -> None:
    with pytest.raises(ConfigError, match="fields of swin_tiny were changed"):
        architecture(model_config("swin_tiny", dim=48), "timm")
    with pytest.raises(ConfigError, match="torchvision has no counterpart of swin_nano"):
        architecture(model_config("swin_nano"), "torchvision")
    with pytest.raises(ConfigError, match="transformers has no counterpart of swin_s3_tiny"):
        PEERS["transformers"](model_config("swin_s3_tiny"), work())


@pytest.mark.parametrize(
    ("name", "size", "peer"),
    [("swin_tiny", 224, peer) for peer in PEERS]
    + [("swin_v2_tiny_w8", 256, "timm"), ("vit_base", 96, "torchvision"), ("vit_base", 96, "transformers")],
)
def test_peers_have_our_parameters(name: str, size: int, peer: str) -> None:
    pytest.importorskip(peer)
    config = made_for(model_config(name, num_classes=10), (size, size))
    with torch.device("meta"):
        ours = parameters(Model(config))
    theirs = network(Contender(source=peer), config, Work(model=name, size=(size, size), classes=10, device="meta"))
    assert parameters(theirs) == ours


def test_ways_to_run(config: ModelConfig) -> None:
    checkpointed = network(contender("tiny:checkpoint"), config, work(mode="train"))
    assert all(stage.checkpointing for stage in checkpointed.backbone.each_stage())  # type: ignore[union-attr]
    half = network(contender("tiny"), config, work(dtype="bf16"))
    assert {x.dtype for x in half.parameters()} == {torch.bfloat16}  # type: ignore[union-attr]
    for text, mode in (("tiny:amp", "infer"), ("tiny", "train")):
        whole = network(contender(text), config, work(dtype="bf16", mode=mode))
        assert {x.dtype for x in whole.parameters()} == {torch.float32}  # type: ignore[union-attr]
        assert whole.training == (mode == "train")  # type: ignore[union-attr]


def test_images_are_not_zeros_and_the_same_for_everybody() -> None:
    images = work().images()
    assert images.shape == (2, 3, 16, 16)
    assert images.std() > 0.9
    assert torch.equal(images, work().images())


# The floor


SHAPES: dict[str, dict[str, Any]] = {
    "swin_micro": {"dim": 8, "depths": (2, 2), "num_heads": (2, 4), "window": 4, "patch": 2},
    "swin_v2_tiny_w8": {"dim": 8, "depths": (1, 1), "num_heads": (1, 2), "window": 4},
    "vit_tiny": {"dim": 16, "depths": (2,), "num_heads": 2, "patch": 8, "image_size": 32},
    "swin_mlp_tiny_c24": {"dim": 8, "depths": (2, 2), "num_heads": (2, 4), "window": 4},
}


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("size", [(32, 32), (40, 24)])
def test_the_floor_s_products_are_those_that_are_counted(name: str, size: tuple[int, int]) -> None:
    config = made_for(model_config(name, **SHAPES[name]), size)
    counts = count(Model(config), size)
    tables = sum(part.cost.tables for part in counts.parts)
    for batch in (1, 3):
        found = products(config, Work(model=name, size=size, batch=batch))
        assert sum(product.macs for product in found) == batch * (counts.product_macs - tables) + tables


@pytest.mark.parametrize("only_linear", [False, True])
def test_replaying_makes_every_product_once(
    config: ModelConfig, only_linear: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)  # packed products are not counted
    found = products(config, work())
    run, name = replay(found, work(), only_linear=only_linear)
    with FlopCounterMode(display=False) as counter:
        run()
    macs = sum(product.macs for product in found if product.kind == "linear" or not only_linear)
    assert counter.get_total_flops() == 2 * macs
    assert name == ("linear layers, not prepacked" if only_linear else "all products, not prepacked")


def test_a_training_floor_makes_both_gradients_but_not_the_images_s(config: ModelConfig) -> None:
    found = products(config, work(mode="train"))
    run, name = replay(found, work(mode="train"))
    with FlopCounterMode(display=False) as counter:
        run()
    (patches,) = (product.macs for product in found if product.kind == "convolution")
    assert counter.get_total_flops() == 2 * (3 * sum(product.macs for product in found) - patches)
    assert name.endswith("not prepacked")


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="prepacking is oneDNN's")
@pytest.mark.parametrize("name", ["swin_micro", "vit_tiny"])
def test_prepacked_products_are_the_same_products(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from swindow.bench import products as module

    task = Work(model=name, size=(32, 32), batch=2)
    found = products(model_config(name, **SHAPES[name]), task)

    def outcomes() -> Iterator[torch.Tensor]:
        for product in found:
            torch.manual_seed(1)
            noise = module._Noise(torch.device("cpu"), torch.float32)
            packed = torch.backends.mkldnn.is_available()
            yield module._CALLS[product.kind](product, task, noise, packed)()  # type: ignore[misc]

    packed = list(outcomes())
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    for mine, plain in zip(packed, outcomes(), strict=True):
        torch.testing.assert_close(mine.flatten(), plain.flatten(), rtol=1e-4, atol=1e-4)


def test_attention_s_logits_are_not_traffic(config: ModelConfig) -> None:
    found = products(config, work())
    attention = [product for product in found if product.kind == "attention"]
    assert attention
    for logits, mixed in zip(attention[::2], attention[1::2], strict=True):
        groups, tokens, dim = logits.left
        assert logits.values == 2 * groups * tokens * dim  # queries and keys
        assert mixed.values == 2 * groups * tokens * dim  # values and what comes out


# The roofline


def test_a_product_waits_for_the_longer_of_arithmetic_and_memory() -> None:
    heavy = Product(kind="linear", left=(1, 1), right=(1, 1), macs=1000, values=10)
    wide = Product(kind="linear", left=(1, 1), right=(1, 1), macs=10, values=1000)
    rates = Rates(bytes_per_second=200.0, flops_per_second=100.0)
    assert roofline([heavy, wide], rates, itemsize=2) == (20.2, 10.1, 30.0)
    assert roofline([heavy, wide], rates, itemsize=2, passes=3).bound == pytest.approx(90.0)


def test_rates_are_bytes_read_and_written_and_two_flops_a_mac() -> None:
    time = iter(range(1000))
    rates = measure(torch.device("cpu"), torch.float32, copied=512, side=4, clock=lambda: float(next(time)))
    assert rates == (1024.0, 128.0)


def test_training_has_three_passes(config: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swindow.bench.roofline.measure", lambda *_: Rates(1e9, 1e9))
    found = products(config, work())
    once, thrice = (roofline_of(found, work(mode=mode))[0] for mode in ("infer", "train"))
    assert thrice.bound == pytest.approx(3 * once.bound)
    half = roofline_of(found, work(dtype="bf16"))[0]
    assert half.traffic == pytest.approx(once.traffic / 2)


# Comparisons


PEER = """
from torch import nn

def build(work):
    height, width = work.size
    return nn.Sequential(nn.Flatten(), nn.Linear(work.channels * height * width, work.classes))

def engine(work):
    return lambda images: images.mean((2, 3))

def broken(work):
    raise RuntimeError("no licence")
"""


@pytest.fixture(name="peer")
def peer_fixture(tmp_path: Path) -> str:
    (tmp_path / "peer.py").write_text(PEER)
    return f"{tmp_path}/peer.py"


@pytest.mark.parametrize("mode", ["infer", "train"])
def test_everybody_runs_and_who_cannot_says_why(
    config: ModelConfig, peer: str, mode: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)  # as if it were not installed
    names = ["tiny", "tiny:checkpoint", "timm", *(f"{peer}:{name}" for name in ("build", "engine", "broken", "gone"))]
    (done,) = compare([contender(name) for name in names], config, [work(mode=mode)], QUICK)
    rows = {row.name.split("/")[-1]: row for row in done.rows}
    assert [row.name for row in done.rows][: len(names)] == names
    assert "pip install 'swindow[interop]'" in rows["timm"].note
    assert rows["peer.py:broken"].note == "no licence"
    assert "'gone'" in rows["peer.py:gone"].note
    assert rows["peer.py:build"].parameters == (3 * 16 * 16 + 1) * 5
    assert ("no parameters to train" in rows["peer.py:engine"].note) == (mode == "train")
    for row in rows.values():
        assert len(row.seconds) == (0 if row.note else 2)
    assert [row.floor for row in done.rows].count(True) == 2


def test_our_own_failures_are_errors(config: ModelConfig) -> None:
    with pytest.raises(SwindowError, match="channels"):
        compare([contender("tiny")], config, [work(channels=4)], QUICK)


def test_in_training_who_only_infers_says_so(config: ModelConfig) -> None:
    everybody = [contender(name) for name in ("tiny", "tiny:optimize", "openvino")]
    (done,) = compare(everybody, config, [work(mode="train")], QUICK)
    notes = {row.name: row.note for row in done.rows if not row.floor}
    assert notes["tiny"] == ""
    assert notes["tiny:optimize"] == notes["openvino"] == "for inference only; --mode infer leaves training out"


def test_a_missing_library_is_a_missing_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtra, match="interop"):
        PEERS["transformers"](model_config("swin_tiny"), work())


def comparison(size: int, times: dict[str, tuple[float, ...]], **changes: Any) -> Comparison:
    """As if these had been measured, in seconds."""
    rows = [Row(name=name, seconds=each, floor=name.startswith("floor")) for name, each in times.items()]
    task = work(size=(size, size), batch=64 * 16**2 // size**2)
    return Comparison(work=task, rows=(*rows, Row(name="absent", note="not installed")), **changes)


TIMES = {"ours": (1.0, 2.0, 4.0), "theirs": (2.0, 4.0, 4.0), "floor: all": (0.5, 0.5, 0.5)}


def test_ratios_are_to_the_fastest_and_to_the_floor() -> None:
    done = comparison(16, TIMES)
    assert done.fastest is not None
    assert done.fastest.name == "ours"
    rows = {row["name"]: row for row in done.record()["rows"]}
    assert rows["theirs"]["to_fastest"] == 2.0
    assert rows["theirs"]["to_floor"] == {"floor: all": 8.0}
    assert rows["theirs"]["median_ms"] == 4000
    assert rows["theirs"]["quartiles_ms"] == [3000, 4000]
    assert rows["theirs"]["images_per_second"] == 16
    assert rows["absent"] == {
        "name": "absent",
        "floor": False,
        "parameters": None,
        "peak_bytes": None,
        "ready_seconds": None,
        "note": "not installed",
    }


def test_tables_say_it(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    limit = {"roofline": Roofline(0.001, 0.002, 0.0025), "rates": Rates(4e12, 8e14)}
    Console(width=160, highlight=False).print(table(comparison(16, TIMES, **limit)))
    said = capsys.readouterr().out.splitlines()
    assert "tiny, inference, 16x16, batch 64, fp32, cpu" in said[0]
    assert [line.split()[-3:] for line in said if line.startswith((" ours", " theirs"))] == [
        ["32.0", "1.00", "4.00"],
        ["16.0", "2.00", "8.00"],
    ]
    assert any("absent: not installed" in line for line in said)
    assert roofline_line(comparison(16, TIMES, **limit)) == (
        "roofline of the products: 2.500 ms a batch (arithmetic 1.000 at 800 TFLOP/s, traffic 2.000 at 4000 GB/s, "
        "both measured here)"
    )
    assert roofline_line(comparison(16, TIMES)) == ""


# Sweeps


def test_a_sweep_keeps_the_number_of_pixels() -> None:
    works = sweep(work(size=(224, 112), batch=1))
    assert [(task.size, task.batch) for task in works] == [
        ((224, 112), 64),
        ((448, 224), 16),
        ((896, 448), 4),
        ((1792, 896), 1),
    ]
    assert len({task.pixels for task in works}) == 1


def test_growth_is_time_a_pixel_at_the_last_size_by_the_first() -> None:
    swept = [comparison(16, TIMES), comparison(32, {"ours": (2.0, 3.0, 4.0)})]
    assert per_pixel(swept)["ours"] == [2.0 / 64 / 256 * 1e9, 3.0 / 16 / 1024 * 1e9]
    assert per_pixel(swept)["theirs"][1] is None
    assert growth(swept) == {"ours": 1.5}


def test_sizes_are_interleaved_too(config: ModelConfig) -> None:
    done = compare([contender("tiny")], config, sweep(work(batch=1), doublings=1), QUICK)
    assert [one.work.size for one in done] == [(16, 16), (32, 32)]
    assert all(len(row.seconds) == 2 for one in done for row in one.rows)
    assert sweep_chart(done).startswith(b"\x89PNG")


# Memory


def test_memory_counts_weights_gradients_and_the_optimizer_s_state(config: ModelConfig) -> None:
    wide = dataclasses.replace(config, backbone=dataclasses.replace(config.backbone, dim=256))  # type: ignore[arg-type]
    weights = 4 * sum(x.numel() for x in Model(wide).parameters())
    task = work(mode="train")
    measured = peak(contender("tiny"), wide, task)
    assert measured is not None
    assert 4 * weights <= measured < 12 * weights + 2**26
    assert peak(contender("tiny:compile"), wide, task) is None


def test_a_peer_of_one_s_own_can_be_weighed_and_a_failure_is_told(config: ModelConfig, peer: str) -> None:
    assert above_imports(contender(f"{peer}:build"), config, work()) >= 0
    with pytest.raises(ConfigError, match="peak memory could not be measured: RuntimeError: no licence"):
        peak(contender(f"{peer}:broken"), config, work())


# Records and the command


def test_a_record_says_where_and_with_what() -> None:
    found = record()
    assert found["environment"]["torch"] == torch.__version__
    assert "torchvision" in found["environment"]["peers"]
    assert len(found["date"]) == 10
    known = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    if known.returncode == 0:
        assert commit().removesuffix("+changes") == known.stdout.strip()


def test_outside_a_checkout_there_is_no_commit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("swindow.bench.record._HERE", tmp_path)
    assert commit() == ""


def test_files_go_where_they_were_asked_for(tmp_path: Path) -> None:
    done = [comparison(16, TIMES), comparison(32, {"ours": (2.0, 3.0, 4.0)})]
    folder = write(done, tmp_path / "run", sweep=True, setting={"rounds": 3})
    assert [path.relative_to(tmp_path).as_posix() for path in folder] == ["run/bench.json", "run/sweep.png"]
    assert write(done, tmp_path / "a.json", sweep=True, setting={}) == [tmp_path / "a.json"]
    assert write(done, tmp_path / "b.png", sweep=True, setting={}) == [tmp_path / "b.json", tmp_path / "b.png"]
    content = json.loads(folder[0].read_text())
    assert {"date", "commit", "environment", "setting", "comparisons", "growth"} == content.keys()
    assert content["growth"] == [{"model": "tiny", "mode": "infer", "last_to_first": {"ours": 1.5}}]
    assert content["comparisons"][0]["rows"][0]["samples_ms"] == [1000, 2000, 4000]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], peer: str) -> None:
    words = ["bench", "swin_nano", "--against", f"timm,{peer}:build", "--size", "16", "--batch", "1", "--rounds", "1"]
    words += ["--mode", "infer", "--no-memory", "--device", "cpu", "--out", str(tmp_path / "out.json")]
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    said = capsys.readouterr()
    assert ended.value.code == 0
    assert "swin_nano, inference, 16x16, batch 1, fp32, cpu" in said.out
    assert "timm: timm has no counterpart of swin_nano" in said.out
    assert "floor: all products" in said.out
    (only,) = json.loads((tmp_path / "out.json").read_text())["comparisons"]
    assert only["work"]["size"] == [16, 16]


def test_bench_takes_what_the_model_is_made_for() -> None:
    asked = Bench(models=("swin_nano",), mode="infer", batch=1, device="cpu", protocol=QUICK)
    (done,) = bench(asked)
    assert (done.work.size, done.work.classes) == ((32, 32), 1000)
    with pytest.raises(UnknownName, match="did you mean swin_nano"):
        bench(dataclasses.replace(asked, models=("swin_nanno",)))
    with pytest.raises(ConfigError, match="batch 2 of 0x8 pixels: batch, height and width must be at least 1"):
        work(size=(0, 8))
    for wrong in ({"batch": 0}, {"size": (0, 8)}, {"device": "cuda:99"}, {"dtype": "fp8"}):
        with pytest.raises(ConfigError):
            bench(dataclasses.replace(asked, **wrong))
    for wrong in ({"models": ()}, {"threads": -1}):
        with pytest.raises(ConfigError):
            dataclasses.replace(asked, **wrong)
    with pytest.raises(ConfigError, match="at least 1"):
        Protocol(rounds=0)


def test_both_modes_of_a_line_with_an_optimized_model_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    words = "swin_nano swin_nano:optimize --size 16 --batch 1 --rounds 1 --no-memory --device cpu"
    with pytest.raises(SystemExit) as ended:
        cli.main(["bench", *words.split()])
    said = capsys.readouterr()
    assert ended.value.code == 0
    inference, training = said.out.split("swin_nano, training step, 16x16")
    assert "swin_nano, inference, 16x16" in inference
    assert "only" not in inference
    assert "swin_nano:optimize: for inference only" in training


# The paper's table 5


def test_table_5_s_ways_compute_what_they_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import table5

    qkv = torch.randn(2, 14, 14, 3, 2, 8, dtype=torch.float64)
    torch.testing.assert_close(table5.padded(qkv), table5.cyclic(qkv))
    slid = table5.sliding(qkv)
    for y, x in ((0, 0), (5, 6), (13, 3)):
        key, value = (qkv[0, max(0, y - 3) : y + 4, max(0, x - 3) : x + 4, part, 1].reshape(-1, 8) for part in (1, 2))
        weights = torch.softmax(key @ qkv[0, y, x, 0, 1] * 8**-0.5, 0)
        torch.testing.assert_close(slid[0, y, x, 1], weights @ value)
    monkeypatch.setattr(table5, "STAGES", ((7, 1), (7, 1)))
    measured = table5.measure(batch=1, rounds=1)
    assert measured["stage 1"]["cyclic shift"]["to_cyclic"] == 1
    assert measured["stage 1"]["sliding"]["paper_to_cyclic"] == pytest.approx(40.8, abs=0.1)
