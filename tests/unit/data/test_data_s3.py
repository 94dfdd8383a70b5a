"""A shard set in an S3 bucket: a real server on the loopback device, real boto3."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
from dataclasses import replace
from itertools import islice

import boto3
import pytest
import torch

from sharding.index import read_index
from vsr_dist.core.collectives import World
from vsr_dist.core.errors import BadShardError
from vsr_dist.data.config import DataConfig
from vsr_dist.data.loader import TrainLoader
from vsr_dist.data.shards import open_shard_set

BUCKET = "videos"
PREFIX = "sets/films"


@pytest.fixture(scope="module")
def endpoint():
    """Address of an S3 server in a process of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


@pytest.fixture
def root(pack_films, tmp_path):
    return shutil.copytree(pack_films("npy"), tmp_path / "set")


@pytest.fixture
def client(endpoint, root, monkeypatch):
    """A client whose bucket holds the set of `root`; the environment holds the keys that boto3 looks for."""
    for name, value in (("ACCESS_KEY_ID", "key"), ("SECRET_ACCESS_KEY", "secret"), ("DEFAULT_REGION", "us-east-1")):
        monkeypatch.setenv(f"AWS_{name}", value)
    s3 = boto3.client("s3", endpoint_url=endpoint)
    s3.create_bucket(Bucket=BUCKET)
    for path in (root / name for name in ("index.json", *(shard.name for shard in read_index(root).shards))):
        s3.upload_file(str(path), BUCKET, f"{PREFIX}/{path.name}")
    yield s3
    for item in s3.list_objects_v2(Bucket=BUCKET)["Contents"]:
        s3.delete_object(Bucket=BUCKET, Key=item["Key"])
    s3.delete_bucket(Bucket=BUCKET)


@pytest.fixture
def config(endpoint, client, tmp_path):
    return DataConfig(
        root=f"s3://{BUCKET}/{PREFIX}",
        clip_frames=3,
        crop_px=10,
        batch_clips=4,
        cache_dir=str(tmp_path / "cache"),
        fetch_tries=2,
        fetch_backoff_s=0.001,
        s3_endpoint=endpoint,
    )


def read_batches(config):
    batches = TrainLoader(config, open_shard_set(config), 5, World(), 1).batches(0)
    found = [(batch.names, batch.real_BTCYX.clone()) for batch in islice(batches, 6)]
    batches.close()
    return found


@pytest.mark.parametrize("through", ["key", "environment"])
def test_a_bucket_gives_the_batches_of_a_folder(config, root, through, endpoint, monkeypatch):
    expected = read_batches(replace(config, root=str(root)))
    if through == "environment":
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        config = replace(config, s3_endpoint="")
    for (names, real), (names_2, real_2) in zip(read_batches(config), expected, strict=True):
        assert names == names_2
        assert torch.equal(real, real_2)


def test_once_fetched_the_shards_are_read_without_the_bucket(config, client, root):
    expected = read_batches(config)
    for shard in read_index(root).shards:
        client.delete_object(Bucket=BUCKET, Key=f"{PREFIX}/{shard.name}")
    assert [names for names, _ in read_batches(config)] == [names for names, _ in expected]


def test_a_truncated_object_is_an_error_that_names_it(config, client, root):
    name = "train-000000.tar"
    client.put_object(Bucket=BUCKET, Key=f"{PREFIX}/{name}", Body=(root / name).read_bytes()[:5000])
    with pytest.raises(BadShardError, match=rf"{name} of s3://videos/{PREFIX} .*it has 5000 bytes.*attempt 2 of 2"):
        read_batches(config)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"root": f"s3://{BUCKET}/elsewhere"}, r"index.json of s3://videos/elsewhere .*NoSuchKey.*attempt 1 of 2"),
        ({"root": "s3://nobody"}, r"index.json of s3://nobody .*NoSuchBucket.*attempt 1 of 2"),
        ({"s3_endpoint": "http://127.0.0.1:9"}, r"index.json of .*Could not connect.*attempt 2 of 2"),
    ],
)
def test_what_cannot_be_had_is_explained(config, change, expected):
    with pytest.raises(BadShardError, match=expected):
        open_shard_set(replace(config, **change))
