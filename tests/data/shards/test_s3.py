"""Shards in object storage: a real server that speaks S3 on loopback."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("s3fs", reason="s3fs is not installed: pip install 'swindow[s3]'")
pytest.importorskip("moto", reason="moto is not installed; it is part of the test group")

SERVER = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
server.stop()
"""

pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),  # aiobotocore leaves its sessions to the exit
    pytest.mark.filterwarnings("ignore::DeprecationWarning:(s3fs|aiobotocore|botocore|aiohttp|fsspec).*"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def s3() -> Iterator[None]:
    """A server with a bucket, and the environment that leads there: what a user would set."""
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert server.stdout is not None
    assert server.stdin is not None
    port = int(server.stdout.readline())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "here")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        import s3fs

        s3fs.S3FileSystem(skip_instance_cache=True).mkdir("shards")
        yield
    server.stdin.close()
    server.wait(timeout=20)


@pytest.fixture(scope="module")
def packed(s3: None) -> str:
    from swindow.data import open_data
    from swindow.data.shards.packing import PackConfig, pack
    from swindow.progress import Silent

    place = "s3://shards/digits"
    pack(open_data("digits", for_training=False), place, PackConfig(shard_mb=0.4), progress=Silent())
    return place


@pytest.mark.slow
def test_training_reads_shards_of_object_storage_from_end_to_end(packed: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    script = (
        "import dataclasses, sys, swindow\n"
        "from swindow.training import train\n"
        "from swindow.progress import Silent\n"
        "if __name__ == '__main__':\n"
        "    config = swindow.configure(sys.argv[1], epochs=2, batch=256, workers=1, report=False, tensorboard=False,\n"
        "        size=8, fields={'patch': 1, 'window': 2, 'dim': 8, 'depths': (1, 1), 'num_heads': (1, 2)},\n"
        "        model='swin_tiny', device='cpu', out=sys.argv[2])\n"
        "    print(train(config, progress=Silent()).step)\n"
    )
    path = tmp_path / "run.py"
    path.write_text(script)
    done = subprocess.run(
        [sys.executable, str(path), packed, str(run)], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads((run / "result.json").read_text())
    assert result["split"] == "test"
    assert result["count"] == 359
    assert result["epochs"] == 2


def test_pixels_are_those_of_the_source(packed: str) -> None:
    from swindow.data import open_data

    source, plain = open_data(packed), open_data("digits", for_training=False)
    by_name = {f"digits_{index}": index for index in range(1797)}
    test, whole = source.split("test"), dict(_digits(plain))
    for index in (0, 17, 358):
        key = test.names[index].rsplit("/", 1)[1].removesuffix(".png").split("_", 1)[1]
        assert key in by_name
        pixels, label = whole[key]
        assert (test.read(index) == pixels).all()
        assert test.labels[index] == label


def _digits(plain: object) -> Iterator[tuple[str, tuple[object, int]]]:
    for images in plain.splits().values():  # type: ignore[attr-defined]
        for index, name in enumerate(images.names):
            yield name.replace("[", "_").rstrip("]"), (images.read(index), int(images.labels[index]))


def test_two_ranks_of_two_workers_see_every_sample_once(packed: str) -> None:
    from swindow.data import open_data
    from swindow.data.augment import AugmentConfig, build_augment
    from swindow.data.loading import train_loader
    from swindow.distributed import ALONE
    from swindow.preprocess import Preprocess

    train = open_data(packed).split("train")
    augment = build_augment(AugmentConfig(), Preprocess(size=(8, 8), mean=(0.5,), std=(0.5,)))
    seen, alone = [], []
    for rank in range(2):
        ranks = dataclasses.replace(ALONE, rank=rank, world=2, local=rank)
        loader = train_loader(train, augment, batch=100, seed=3, workers=2, ranks=ranks, window=300)
        seen.append([batch.indices.tolist() for batch in loader])
    for batch in train_loader(train, augment, batch=100, seed=3, workers=0, window=300):
        alone.append(batch.indices.tolist())
    assert [first + second for first, second in zip(*seen, strict=True)] == alone
    flat = [index for batch in alone for index in batch]
    assert len(flat) == len(set(flat)) == len(train) // 100 * 100


def test_a_missing_bucket_is_an_error_with_its_name(s3: None) -> None:
    from swindow.data import open_data
    from swindow.errors import DataError

    with pytest.raises(DataError, match="s3://nothing-here/at-all"):
        open_data("s3://nothing-here/at-all")


def test_shards_are_copied_once_and_read_from_there(packed: str, tmp_path: Path) -> None:
    from swindow.data import open_data

    train = open_data(packed).split("train").cached(str(tmp_path))
    first = [np.asarray(train.read(index)) for index in (0, 40, 1000)]
    copies = sorted(path for path in tmp_path.rglob("*.tar"))
    assert copies
    for path in copies:
        path.write_bytes(bytes(path.stat().st_size))
    damaged = train.sources([0])[0]
    assert damaged == bytes(len(damaged))  # from the copy, not from the server
    for path in copies:
        path.unlink()
    assert all(
        (np.asarray(train.read(index)) == before).all() for index, before in zip((0, 40, 1000), first, strict=True)
    )
