"""Objects of S3 and of Google Cloud Storage, through one client per process that all its threads share.

Beam's own file systems make a client for every file that they open, ask for its size before they read it, and
write in parts. Here a read is one request and so is a write of up to 8 MiB. Credentials and addresses are
those of Beam's options (--s3_endpoint_url, --no_auth, ...) and of the environment that the stores' clients
know by themselves:

    s3://   AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_PROFILE, AWS_REGION ...
    gs://   GOOGLE_APPLICATION_CREDENTIALS ...; STORAGE_EMULATOR_HOST, the address of a server that asks for
    no credentials

Any other file system that Beam knows is reached through Beam.
"""

import contextlib
import errno
import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

from apache_beam.io.filesystem import FileMetadata
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import GoogleCloudOptions, PipelineOptions, S3Options
from apache_beam.options.value_provider import RuntimeValueProvider

# Reads that a thread which works on what it reads has under way; an answer takes some 30 ms to begin, whoever
# gives it.
READS_IN_FLIGHT = 16

# Requests that a client keeps connections for; more than the threads of a process that read.
CONNECTIONS = 64


class Entry(NamedTuple):
    """What a listing says of an object.

    Attributes:
      uri: of the object.
      size: in bytes.
      updated: in seconds since 1970.
      version: a number of 63 bits that is another for other content: from the ETag of S3, the checksum of
        GCS, the time of change of another file system.
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


class Store(Protocol):
    """A place for objects, which appear and change whole.

    Every method raises FileNotFoundError or PermissionError where that is what the store says, and else
    OSError.
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


class _S3:
    """See Store. A write is one PUT, conditional (If-Match, If-None-Match) where it swaps."""

    def __init__(self, options: PipelineOptions):
        try:
            import boto3
            from botocore import config, exceptions
        except ImportError as e:
            raise ValueError(
                f"s3:// needs a package that is not installed (pip install 'landmarks[aws]'): {e}"
            ) from e
        given = options.view_as(S3Options)
        self._exceptions = exceptions
        self._client = boto3.session.Session().client(
            "s3",
            region_name=given.s3_region_name,
            api_version=given.s3_api_version,
            use_ssl=not given.s3_disable_ssl,
            verify=given.s3_verify,
            endpoint_url=given.s3_endpoint_url,
            aws_access_key_id=given.s3_access_key_id,
            aws_secret_access_key=given.s3_secret_access_key,
            aws_session_token=given.s3_session_token,
            config=config.Config(max_pool_connections=CONNECTIONS, retries={"mode": "standard"}),
        )

    @contextlib.contextmanager
    def _errors(self, uri: str) -> Iterator[None]:
        try:
            yield
        except self._exceptions.ClientError as e:
            raise _error(uri, str(e), e.response.get("ResponseMetadata", {}).get("HTTPStatusCode")) from e
        except (self._exceptions.NoCredentialsError, self._exceptions.PartialCredentialsError) as e:
            raise PermissionError(errno.EACCES, str(e), uri) from e
        except self._exceptions.BotoCoreError as e:
            raise StoreError(f"{uri}: {e}") from e

    def read(self, uri: str, offset: int = 0, size: int | None = None) -> bytes:
        if size == 0:
            return b""
        part = (
            {}
            if not offset and size is None
            else {"Range": f"bytes={offset}-{'' if size is None else offset + size - 1}"}
        )
        with _empty_beyond_end(), self._errors(uri):
            return self._client.get_object(**_s3_address(uri), **part)["Body"].read()
        return b""

    def write(self, uri: str, data: bytes) -> None:
        with self._errors(uri):
            self._client.put_object(**_s3_address(uri), Body=data)

    def swap(self, uri: str, old: bytes | None, new: bytes) -> bool:
        condition = {"IfNoneMatch": "*"}
        if old is not None:
            try:
                with self._errors(uri):
                    found = self._client.get_object(**_s3_address(uri))
                    if found["Body"].read() != old:
                        return False
            except FileNotFoundError:
                return False
            condition = {"IfMatch": found["ETag"]}
        try:
            with self._errors(uri):
                self._client.put_object(**_s3_address(uri), Body=new, **condition)
        except FileNotFoundError:
            if old is None:  # no such bucket
                raise
            return False
        except StoreError as e:
            return _already_swapped(self, uri, new, e)
        return True

    def delete(self, uri: str) -> None:
        with contextlib.suppress(FileNotFoundError), self._errors(uri):
            self._client.delete_object(**_s3_address(uri))

    def entry(self, uri: str) -> Entry | None:
        with contextlib.suppress(FileNotFoundError), self._errors(uri):
            found = self._client.head_object(**_s3_address(uri))
            return Entry(
                uri, found["ContentLength"], found["LastModified"].timestamp(), _version(found.get("ETag"))
            )
        return None

    def list(self, prefix: str, descend: bool = True) -> Iterator[Entry]:
        bucket, key = _split(prefix)
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=bucket, Prefix=key, **({} if descend else {"Delimiter": "/"})
        )
        with self._errors(prefix):
            for page in pages:
                for item in page.get("Contents", ()):
                    yield Entry(
                        f"s3://{bucket}/{item['Key']}",
                        item["Size"],
                        item["LastModified"].timestamp(),
                        _version(item.get("ETag")),
                    )


class _Gcs:
    """See Store. A write is one request up to 8 MiB, then a resumable upload; conditional on the object's
    generation where it swaps.
    """

    def __init__(self, options: PipelineOptions):
        try:
            from apache_beam.io.gcp import gcsio
            from google.api_core import exceptions
            from google.auth.exceptions import GoogleAuthError
            from requests.adapters import HTTPAdapter
        except ImportError as e:
            raise ValueError(
                f"gs:// needs a package that is not installed (pip install 'landmarks[gcp]'): {e}"
            ) from e
        self._exceptions, self._auth_error = exceptions, GoogleAuthError
        anonymous = options.view_as(GoogleCloudOptions).no_auth or os.environ.get("STORAGE_EMULATOR_HOST")
        self._client = gcsio.create_storage_client(options, use_credentials=not anonymous)
        for scheme in ("http://", "https://"):  # its own adapters keep 10 connections
            self._client._http.mount(scheme, HTTPAdapter(pool_maxsize=CONNECTIONS))

    @contextlib.contextmanager
    def _errors(self, uri: str) -> Iterator[None]:
        try:
            yield
        except self._exceptions.GoogleAPICallError as e:
            raise _error(uri, str(e), e.code) from e
        except self._exceptions.RetryError as e:
            raise StoreError(f"{uri}: {e}") from e
        except self._auth_error as e:
            raise PermissionError(errno.EACCES, str(e), uri) from e

    def _blob(self, uri: str) -> Any:
        bucket, key = _split(uri)
        return self._client.bucket(bucket).blob(key)

    def read(self, uri: str, offset: int = 0, size: int | None = None) -> bytes:
        if size == 0:
            return b""
        part = (
            {}
            if not offset and size is None
            else {"start": offset, "end": None if size is None else offset + size - 1}
        )
        with _empty_beyond_end(), self._errors(uri):
            return self._blob(uri).download_as_bytes(raw_download=True, **part)
        return b""

    def write(self, uri: str, data: bytes) -> None:
        with self._errors(uri):
            self._blob(uri).upload_from_string(data, "application/octet-stream")

    def swap(self, uri: str, old: bytes | None, new: bytes) -> bool:
        blob, generation = self._blob(uri), 0
        if old is not None:
            try:
                with self._errors(uri):
                    blob.reload()
                    generation = blob.generation
                    if blob.download_as_bytes(raw_download=True, if_generation_match=generation) != old:
                        return False
            except (StoreError, FileNotFoundError) as e:
                return _already_swapped(self, uri, new, e)
        try:
            with self._errors(uri):
                self._blob(uri).upload_from_string(
                    new, "application/octet-stream", if_generation_match=generation
                )
        except StoreError as e:
            return _already_swapped(self, uri, new, e)
        return True

    def delete(self, uri: str) -> None:
        with contextlib.suppress(FileNotFoundError), self._errors(uri):
            self._blob(uri).delete()

    def entry(self, uri: str) -> Entry | None:
        blob = self._blob(uri)
        with contextlib.suppress(FileNotFoundError), self._errors(uri):
            blob.reload()
            return Entry(uri, blob.size, blob.updated.timestamp(), _version(blob.crc32c))
        return None

    def list(self, prefix: str, descend: bool = True) -> Iterator[Entry]:
        bucket, key = _split(prefix)
        fields = "items(name,size,updated,crc32c),nextPageToken"
        with self._errors(prefix):
            for blob in self._client.list_blobs(
                bucket, prefix=key, delimiter=None if descend else "/", fields=fields
            ):
                yield Entry(
                    f"gs://{bucket}/{blob.name}", blob.size, blob.updated.timestamp(), _version(blob.crc32c)
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
def using(options: PipelineOptions) -> Iterator[None]:
    """While the block runs, Beam's `options` hold for the files of this process, and for those of processes
    that it starts.

    Pipeline() gives its options to this process alone: worker processes of the local runner and of worker
    pools get none, but the environment.
    """
    given = options.view_as(S3Options)
    variables = {v: value for name, v in _S3_VARIABLES.items() if (value := getattr(given, name))}
    before = FileSystems._pipeline_options, {variable: os.environ.get(variable) for variable in variables}
    FileSystems.set_options(options)
    os.environ.update(variables)
    try:
        yield
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
            _stores[scheme] = options, _KINDS[scheme](_as_options(options))
        return _stores[scheme][1]


def _as_options(options: Any) -> PipelineOptions:
    if isinstance(options, PipelineOptions):
        return options
    return PipelineOptions.from_dictionary(options) if options else PipelineOptions([])


def _split(uri: str) -> tuple[str, str]:
    """Bucket and key."""
    bucket, _, key = uri.partition("://")[2].partition("/")
    if not bucket:
        raise ValueError(f"{uri!r} names no bucket")
    return bucket, key


def _s3_address(uri: str) -> dict[str, str]:
    bucket, key = _split(uri)
    return {"Bucket": bucket, "Key": key}


def _error(uri: str, text: str, code: int | None) -> OSError:
    if code == 404:
        return FileNotFoundError(errno.ENOENT, f"No such object, or no such bucket ({text})", uri)
    if code in (401, 403):
        return PermissionError(errno.EACCES, text, uri)
    return StoreError(f"{uri}: {text}", code)


@contextlib.contextmanager
def _empty_beyond_end() -> Iterator[None]:
    """Ends the block quietly where a range begins behind the object's end."""
    try:
        yield
    except StoreError as e:
        if e.code != 416:
            raise


def _already_swapped(store: Store, uri: str, new: bytes, error: OSError) -> bool:
    """What a conditional write that was refused means: True where the client had written before, and tried
    again for want of an answer.
    """
    if isinstance(error, StoreError) and error.code not in (409, 412):
        raise error
    try:
        return store.read(uri) == new
    except FileNotFoundError:
        return False
