"""Predicting in parts from and to object storage: a real server that speaks S3 on loopback."""

import subprocess
import sys
from pathlib import Path

import pytest

from predicted_parts import contents, images, model_of, parquet_of, rows_of, tar_of, write_folder
from swindow.errors import ConfigError, DataError
from swindow.predict import Predictor
from swindow.predict.bulk import predict_parts, reading
from swindow.predict.bulk.listing import listed

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
def bucket():
    """A file system of a server with a bucket, and the environment that leads there: what a user would set."""
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    port = int(server.stdout.readline())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "here")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        import s3fs

        files = s3fs.S3FileSystem(skip_instance_cache=True)
        files.mkdir("bucket")
        found = images(11)
        for name, content in found.items():
            files.pipe_file(f"bucket/images/{name}", content)
        files.pipe_file("bucket/shards/x.tar", tar_of(found))
        files.pipe_file("bucket/shards/y.parquet", parquet_of(found))
        yield files
    server.stdin.close()
    server.wait(timeout=20)


@pytest.fixture(scope="module")
def predictor():
    return Predictor(model_of("classify"), batch=4)


def answers(out):
    return [(row["key"] or row["source"].split("images/")[-1], row["top"]) for row in rows_of(out)]


def test_objects_are_predicted_as_files_are_and_parts_are_objects(bucket, predictor, tmp_path, monkeypatch):
    local = predict_parts(
        predictor, [write_folder(tmp_path / "in" / "images", images(11))], tmp_path / "one", part_images=4
    )
    url = "s3://bucket/out"
    do, begun = predictor.stream, []

    def killed(sources):
        begun.append(1)
        if len(begun) == 3:
            raise KeyboardInterrupt
        return do(sources)

    monkeypatch.setattr(predictor, "stream", killed)
    with pytest.raises(KeyboardInterrupt):
        predict_parts(predictor, ["s3://bucket/images/"], url, part_images=4)
    there = {path: bucket.info(path)["ETag"] for path in bucket.find("bucket/out/done")}
    assert len(there) == 2
    summary = predict_parts(predictor, ["s3://bucket/images/"], url, part_images=4)
    assert (summary.now, summary.images, summary.failures) == (3, 11, 1) == (3, local.images, local.failures)
    bucket.get("bucket/out", str(tmp_path / "copy"), recursive=True)
    assert answers(tmp_path / "copy") == answers(tmp_path / "one")
    assert rows_of(tmp_path / "copy")[0]["source"] == "s3://bucket/images/a/0.png"
    assert "s3://bucket/images/b/3.png: is damaged" in rows_of(tmp_path / "copy")[7]["error"]
    bucket.pipe_file("bucket/images/a/0.png", images(3)["b/1.png"])  # another content of another ETag
    with pytest.raises(ConfigError, match="other inputs"):
        predict_parts(predictor, ["s3://bucket/images/"], url, part_images=4)
    bucket.pipe_file("bucket/images/a/0.png", images(1)["a/0.png"])


def test_shards_of_a_bucket_are_those_of_a_disk(bucket, predictor, tmp_path):
    write_folder(tmp_path / "in", {"x.tar": tar_of(images(11)), "y.parquet": parquet_of(images(11))})
    predict_parts(predictor, ["s3://bucket/shards/*"], tmp_path / "far", part_images=3)
    predict_parts(predictor, [tmp_path / "in"], tmp_path / "near", part_images=3)
    assert answers(tmp_path / "far") == answers(tmp_path / "near")
    assert len(contents(tmp_path / "far")) == len(contents(tmp_path / "near")) == 3 + 2 * 5


def test_an_object_that_is_gone_is_a_row_and_a_store_that_is_gone_is_none(bucket, predictor, tmp_path, monkeypatch):
    for name in ("1.png", "2.png"):
        bucket.pipe_file(f"bucket/going/{name}", images(1)["a/0.png"])
    picture = reading._picture

    def gone(span, limits):
        if span.source.endswith("1.png") and bucket.exists("bucket/going/1.png"):
            bucket.rm("bucket/going/1.png")
        return picture(span, limits)

    monkeypatch.setattr(reading, "_picture", gone)
    summary = predict_parts(predictor, ["s3://bucket/going"], tmp_path / "out")
    assert [row["error"] for row in rows_of(tmp_path / "out")] == [
        "s3://bucket/going/1.png: was there when the job was planned, and is gone",
        None,
    ]
    assert summary.failures == 1
    monkeypatch.undo()
    store, _ = reading.stored("s3://bucket/going/2.png")
    monkeypatch.setattr(
        type(store), "read", lambda *_: (_ for _ in ()).throw(DataError("s3: cannot be read (timeout)"))
    )
    summary = predict_parts(predictor, ["s3://bucket/going"], tmp_path / "out2")
    assert summary.missing == (("parts/part-00000.parquet", "s3: cannot be read (timeout)"),)
    assert not [*(tmp_path / "out2").glob("parts/*")]


def test_listing_of_a_bucket(bucket):
    bucket.pipe_file("bucket/odd/", b"")
    bucket.pipe_file("bucket/odd/[1].png", b"x")
    bucket.pipe_file("bucket/odd/.hidden/2.png", b"x")
    found = [*listed(["s3://bucket/odd/", "s3://bucket/odd/[1].png"])]
    assert [item.source for item in found] == ["s3://bucket/odd/[1].png"]
    assert found[0].stamp
    natural = [item.source.rsplit("/", 1)[1] for item in listed(["s3://bucket/images/"])]
    assert natural == [f"{n}.png" for n in (0, 2, 4, 6, 8, 10, 1, 3, 5, 7, 9)]
    for wrong, said in (("s3://bucket/none", "not found"), ("s3://nowhere/x/*.png", "no images")):
        with pytest.raises(DataError, match=said):
            list(listed([wrong]))


@pytest.mark.slow
def test_the_command_takes_urls(bucket, tmp_path):
    from swindow.checkpoints import save

    save(model_of("classify"), tmp_path / "run")
    words = ["predict", tmp_path / "run", "s3://bucket/images/", "--out", "s3://bucket/cli", "--format", "jsonl"]
    done = subprocess.run([sys.executable, "-m", "swindow", *map(str, words)], capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "11 images in 1 parts" in done.stdout
    assert "s3://bucket/cli/parts" in done.stdout
    bucket.get("bucket/cli", str(tmp_path / "cli"), recursive=True)
    assert len(rows_of(Path(tmp_path / "cli"))) == 11
