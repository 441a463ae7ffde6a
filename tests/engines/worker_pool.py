"""Beam's pool of Python workers on one address of this machine: `python tests/engines/worker_pool.py
HOST:PORT`.

`apache_beam.runners.worker.worker_pool_main` takes every address of the machine. Here each of several task
managers has a pool of its own on the same port, as it would on a machine of its own.
"""

import sys

import grpc
from apache_beam.portability.api import beam_fn_api_pb2_grpc
from apache_beam.runners.worker.worker_pool_main import BeamFnExternalWorkerPoolServicer
from apache_beam.utils import thread_pool_executor


def main(address: str) -> None:
    """Serves until it is killed; starts a process for each worker that is asked for."""
    server = grpc.server(thread_pool_executor.shared_unbounded_instance())
    beam_fn_api_pb2_grpc.add_BeamFnExternalWorkerPoolServicer_to_server(
        BeamFnExternalWorkerPoolServicer(use_process=True), server
    )
    server.add_insecure_port(address)
    server.start()
    server.wait_for_termination()


if __name__ == "__main__":
    main(*sys.argv[1:])
