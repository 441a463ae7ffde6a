"""The command line: `landmarks COMMAND`, also `python -m beam_pipeline COMMAND`.

Parses and calls: what there is to say is in `parser.py`, what is done in `commands.py`.
"""

import argparse
import difflib
import gc
import sys
import time
from collections.abc import Sequence
from typing import Any

from beam_pipeline import memory

with memory.told():
    from beam_pipeline import beam_import, commands, config, quiet, terminal
    from beam_pipeline.parser import below, build_parser

EXIT_DONE, EXIT_FAILED, EXIT_USAGE = 0, 1, 2


def beam_options(given: Sequence[str]) -> Any:
    """Beam's PipelineOptions from the flags that are not ours.

    Raises:
      config.ConfigError: a flag that Beam does not know either; the text proposes the nearest one.
    """
    from apache_beam.options import pipeline_options

    # Beam itself only warns of unknown options, so ask its parsers first.
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, conflict_handler="resolve")
    pending = list(pipeline_options.PipelineOptions.__subclasses__())
    while pending:
        options_class = pending.pop()
        pending.extend(options_class.__subclasses__())
        if "_add_argparse_args" in vars(options_class):
            options_class._add_argparse_args(parser)
    try:
        _, unknown = parser.parse_known_args(list(given))
    except SystemExit:
        raise config.ConfigError(f"wrong value for an option of Beam in: {' '.join(given)}") from None
    if unknown:
        known = {option for p in (*below(build_parser()), parser) for option in p._option_string_actions}
        option = unknown[0].split("=")[0]
        near = difflib.get_close_matches(option, known, n=1)
        hint = "; other commands have it" if option in known else f"; did you mean {near[0]}?" if near else ""
        raise config.ConfigError(f"unknown option {unknown[0]!r}{hint}")
    return pipeline_options.PipelineOptions(list(given))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns 0 when it is done, 1 when it failed, 2 for wrong usage. Errors go to standard
    error.
    """
    with memory.told():
        return _main(argv)


def _main(argv: Sequence[str] | None) -> int:
    started = time.time()  # a time budget begins here
    if argv is None:  # called from Python with arguments, the work is done in the caller's process
        terminal.hold_streams()
        terminal.on_interrupt(_release_locks)
        memory.watch_threads(_release_locks)
    parser = build_parser()
    try:
        args, rest = parser.parse_known_args(argv, argparse.Namespace(started=started))
    except SystemExit as e:  # argparse has printed the help or the error
        return terminal.ended(EXIT_DONE if not e.code else EXIT_USAGE)
    if little := memory.lack(memory.TO_START):
        print(f"landmarks: error: {little}", file=sys.stderr)
        return EXIT_FAILED
    quiet.silence()
    with terminal.resolved(args):
        if argv is not None:
            return _run(args, rest)
        if args.command in commands.SUPERVISED and _runner(rest) in config.LOCAL_RUNNERS:
            from beam_pipeline import supervisor

            stores = [args.output, getattr(args, "query_store", None) or args.output]
            return supervisor.run(lambda: _run_alone(args, rest), stores)
        return _run_alone(args, rest)


def _runner(given: Sequence[str]) -> str | None:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--runner", nargs="?")
    return parser.parse_known_args(given)[0].runner


def _release_locks() -> None:
    if "beam_pipeline.lock" in sys.modules:
        from beam_pipeline import lock

        lock.release()


def _run_alone(args: argparse.Namespace, rest: Sequence[str]) -> int:
    """`_run`, in a process of its own."""
    if args.beam_options and _runner(rest) in config.LOCAL_RUNNERS:
        beam_import.import_beam()
    try:
        return terminal.ended(_run(args, rest))
    finally:
        gc.freeze()  # the process ends, and its memory goes at once instead of object by object


def _run(args: argparse.Namespace, rest: Sequence[str]) -> int:
    try:
        for name, value in vars(args).items():
            if value == "" or (isinstance(value, list) and "" in value):
                raise config.ConfigError(f"--{name} is empty")
        if rest and not args.beam_options:
            raise config.ConfigError(f"unknown option {rest[0]!r}")
        if getattr(args, "output", None):
            from beam_pipeline import outputs

            outputs.check_outside(args.output)
        if not args.beam_options:
            return args.command(args, None)
        options = beam_options(rest)
        from transforms.storage import object_stores

        with object_stores.using(options):
            return args.command(args, options)
    except config.NotAwaited as e:
        print(e)
        return EXIT_DONE
    except config.ConfigError as e:
        print(f"landmarks: error: {e}", file=sys.stderr)
        return EXIT_USAGE
    except (ValueError, OSError, config.PipelineError) as e:
        little = memory.limit() if memory.is_lack(e) else ""
        print(f"landmarks: error: {_text(e)}{little}", file=sys.stderr)
        return EXIT_FAILED


def _text(error: Exception) -> str:
    """What an error says, without the numbers of the system's."""
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror[0].lower()}{error.strerror[1:]}"
    return str(error)
