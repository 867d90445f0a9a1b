"""The servers do what the fixtures promise: real ones, with credentials, under our control."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, EndpointConnectionError

from tests.servers.s3 import READER_ACCESS_KEY, READER_SECRET_KEY

if TYPE_CHECKING:
    from tests.servers.s3 import S3Server


def impatient(server: S3Server) -> Any:
    return server.client(config=Config(read_timeout=0.3, connect_timeout=0.3))


def test_a_bucket_is_fresh_and_empty(s3_server: S3Server) -> None:
    one, other = s3_server.bucket(), s3_server.bucket()
    client = s3_server.client()
    client.put_object(Bucket=one, Key="a", Body=b"x")
    assert one != other
    assert client.list_objects_v2(Bucket=other)["KeyCount"] == 0
    assert client.get_object(Bucket=one, Key="a")["Body"].read() == b"x"


def test_a_stopped_server_refuses_connections_and_keeps_its_data(s3_server: S3Server) -> None:
    bucket = s3_server.bucket()
    s3_server.client().put_object(Bucket=bucket, Key="kept", Body=b"x" * 100_000)
    s3_server.stop()
    with pytest.raises(EndpointConnectionError):
        s3_server.client().list_buckets()
    s3_server.start()
    assert len(s3_server.client().get_object(Bucket=bucket, Key="kept")["Body"].read()) == 100_000


def test_a_frozen_server_answers_when_it_is_thawed(s3_server: S3Server) -> None:
    client = impatient(s3_server)
    client.list_buckets()
    s3_server.freeze()
    with pytest.raises(BotoCoreError, match="timeout"):
        client.list_buckets()
    s3_server.thaw()
    assert "Buckets" in client.list_buckets()


def test_the_fixture_brings_back_what_a_test_stopped(s3_server: S3Server) -> None:
    s3_server.stop()
    s3_server.recover()
    s3_server.freeze()
    s3_server.recover()
    assert "Buckets" in impatient(s3_server).list_buckets()


def test_a_reader_may_not_write(s3_server: S3Server) -> None:
    bucket = s3_server.bucket()
    reader = s3_server.client(
        aws_access_key_id=READER_ACCESS_KEY, aws_secret_access_key=READER_SECRET_KEY
    )
    assert reader.list_objects_v2(Bucket=bucket)["KeyCount"] == 0
    with pytest.raises(ClientError, match="AccessDenied"):
        reader.put_object(Bucket=bucket, Key="a", Body=b"x")


def test_moto_runs_too(moto_server: S3Server) -> None:
    bucket = moto_server.bucket()
    moto_server.client().put_object(Bucket=bucket, Key="a", Body=b"x")
    assert moto_server.client().get_object(Bucket=bucket, Key="a")["Body"].read() == b"x"
