"""S3 as agentfs uses it, for replicas and for journals: where a bucket is, a client for it, and its errors as ours.

The only importer of boto3, which takes half a second to import: it is imported where it is first used.
"""

import functools
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from io import SEEK_END, BytesIO
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar, TypeVarTuple
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlencode, urlsplit

import trio

from agentfs.model.errors import AgentfsError, Corrupt, Denied, Invalid, NoSpace, NotFound, Unavailable
from agentfs.runtime import Runtime

if TYPE_CHECKING:
    from types_boto3_s3.client import S3Client

T = TypeVar("T")
Args = TypeVarTuple("Args")

FORM: Final = "s3://BUCKET/PREFIX?endpoint=URL"
WHERE_CREDENTIALS_GO: Final = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile in ~/.aws, or the machine's role"

NOTE: Final = "note"
"""The name in an object's metadata of what `put_if` keeps with it."""

_BUCKET: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,253}[A-Za-z0-9]")
_PREFIX_MAX: Final = 800
"""UTF-8 bytes: a key has at most 1024, and those of chunk stores 200."""

_ARCHIVES: Final = ("GLACIER", "DEEP_ARCHIVE")
"""Classes whose objects cannot be read before they have been restored."""
_ENCRYPTIONS: Final = ("AES256", "aws:kms", "aws:kms:dsse")

_CONNECT_SECONDS: Final = 5.0
_EXPECT_FROM_BYTES: Final = 1 << 20
"""From this size on a body waits for the server's leave, so that one that will be refused is not sent in vain."""


@dataclass(frozen=True, slots=True)
class S3Place:
    """Where objects are kept: a bucket, the prefix of its keys there ("" or without slashes at its ends), and how to ask.

    `endpoint`: the server's URL; None: AWS. `region`: None: what the environment or the profile says, else us-east-1.
    `path_style`: the bucket in the path of requests instead of the host's name; None: if there is an endpoint. `storage_class`,
    `sse` (AES256, aws:kms, aws:kms:dsse) and `sse_kms_key_id` hold for what is put. There are no credentials in it.
    """

    bucket: str
    prefix: str = ""
    endpoint: str | None = None
    region: str | None = None
    path_style: bool | None = None
    profile: str | None = None
    storage_class: str | None = None
    sse: str | None = None
    sse_kms_key_id: str | None = None

    @property
    def url(self) -> str:
        """The URL from which `parse_s3_url` makes this place again; equal places have equal URLs."""
        given = {name: getattr(self, name) for name in _OPTIONS}
        texts = {
            name: str(value).lower() if value in (True, False) else value for name, value in given.items() if value is not None
        }
        query = f"?{urlencode(texts, safe=':/')}" if texts else ""
        return f"s3://{self.bucket}/{quote(self.prefix)}".removesuffix("/") + query

    @property
    def put_options(self) -> dict[str, Any]:
        """What boto3's `put_object` is to be told beside the key and the body."""
        given = {"StorageClass": self.storage_class, "ServerSideEncryption": self.sse, "SSEKMSKeyId": self.sse_kms_key_id}
        return {name: value for name, value in given.items() if value is not None}

    def key(self, key: str) -> str:
        """The key in the bucket of an object that is called `key` here."""
        return f"{self.prefix}/{key}" if self.prefix else key


_OPTIONS: Final = tuple(field.name for field in fields(S3Place) if field.name not in ("bucket", "prefix"))


def parse_s3_url(url: str) -> S3Place:
    """The place that `s3://BUCKET/PREFIX?OPTION=VALUE&…` names; the options are the fields of S3Place.

    Raises Invalid, also for credentials in the URL, where lists of processes and logs would show them: its message repeats no
    part of the URL that could be one.
    """
    try:
        parts = urlsplit(url)
        options = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query), max_num_fields=32))
    except ValueError:
        raise Invalid(f"the S3 URL cannot be understood: {FORM}") from None
    _refuse_credentials(parts)
    if parts.scheme != "s3" or not _BUCKET.fullmatch(parts.netloc):
        raise Invalid(f"the S3 URL names no bucket: {FORM}")
    if parts.fragment:
        raise Invalid("the S3 URL has a # in it: write %23")
    for name in options:
        if name not in _OPTIONS:
            raise Invalid(f"an S3 URL has no option {name!r}: there are {', '.join(_OPTIONS)}")
        if not options[name]:
            raise Invalid(f"the S3 URL's option {name} has no value")
    return S3Place(
        bucket=parts.netloc,
        prefix=_prefix(unquote(parts.path)),
        endpoint=_endpoint(options.pop("endpoint", None)),
        path_style=_truth("path_style", options.pop("path_style", None)),
        storage_class=_storage_class(options.pop("storage_class", None)),
        sse=_encryption(options.pop("sse", None), options.get("sse_kms_key_id")),
        **options,
    )


def connect(place: S3Place, *, connections: int, timeout_seconds: float) -> "S3Client":
    """A client for a place, which several threads may use; close it.

    It blocks: for a tenth of a second, and longer where the machine's role must be asked for. `timeout_seconds` is how long a
    connection may be silent. It tries nothing twice. Credentials come from the usual chain alone.
    """
    import boto3
    import botocore.session
    from botocore.config import Config

    # boto3's "auto" is the host's name where that can be.
    styles: dict[bool | None, Literal["path", "virtual", "auto"]] = {
        True: "path",
        False: "virtual",
        None: "auto" if place.endpoint is None else "path",
    }
    config = Config(
        connect_timeout=min(_CONNECT_SECONDS, timeout_seconds),
        read_timeout=timeout_seconds,
        max_pool_connections=connections,
        retries={"total_max_attempts": 1},
        # A signature covers the body's SHA-256, which the server compares: further checksums find nothing more.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        tcp_keepalive=True,
        s3={"addressing_style": styles[place.path_style]},
    )
    with translated(place):
        session = botocore.session.Session(profile=place.profile)
        session.register_component("data_loader", _loader())
        # Nobody asks for the time stamps in answers, and reading them is half of the work of a listing: they stay text.
        session.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=str)
        region = place.region or session.get_config_variable("region") or "us-east-1"
        client = boto3.Session(botocore_session=session).client(
            "s3", endpoint_url=place.endpoint, region_name=region, config=config
        )
    client.meta.events.register_last("before-call.s3", _send_small_bodies_at_once)
    return client


class S3Threads:
    """Runs functions with a client for a place in threads of its own. The client is made when it is first needed."""

    def __init__(self, place: S3Place, *, runtime: Runtime, threads_max: int, timeout_seconds: float) -> None:
        self._place = place
        self._threads = runtime.threads(threads_max)
        self._threads_max = threads_max
        self._timeout_seconds = timeout_seconds
        self._connecting = trio.Lock()
        self._client: S3Client | None = None
        self._closed = False

    async def run(self, function: "Callable[[S3Client, *Args], T]", *args: *Args) -> T:
        """What the function returns. A caller that is cancelled leaves at once; the thread stays taken until it is done."""
        client = self._client or await self._connect()
        try:
            return await self._threads.run(function, client, *args)
        except Denied as error:
            if refuses_credentials(error) and self._client is client:
                # A client reads the files that credentials are in once: the next one sees what was put there since.
                self._forget()
            raise

    def close(self) -> None:
        """Let go of the connections. Nothing may be run afterwards."""
        self._closed = True
        self._forget()

    async def _connect(self) -> "S3Client":
        async with self._connecting:
            if self._client is None:
                client = await self._threads.run(self._new_client)
                if self._closed:
                    client.close()
                    raise Unavailable(f"{_where(self._place, '')} is not used any more")
                self._client = client
            return self._client

    def _new_client(self) -> "S3Client":
        return connect(self._place, connections=self._threads_max, timeout_seconds=self._timeout_seconds)

    def _forget(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.close()


@contextmanager
def translated(place: S3Place, key: str = "") -> Iterator[None]:
    """Turn what boto3 raises into our errors, which name the place, and the object if `key` is one in the bucket."""
    from botocore.exceptions import BotoCoreError, ClientError
    from botocore.parsers import ResponseParserError

    try:
        yield
    except ClientError as error:
        raise _refusal(place, key, error) from error
    except BotoCoreError as error:
        raise _failure(place, key, error) from error
    except ResponseParserError as error:
        raise Unavailable(f"{_where(place, key)} answers what is not S3: {_one_line(error)}") from error


def put_if(client: "S3Client", place: S3Place, key: str, body: bytes, *, match: str | None, note: str = "") -> bool:
    """Put an object where there is none or, with `match`, in place of the one that has this ETag; whether it was put.

    `note` is kept with it, under NOTE in its metadata. Errors as `translated`: who races for the same key may get Unavailable.
    """
    from botocore.exceptions import ClientError

    # Ceph compares the ETag without quotes only; AWS takes it either way.
    options: dict[str, Any] = {"IfNoneMatch": "*"} if match is None else {"IfMatch": match.strip('"')}
    if note:
        options["Metadata"] = {NOTE: note}
    with translated(place, place.key(key)):
        try:
            client.put_object(Bucket=place.bucket, Key=place.key(key), Body=body, **place.put_options, **options)
        except ClientError as error:
            if _status(error) == 412 or (match is not None and _code(error) == "NoSuchKey"):
                return False
            raise
    return True


def says_no_such_key(error: AgentfsError) -> bool:
    """Whether `error`, from `translated`, is the store's word that there is no object, and not any 404 that a proxy gives."""
    from botocore.exceptions import ClientError

    return isinstance(error.__cause__, ClientError) and _code(error.__cause__) == "NoSuchKey"


def refuses_credentials(error: AgentfsError) -> bool:
    """Whether `error`, from `translated`, says that there are no credentials, or not the right ones: others might help."""
    from botocore.exceptions import ClientError, NoCredentialsError

    cause = error.__cause__
    if isinstance(cause, ClientError):
        return _code(cause) in _CREDENTIALS_REFUSED
    return isinstance(cause, NoCredentialsError)


# ---- what a URL may say


def _refuse_credentials(parts: SplitResult) -> None:
    if "@" in parts.netloc:
        raise Invalid(f"the S3 URL holds credentials, which others could see: put them in {WHERE_CREDENTIALS_GO}")


def _prefix(path: str) -> str:
    prefix = path.strip("/")
    if len(prefix.encode(errors="surrogateescape")) > _PREFIX_MAX or not prefix.isprintable():
        raise Invalid(f"the S3 URL's prefix has more than {_PREFIX_MAX} bytes, or what cannot be printed")
    if prefix and any(part in ("", ".", "..") for part in prefix.split("/")):
        raise Invalid("the S3 URL's prefix has a part that is empty, . or ..")
    return prefix


def _endpoint(text: str | None) -> str | None:
    if text is None:
        return None
    try:
        parts = urlsplit(text)
        sound = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and not (parts.query or parts.fragment)
    except ValueError:
        sound = False
        parts = urlsplit("")
    _refuse_credentials(parts)
    if not sound:
        raise Invalid("the S3 URL's endpoint is not the URL of a server: http://HOST:PORT or https://HOST")
    return text.rstrip("/")


def _truth(name: str, text: str | None) -> bool | None:
    if text not in (None, "true", "false"):
        raise Invalid(f"the S3 URL's option {name} is true or false")
    return None if text is None else text == "true"


def _storage_class(text: str | None) -> str | None:
    if text in _ARCHIVES:
        raise Invalid(f"storage class {text} is an archive: what is put there cannot be read at once")
    return text


def _encryption(text: str | None, key_id: str | None) -> str | None:
    if text not in (None, *_ENCRYPTIONS):
        raise Invalid(f"the S3 URL's option sse is one of {', '.join(_ENCRYPTIONS)}")
    if key_id is not None and (text is None or not text.startswith("aws:kms")):
        raise Invalid("the S3 URL's option sse_kms_key_id needs sse=aws:kms")
    return text


# ---- the client


@functools.cache
def _loader() -> Any:
    """What reads boto3's description of S3: shared, because it takes a tenth of a second and megabytes for each client."""
    from botocore.loaders import create_loader

    return create_loader()


def _send_small_bodies_at_once(params: dict[str, Any], **_: object) -> None:
    """Take away the header by which a PUT waits for leave to send its body: a round trip, and a second where none answers."""
    body = params["body"]
    if isinstance(body, BytesIO):
        size = body.seek(0, SEEK_END)
        body.seek(0)
        if size < _EXPECT_FROM_BYTES:
            params["headers"].pop("Expect", None)


# ---- errors


_REFUSALS: Final[dict[str, tuple[type[AgentfsError], str]]] = {
    "NoSuchKey": (NotFound, "no such object"),
    "NoSuchBucket": (Denied, "there is no such bucket: create it, or name another"),
    "AccessDenied": (Denied, "access denied: look at what the bucket's policy and the user's permissions allow"),
    "InvalidAccessKeyId": (Denied, f"the access key is not known there: look at {WHERE_CREDENTIALS_GO}"),
    "SignatureDoesNotMatch": (Denied, f"the secret key is wrong: look at {WHERE_CREDENTIALS_GO}"),
    "ExpiredToken": (Denied, "the session token has expired: get a new one"),
    "UserSuspended": (Denied, "the user is suspended"),
    "InvalidToken": (Denied, "the session token is wrong: get a new one"),
    "AccountProblem": (Denied, "there is a problem with the account"),
    "InvalidObjectState": (Denied, "the object is in an archive: restore it"),
    "InvalidStorageClass": (Denied, "there is no such storage class"),
    "NotImplemented": (Denied, "the server does not offer what is asked of it"),
    "InvalidRange": (Corrupt, "the object is shorter than asked for"),
    "QuotaExceeded": (NoSpace, "the quota is used up"),
    "XMinioStorageFull": (NoSpace, "the store is full"),
    "XMinioAdminBucketQuotaExceeded": (NoSpace, "the bucket's quota is used up"),
    "InsufficientStorage": (NoSpace, "the store is full"),
    # What changes when this is sent again.
    "RequestTimeTooSkewed": (Unavailable, "the clock of this machine differs too much from the server's"),
    "RequestTimeout": (Unavailable, "the request was sent too slowly"),
    "SlowDown": (Unavailable, "it asks for fewer requests"),
    "OperationAborted": (Unavailable, "something else is changing the object"),
    "ConditionalRequestConflict": (Unavailable, "something else is changing the object"),
    "IncompleteBody": (Unavailable, "not all of the body arrived"),
    "BadDigest": (Unavailable, "the body arrived damaged"),
    "XAmzContentSHA256Mismatch": (Unavailable, "the body arrived damaged"),
}
"""https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html, and what Ceph and MinIO add."""

_BY_STATUS: Final[dict[int, tuple[type[AgentfsError], str]]] = {
    # The answers to HEAD have no body, and so no code.
    401: (Denied, f"the credentials are refused: look at {WHERE_CREDENTIALS_GO}"),
    403: _REFUSALS["AccessDenied"],
    404: _REFUSALS["NoSuchKey"],
    408: _REFUSALS["RequestTimeout"],
    416: _REFUSALS["InvalidRange"],
    429: _REFUSALS["SlowDown"],
    507: _REFUSALS["InsufficientStorage"],
}

_CREDENTIALS_REFUSED: Final = frozenset({"InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken"})
_WRONG_REGION: Final = frozenset({"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"})


def _refusal(place: S3Place, key: str, error: Any) -> AgentfsError:
    """The error for a request that the server refused.

    A 4xx that is not known is Denied: the same request would be refused again. Anything else is Unavailable.
    """
    details = error.response.get("Error", {})
    metadata = error.response.get("ResponseMetadata", {})
    code, status = _code(error), _status(error)
    where = _where(place, "" if code == "NoSuchBucket" else key)
    if code in _WRONG_REGION or status == 301:
        region = details.get("Region") or metadata.get("HTTPHeaders", {}).get("x-amz-bucket-region")
        return Denied(f"{where}: the bucket is in another region: name it in the URL: region={region or 'REGION'}")
    unknown = (Denied if 400 <= status < 500 else Unavailable), _one_line(details.get("Message") or f"HTTP status {status}")
    kind, meaning = _REFUSALS.get(code) or _BY_STATUS.get(status) or unknown
    refusal = kind(f"{where}: {meaning}{f' ({code})' if code and code != str(status) else ''}")
    if isinstance(refusal, Unavailable):
        refusal.retry_after_seconds = _seconds(metadata.get("HTTPHeaders", {}).get("retry-after"))
    return refusal


def _failure(place: S3Place, key: str, error: Any) -> AgentfsError:
    """The error for a request that got no answer, or was not sent at all."""
    from botocore import exceptions

    where, reason = _where(place, key), _one_line(error)
    if isinstance(error, exceptions.NoCredentialsError | exceptions.PartialCredentialsError):
        return Denied(f"{where}: no credentials were found: put them in {WHERE_CREDENTIALS_GO}")
    if isinstance(error, exceptions.ProfileNotFound):
        return Denied(f"{where}: there is no profile {place.profile} in ~/.aws/config")
    if isinstance(error, exceptions.SSLError) and "CERTIFICATE_VERIFY_FAILED" in reason:
        return Denied(f"{where}: its certificate cannot be verified: {reason}")
    if isinstance(error, exceptions.ConnectTimeoutError | exceptions.ReadTimeoutError):
        return Unavailable(f"{where} did not answer in time")
    passing = (
        exceptions.HTTPClientError,
        exceptions.ConnectionError,
        exceptions.IncompleteReadError,
        exceptions.CredentialRetrievalError,
        exceptions.MetadataRetrievalError,
    )
    return (Unavailable if isinstance(error, passing) else Denied)(f"{where}: {reason}")


def _code(error: Any) -> str:
    """What a ClientError's answer calls the refusal, "" if it does not say."""
    return str(error.response.get("Error", {}).get("Code", ""))


def _status(error: Any) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _where(place: S3Place, key: str) -> str:
    name = f"s3://{place.bucket}/{key}" if key else f"bucket {place.bucket}"
    return f"{name} at {place.endpoint}" if place.endpoint else name


def _seconds(text: str | None) -> float | None:
    """What a Retry-After header asks for; a date in it is ignored, because clocks of hosts are not compared."""
    return float(text) if text is not None and re.fullmatch(r"\d{1,6}", text) else None


def _one_line(reason: object) -> str:
    return " ".join(str(reason).split())
