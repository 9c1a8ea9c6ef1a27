"""What the URL of a place in S3 may say, and what it must not."""

import pytest

from agentfs.model.errors import Invalid
from agentfs.s3 import S3Place, parse_s3_url

EVERYTHING = S3Place(
    bucket="my.bucket-1",
    prefix="team/würfel 1#?%/x",
    endpoint="https://s3.example.org:9000/path",
    region="eu-central-1",
    path_style=False,
    profile="staging",
    storage_class="STANDARD_IA",
    sse="aws:kms",
    sse_kms_key_id="arn:aws:kms:eu-central-1:1234:key/ab-cd",
)


def test_a_bucket_alone() -> None:
    assert parse_s3_url("s3://bucket") == S3Place("bucket")
    assert S3Place("bucket").key("segments/x") == "segments/x"


def test_a_prefix_and_an_endpoint() -> None:
    place = parse_s3_url("s3://bucket/some/prefix?endpoint=http://127.0.0.1:7480")
    assert place == S3Place("bucket", "some/prefix", endpoint="http://127.0.0.1:7480")
    assert place.key("segments/x") == "some/prefix/segments/x"


@pytest.mark.parametrize(
    "place",
    [EVERYTHING, S3Place("bucket"), S3Place("bucket", path_style=True), S3Place("bucket", "p", sse="AES256")],
    ids=["everything", "bucket", "path style", "encrypted"],
)
def test_a_place_comes_back_from_its_url(place: S3Place) -> None:
    assert parse_s3_url(place.url) == place


@pytest.mark.parametrize(
    "url",
    [
        "s3://bucket/a/b/?endpoint=http://host/",
        "s3://bucket//a/b?endpoint=http%3A%2F%2Fhost",
        "s3://bucket/a%2Fb?endpoint=http://host",
    ],
)
def test_the_same_place_has_one_url(url: str) -> None:
    assert parse_s3_url(url).url == "s3://bucket/a/b?endpoint=http://host"


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://bucket/x", "names no bucket"),
        ("s3:///x", "names no bucket"),
        ("s3://a", "names no bucket"),
        ("s3://under the bridge/", "names no bucket"),
        ("s3://[bucket/x", "cannot be understood"),
        ("s3://bucket/x#y", "write %23"),
        ("s3://bucket/a/../b", "a part that is"),
        ("s3://bucket/a//b", "a part that is"),
        ("s3://bucket/a/%00", "cannot be printed"),
        ("s3://bucket/" + "ä" * 401, "more than 800 bytes"),
        ("s3://bucket?endpoint=host:80", "not the URL of a server"),
        ("s3://bucket?endpoint=ftp://host", "not the URL of a server"),
        ("s3://bucket?endpoint=http://host:port", "not the URL of a server"),
        ("s3://bucket?endpoint=http://host/%3Fx=y", "not the URL of a server"),
        ("s3://bucket?region=", "region has no value"),
        ("s3://bucket?region", "cannot be understood"),
        ("s3://bucket?path_style=yes", "path_style is true or false"),
        ("s3://bucket?storage_class=GLACIER", "is an archive"),
        ("s3://bucket?sse=yes", "sse is one of AES256"),
        ("s3://bucket?sse_kms_key_id=x", "needs sse=aws:kms"),
        ("s3://bucket?sse=AES256&sse_kms_key_id=x", "needs sse=aws:kms"),
        ("s3://bucket?end_point=x", "no option 'end_point': there are endpoint, region"),
    ],
)
def test_what_makes_no_sense_is_refused(url: str, reason: str) -> None:
    with pytest.raises(Invalid, match=reason):
        parse_s3_url(url)


@pytest.mark.parametrize(
    "url",
    [
        "s3://AKID:hunter2@bucket/x",
        "s3://hunter2@bucket/x",
        "s3://bucket/x?endpoint=http://user:hunter2@host:7480",
        "s3://bucket/x?endpoint=http://user:hunter2@host:port",
        "s3://bucket/x?secret_access_key=hunter2",
        "s3://user:hunter2@[bucket",
        "s3://bucket/x?hunter2",
    ],
)
def test_secrets_are_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(Invalid) as caught:
        parse_s3_url(url)
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None
