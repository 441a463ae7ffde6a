"""Objects of S3 and of Google Cloud Storage, through one client per process and bucket that all its threads
share.

The requests are obstore's, which takes far less CPU time than boto3 or Google's client; Beam's own file
systems make a client for every file that they open. Credentials and addresses are found as ever, from Beam's
options (--s3_endpoint_url, --no_auth, ...) and from the environment:

    s3://   by boto3: AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_PROFILE, roles of machines and containers ...
    gs://   by google-auth: GOOGLE_APPLICATION_CREDENTIALS ...; STORAGE_EMULATOR_HOST, the address of a server
    that asks for no credentials

Any other file system that Beam knows is reached through Beam.
"""

import abc
import contextlib
import datetime
import errno
import hashlib
import os
import pathlib
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

from apache_beam.io.filesystem import FileMetadata
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import GoogleCloudOptions, PipelineOptions, S3Options
from apache_beam.options.value_provider import RuntimeValueProvider

from transforms.storage.uris import held_in

# Reads that a thread which works on what it reads has under way; an answer takes a while to begin, whoever
# gives it.
READS_IN_FLIGHT = 16

# A request may take long where the line is slow; one that stands still is tried again.
_CLIENT = {"allow_http": True, "timeout": "1 hour", "read_timeout": "5 minutes"}
_RETRIES = {"max_retries": 3, "retry_timeout": datetime.timedelta(minutes=2)}

# How long keys are used before they are asked for again; boto3 renews those that end in the next 10 minutes.
_KEYS_HOLD = datetime.timedelta(minutes=5)


class Entry(NamedTuple):
    """What a listing says of an object.

    Attributes:
      uri: of the object.
      size: in bytes.
      updated: in seconds since 1970.
      version: a number of 63 bits that is another for other content: from the ETag of S3 and GCS, the time
        of change of another file system.
    """

    uri: str
    size: int
    updated: float
    version: int = 0


def _version(text: str | None) -> int:
    return int.from_bytes(hashlib.sha256((text or "").encode()).digest()[:8]) >> 1


class StoreError(OSError):
    """A request that failed; `code` is its HTTP status, None where there was no answer."""

    def __init__(self, text: str, code: int | None = None):
        super().__init__(text)
        self.code = code


class CredentialsError(PermissionError):
    """A store does not take the credentials of whoever asks: no matter for which object."""

    def __init__(self, uri: str, text: str):
        super().__init__(errno.EACCES, f"{_bucket(uri)} does not take the credentials ({text})", uri)


# What stores say of whoever asks, and not of an object.
_OF_CREDENTIALS = re.compile(
    r"AccountProblem|AllAccessDisabled|AuthFailure|ExpiredToken|InvalidAccessKeyId|InvalidSecurity|InvalidToken"
    r"|NotSignedUp|RequestExpired|RequestTimeTooSkewed|SignatureDoesNotMatch|TokenRefreshRequired"
    r"|UnrecognizedClient|invalid_grant|invalid_token|RefreshError"
)


class Store(Protocol):
    """A place for objects, which appear and change whole.

    Every method raises FileNotFoundError or PermissionError where that is what the store says of an object,
    CredentialsError where it refuses whoever asks, and else OSError.
    """

    def read(self, uri: str, offset: int = 0, size: int | None = None) -> bytes:
        """At most `size` bytes from `offset`, as many as there are."""

    def write(self, uri: str, data: bytes) -> None:
        """Makes or replaces an object."""

    def swap(self, uri: str, old: bytes | None, new: bytes) -> bool:
        """Replaces the content `old` by `new` at once, None standing for no object; False, and nothing done,
        where it is another.
        """

    def delete(self, uri: str) -> None:
        """Deletes an object; fine where there is none."""

    def entry(self, uri: str) -> Entry | None:
        """An object's entry; None where there is none."""

    def list(self, prefix: str, descend: bool = True) -> Iterator[Entry]:
        """The objects whose URI begins with `prefix`; without `descend` those that have no "/" after it."""


class _Buckets(abc.ABC):
    """See Store. A client of obstore per bucket; a read is one request, and so is a write, conditional where
    it swaps.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._clients: dict[str, Any] = {}

    @abc.abstractmethod
    def _connect(self, bucket: str) -> Any:
        """An obstore client of `bucket`.

        Raises:
          CredentialsError: there are none.
        """

    def _place(self, uri: str) -> tuple[Any, str]:
        """Client and key."""
        bucket, key = _split(uri)
        with self._lock:
            if bucket not in self._clients:
                self._clients[bucket] = self._connect(bucket)
            return self._clients[bucket], key

    def read(self, uri: str, offset: int = 0, size: int | None = None) -> bytes:
        if size == 0:
            return b""
        whole = not offset and size is None
        part = {"offset": offset} if size is None else (offset, offset + size)
        client, key = self._place(uri)
        try:
            with _errors(uri):
                return bytes(client.get(key, options={} if whole else {"range": part}).bytes())
        except StoreError as e:
            if e.code != 416:
                raise
            return b""  # it begins behind the object's end

    def write(self, uri: str, data: bytes) -> None:
        client, key = self._place(uri)
        with _errors(uri):
            client.put(key, data, use_multipart=False)

    def swap(self, uri: str, old: bytes | None, new: bytes) -> bool:
        from obstore import exceptions

        client, key = self._place(uri)
        mode: Any = "create"
        if old is not None:
            try:
                with _errors(uri):
                    found = client.get(key)
                    content = bytes(found.bytes())
            except FileNotFoundError:
                return False
            if content != old:
                return content == new  # written before, and the answer was lost
            mode = {name: found.meta[name] for name in ("e_tag", "version") if found.meta[name]}
        try:
            with _errors(uri):
                client.put(key, new, mode=mode, use_multipart=False)
        except StoreError as e:
            if not isinstance(e.__cause__, exceptions.AlreadyExistsError | exceptions.PreconditionError):
                raise
            with contextlib.suppress(FileNotFoundError):
                return self.read(uri) == new
            return False
        return True

    def delete(self, uri: str) -> None:
        client, key = self._place(uri)
        with contextlib.suppress(FileNotFoundError), _errors(uri):
            client.delete(key)

    def entry(self, uri: str) -> Entry | None:
        client, key = self._place(uri)
        with contextlib.suppress(FileNotFoundError), _errors(uri):
            return _entry(uri, client.head(key))
        return None

    def list(self, prefix: str, descend: bool = True) -> Iterator[Entry]:
        client, key = self._place(prefix)
        root = prefix.removesuffix(key)
        folder, _, name = key.rpartition("/")
        with _errors(prefix):
            if name or descend:  # in the order of keys
                pages = client.list(folder or None, offset=key[:-1] if name else None, chunk_size=1000)
            else:
                pages = [client.list_with_delimiter(folder or None)["objects"]]
            for page in pages:
                for found in page:
                    path = found["path"]
                    if path.startswith(key) and (descend or "/" not in path[len(key) :]):
                        yield _entry(root + path, found)
                    elif name and path > key and not path.startswith(key):
                        return


class _S3(_Buckets):
    """Credentials, region and address are those that boto3 finds, from Beam's options on."""

    def __init__(self, options: PipelineOptions):
        super().__init__()
        try:
            import boto3
        except ImportError as e:
            raise ValueError(
                f"s3:// needs a package that is not installed (pip install 'landmarks[aws]'): {e}"
            ) from e
        self._given = options.view_as(S3Options)
        self._session = boto3.session.Session

    def _connect(self, bucket: str) -> Any:
        from botocore.exceptions import BotoCoreError
        from obstore.auth.boto3 import Boto3CredentialProvider
        from obstore.store import S3Store

        given = self._given
        authorities = given.s3_verify or os.environ.get("AWS_CA_BUNDLE")
        try:
            session = self._session(
                given.s3_access_key_id,
                given.s3_secret_access_key,
                given.s3_session_token,
                given.s3_region_name,
            )
            if session.get_credentials() is None:
                raise CredentialsError(f"s3://{bucket}", "boto3 finds no credentials")

            def client(region: str | None) -> Any:
                tls = {"use_ssl": not given.s3_disable_ssl, "verify": authorities}
                return session.client("s3", region, endpoint_url=given.s3_endpoint_url, **tls)

            found = client(None)
            if "amazonaws.com" in found.meta.endpoint_url:
                found = client(bucket_region(found, bucket))
        except BotoCoreError as e:
            raise CredentialsError(f"s3://{bucket}", str(e)) from e
        trusted = {"root_certificate": pathlib.Path(authorities).read_bytes()} if authorities else {}
        return S3Store(
            bucket,
            endpoint=found.meta.endpoint_url,
            region=found.meta.region_name,
            disable_bulk_delete=True,  # which not every store knows
            credential_provider=Boto3CredentialProvider(session, ttl=_KEYS_HOLD),
            client_options={**_CLIENT, **trusted},
            retry_config=_RETRIES,
        )


def bucket_region(client: Any, bucket: str) -> str:
    """The region that a bucket lies in, which need not be the one of boto3's `client`."""
    from botocore.exceptions import ClientError

    try:
        answer = client.head_bucket(Bucket=bucket)
    except ClientError as e:  # who may not look at the bucket is told its region too
        answer = e.response
    headers = answer["ResponseMetadata"]["HTTPHeaders"]
    return headers.get("x-amz-bucket-region", client.meta.region_name)


class _Gcs(_Buckets):
    """Credentials are those that Beam finds; none where there is an emulator or --no_auth."""

    def __init__(self, options: PipelineOptions):
        super().__init__()
        try:
            from apache_beam.internal.gcp import auth
            from google.auth.transport.requests import Request
        except ImportError as e:
            raise ValueError(
                f"gs:// needs a package that is not installed (pip install 'landmarks[gcp]'): {e}"
            ) from e
        self._emulator = os.environ.get("STORAGE_EMULATOR_HOST")
        anonymous = self._emulator or options.view_as(GoogleCloudOptions).no_auth
        self._credentials = None if anonymous else auth.get_service_credentials(options)  # may be None
        self._request = Request()

    def _token(self) -> dict[str, Any]:
        if self._credentials is None:
            return {"token": "", "expires_at": None}
        self._credentials.refresh(self._request)
        expiry = self._credentials.expiry  # in UTC, which it does not say
        return {
            "token": self._credentials.token,
            "expires_at": expiry and expiry.replace(tzinfo=datetime.UTC),
        }

    def _connect(self, bucket: str) -> Any:
        from google.auth.exceptions import GoogleAuthError
        from obstore.store import GCSStore

        try:
            self._token()
        except GoogleAuthError as e:
            raise CredentialsError(f"gs://{bucket}", str(e)) from e
        return GCSStore(
            bucket,
            skip_signature=self._credentials is None,  # of what reads; a write asks for a token all the same
            credential_provider=self._token,
            client_options=_CLIENT,
            retry_config=_RETRIES,
            **({"base_url": self._emulator} if self._emulator else {}),
        )


class _Beam:
    """See Store, but for what a file system of Beam cannot do: a write is not whole while it lasts, and a
    swap may meet another.
    """

    def read(self, uri: str, offset: int = 0, size: int | None = None) -> bytes:
        with FileSystems.open(uri, compression_type="uncompressed") as f:
            if offset:
                f.seek(offset)
            return f.read() if size is None else f.read(size)

    def write(self, uri: str, data: bytes) -> None:
        with FileSystems.create(uri, compression_type="uncompressed") as f:
            f.write(data)

    def swap(self, uri: str, old: bytes | None, new: bytes) -> bool:
        if (self.read(uri) if FileSystems.exists(uri) else None) != old:
            return False
        self.write(uri, new)
        return self.read(uri) == new

    def delete(self, uri: str) -> None:
        if FileSystems.exists(uri):
            FileSystems.delete([uri])

    def entry(self, uri: str) -> Entry | None:
        if not FileSystems.exists(uri):
            return None
        found = FileSystems.get_filesystem(uri).metadata(uri)
        return _beam_entry(uri, found)

    def list(self, prefix: str, descend: bool = True) -> Iterator[Entry]:
        for found in FileSystems.match([prefix + ("**" if descend else "*")])[0].metadata_list:
            yield _beam_entry(found.path, found)


def _beam_entry(uri: str, found: FileMetadata) -> Entry:
    updated = found.last_updated_in_seconds
    return Entry(uri, found.size_in_bytes, updated, int(updated * 1e9))


_S3_VARIABLES = {
    "s3_endpoint_url": "AWS_ENDPOINT_URL",
    "s3_region_name": "AWS_DEFAULT_REGION",
    "s3_access_key_id": "AWS_ACCESS_KEY_ID",
    "s3_secret_access_key": "AWS_SECRET_ACCESS_KEY",
    "s3_session_token": "AWS_SESSION_TOKEN",
}


@contextlib.contextmanager
def using(options: PipelineOptions | None) -> Iterator[PipelineOptions]:
    """While the block runs, Beam's `options`, None for its defaults, hold for the files of this process, and
    for those of processes that it starts; gives them.

    Pipeline() gives its options to this process alone: worker processes of the local runner and of worker
    pools get none, but the environment.
    """
    options = options or PipelineOptions([])
    given = options.view_as(S3Options)
    variables = {v: value for name, v in _S3_VARIABLES.items() if (value := getattr(given, name))}
    before = FileSystems._pipeline_options, {variable: os.environ.get(variable) for variable in variables}
    FileSystems.set_options(options)
    os.environ.update(variables)
    try:
        yield options
    finally:
        FileSystems.set_options(before[0])
        for variable, value in before[1].items():
            if value is None:
                del os.environ[variable]
            else:
                os.environ[variable] = value


_KINDS: dict[str, Callable[[PipelineOptions], Store]] = {"s3": _S3, "gs": _Gcs}
_lock = threading.Lock()
_stores: dict[str, tuple[Any, Store]] = {}


def store_of(uri: str) -> Store:
    """The store that holds `uri`; the same one for all threads of the process, until Beam is given other
    options.

    Raises:
      ValueError: its package is not installed.
    """
    scheme = uri.partition("://")[0]
    if scheme not in _KINDS:
        return _Beam()
    # As Beam's own file systems get theirs: Pipeline() sets them, and a worker process before its first
    # element.
    options: Any = FileSystems._pipeline_options or RuntimeValueProvider.runtime_options
    with _lock:
        if scheme not in _stores or _stores[scheme][0] is not options:
            whole = isinstance(options, PipelineOptions)
            given = options if whole else PipelineOptions.from_dictionary(options or {})
            _stores[scheme] = options, _KINDS[scheme](given)
        return _stores[scheme][1]


_readable: dict[str, str] = {}  # by bucket, an object that could be read


def note_readable(uri: str) -> None:
    """Remembers of an object that it could be read, for `is_closed`."""
    _readable[_bucket(uri)] = uri


def is_closed(uri: str, others: Sequence[str] = ()) -> bool:
    """Whether a store that forbids to read `uri` forbids all that was read before, and `others`."""
    known = _readable.get(_bucket(uri))
    asked = [known, *others] if known else others
    return bool(asked) and not any(map(_may_read, asked))


def _may_read(uri: str) -> bool:
    member = held_in(uri)
    file = member.archive if member else uri
    try:
        store_of(file).read(file, 0, 1)
    except PermissionError:
        return False
    except FileNotFoundError:
        pass
    note_readable(uri)
    return True


def _split(uri: str) -> tuple[str, str]:
    """Bucket and key."""
    bucket, _, key = uri.partition("://")[2].partition("/")
    if not bucket:
        raise ValueError(f"{uri!r} names no bucket")
    return bucket, key


def _bucket(uri: str) -> str:
    return f"{uri.partition('://')[0]}://{_split(uri)[0]}"


@contextlib.contextmanager
def _errors(uri: str) -> Iterator[None]:
    """Errors of obstore as those that Store names."""
    from obstore import exceptions

    try:
        yield
    except FileNotFoundError as e:
        raise _error(uri, _text(e), 404) from e
    except exceptions.UnauthenticatedError as e:
        raise CredentialsError(uri, _text(e)) from e
    except exceptions.PermissionDeniedError as e:
        raise _error(uri, _text(e), 403) from e
    except (exceptions.InvalidPathError, ValueError) as e:  # no "//", "..", control characters
        raise OSError(errno.EINVAL, _text(e), uri) from e
    except exceptions.BaseError as e:
        status = re.search(r"status code: (\d{3})", str(e))
        raise _error(uri, _text(e), int(status[1]) if status else None) from e


def _text(error: Exception) -> str:
    return str(error).partition("\n\nDebug source")[0]


def _error(uri: str, text: str, code: int | None) -> OSError:
    if _OF_CREDENTIALS.search(text) or code == 401:
        return CredentialsError(uri, text)
    if code == 404:
        return FileNotFoundError(errno.ENOENT, f"No such object, or no such bucket ({text})", uri)
    if code == 403:
        return PermissionError(errno.EACCES, text, uri)
    return StoreError(f"{uri}: {text}", code)


def _entry(uri: str, found: Any) -> Entry:
    tag = (found["e_tag"] or "").strip('"')
    return Entry(uri, found["size"], found["last_modified"].timestamp(), _version(f'"{tag}"'))
