"""What s3.sh and gcs.sh need of an object store besides `landmarks`; addresses and credentials come from the
environment.

python stores.py upload ROOT FOLDER    makes ROOT's bucket and copies what FOLDER's lists, tables and
photographs are
python stores.py await STORE UNITS PID  until so many units are finished; fails where the process has ended
python stores.py fetch URI FILE        copies a file from the store
"""

import os
import pathlib
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from transforms.storage import files
from transforms.storage.feature_store import FeatureStore


def make_bucket(root: str) -> None:
    """Makes the bucket of an address, where it is not there yet."""
    scheme, _, place = root.partition("://")
    bucket = place.split("/")[0]
    if scheme == "s3":
        import boto3

        client = boto3.client("s3")
        if bucket not in [b["Name"] for b in client.list_buckets()["Buckets"]]:
            client.create_bucket(Bucket=bucket)
    else:
        from google.cloud import storage

        client = storage.Client()
        if client.lookup_bucket(bucket) is None:
            client.create_bucket(bucket)


def upload(root: str, folder: pathlib.Path) -> None:
    """ROOT then holds index/ and queries/ with photographs in folders, queries.txt with a line for each,
    labels.csv and truth.csv.
    """
    copies = [(folder / name, f"{root}/{name}") for name in ("labels.csv", "truth.csv")]
    for name in ("index", "queries"):
        paths = [pathlib.Path(line) for line in (folder / f"{name}.txt").read_text("utf-8").splitlines()]
        copies += [(path, f"{root}/{name}/{path.stem[0]}/{path.name}") for path in paths]
        files.write_bytes(
            f"{root}/{name}.txt", "".join(f"{name}/{path.stem[0]}/{path.name}\n" for path in paths).encode()
        )
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda copy: files.write_bytes(copy[1], copy[0].read_bytes()), copies))
    print(f"{root}: {len(copies) + 2} files")


def main() -> None:
    """See the module's documentation."""
    command, uri, argument, *rest = sys.argv[1:]
    if command == "upload":
        make_bucket(uri)
        upload(uri, pathlib.Path(argument))
    elif command == "await":
        while len(FeatureStore(uri).units()) < int(argument):
            os.kill(int(rest[0]), 0)
            time.sleep(0.05)
    else:
        pathlib.Path(argument).write_bytes(files.read_bytes(uri))


if __name__ == "__main__":
    main()
