"""Streams that are closed, read no more or ASCII alone; Ctrl-C; `~` and pipes among the arguments; another
package of our name.
"""

import argparse
import os
import pathlib
import signal
import subprocess
import sys

import pytest

from beam_pipeline import evaluate, main, terminal

HERE = str(pathlib.Path(terminal.__file__).parents[1])

_PRINTS = """
import os, sys
from beam_pipeline import terminal
terminal.hold_streams()
with open(sys.argv[1], "w") as f:
    for stream in (sys.stdout, sys.stderr):
        for _ in range(10000):
            print("Zürich \\ud800", file=stream)
    os.write(1, b"native"), os.write(2, b"native")
    f.write("whole")
"""


def shell(command, **options):
    environment = {**os.environ, "PYTHONPATH": HERE, **options.pop("env", {})}
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=environment, **options)


@pytest.mark.parametrize(
    "redirection",
    ["", ">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-", "| head -1", "2>&1 | head -1", ">/dev/full 2>/dev/full"],
)
@pytest.mark.parametrize("encoding", ["utf-8", "ascii:strict"])
def test_no_stream_stops_the_work_or_runs_into_a_file(tmp_path, redirection, encoding):
    (tmp_path / "script.py").write_text(_PRINTS, encoding="utf-8")
    done = shell(
        f"set -o pipefail; {sys.executable} {tmp_path}/script.py {tmp_path}/file {redirection}",
        env={"PYTHONIOENCODING": encoding},
    )
    assert done.returncode == 0 and "Traceback" not in done.stderr and "ignored" not in done.stderr
    assert (tmp_path / "file").read_text() == "whole"
    if not redirection and encoding == "ascii:strict":
        assert done.stdout.startswith("Z\\xfcrich \\ud800\n") and done.stdout.endswith("native")


def test_the_command_itself_outlasts_its_reader():
    for redirection in ("| head -0", ">&-", "2>&-"):
        done = shell(f"set -o pipefail; {sys.executable} -m beam_pipeline --help {redirection}")
        assert done.returncode == 0 and done.stderr == ""


def test_output_that_finds_no_room_is_an_error(tmp_path):
    (tmp_path / "truth.csv").write_text("id,landmarks,Usage\nq,a,Public\n")
    (tmp_path / "answers.csv").write_text("id,landmarks\nq,a 1.0\n")
    evaluated = f"evaluate --predictions {tmp_path}/answers.csv --truth {tmp_path}/truth.csv"
    for command in ("--help", evaluated):
        done = shell(f"{sys.executable} -m beam_pipeline {command} >/dev/full", timeout=100)
        assert done.returncode == 1
        assert done.stderr == "landmarks: error: standard output: no space left on device\n"


_WAITS = """
import sys, threading, time
from beam_pipeline import supervisor, terminal

def work():
    time.sleep(0.3)
    raise RuntimeError("of a thread")

def job():
    threading.Thread(target=work).start()
    print("ready", flush=True)
    time.sleep(60)

terminal.on_interrupt(lambda: print("released", flush=True))
sys.exit(supervisor.run(job, []))
"""


@pytest.mark.parametrize("to", ["group", "parent", "child", "group twice"])
def test_ctrl_c_says_a_line_and_no_traceback(tmp_path, to):
    process = subprocess.Popen(
        [sys.executable, "-c", _WAITS],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": HERE, "TMPDIR": str(tmp_path)},
        start_new_session=True,
        # A shell starts what it runs in the background with SIGINT ignored, the test suite perhaps.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout.readline() == "ready\n"
    children = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    if to.startswith("group"):
        os.killpg(process.pid, signal.SIGINT)
        if to.endswith("twice"):
            os.killpg(process.pid, signal.SIGINT)
    else:
        os.kill(process.pid if to == "parent" else int(children[0]), signal.SIGINT)
    out, error = process.communicate(timeout=50)
    assert error == "landmarks: interrupted; the same command goes on from here\n"
    assert out == "released\n" and process.returncode == 1 and os.listdir(tmp_path) == []


def test_sigint_that_a_shell_ignores_stays_ignored(monkeypatch):
    monkeypatch.setattr(signal, "getsignal", lambda number: signal.SIG_IGN)
    monkeypatch.setattr(signal, "signal", None)  # not called
    terminal.on_interrupt(lambda: None)


def test_a_tilde_is_the_home_folder_in_every_path(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    paths = {name: "~/x" for name in terminal._PATHS if name != "images"}
    args = argparse.Namespace(images=["~/p", "@~/list", "~nobody-here/p", "p~"], image_id="~/x", **paths)
    with terminal.resolved(args):
        assert (
            args.images == ["/home/me/p", "@/home/me/list", "~nobody-here/p", "p~"] and args.image_id == "~/x"
        )
        assert all(getattr(args, name) == "/home/me/x" for name in paths)


def test_lists_and_tables_may_be_pipes(tmp_path, monkeypatch):
    (tmp_path / "a.jpg").write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    ends = []
    for content in (b"a.jpg\n\n/absolute/b.jpg\ns3://b/c.jpg\n", b"id,landmark_id\n"):
        read, write = os.pipe()
        os.write(write, content)
        os.close(write)
        ends.append(read)
    args = argparse.Namespace(images=[f"@/dev/fd/{ends[0]}"], labels=f"/dev/fd/{ends[1]}")
    with terminal.resolved(args):
        with open(args.images[0][1:], encoding="utf-8") as f:
            assert f.read() == f"{tmp_path}/a.jpg\n/absolute/b.jpg\ns3://b/c.jpg\n"
        assert pathlib.Path(args.labels).read_bytes() == b"id,landmark_id\n"
        assert terminal.is_copy(args.labels) and "--truth" not in evaluate.report_hint("run", args.labels)
        assert "--truth truth.csv" in evaluate.report_hint("run", "truth.csv")
    assert not os.path.exists(args.labels)
    for end in ends:
        os.close(end)


def test_process_substitution(tmp_path):
    script = (
        "import argparse, sys; from beam_pipeline import terminal; from transforms import patterns\n"
        "args = argparse.Namespace(images=sys.argv[1:])\n"
        "with terminal.resolved(args): print([ref.uri for ref in patterns.match_images(args.images).images])"
    )
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(b"x")
    done = shell(f"{sys.executable} -c '{script}' @<(ls *.jpg)", cwd=tmp_path)
    assert done.stdout == f"['{tmp_path}/a.jpg', '{tmp_path}/b.jpg']\n", done.stderr


@pytest.mark.parametrize("name", ["transforms.py", "transforms/__init__.py"])
def test_a_strangers_transforms_is_named(tmp_path, name):
    stranger = tmp_path / name
    stranger.parent.mkdir(exist_ok=True)
    stranger.write_text("")
    command = [sys.executable, "-m", "beam_pipeline", "--version"]
    (tmp_path / "elsewhere").mkdir()
    for path, folder in ((f"{tmp_path}:{HERE}", tmp_path / "elsewhere"), (HERE, tmp_path)):
        environment = {**os.environ, "PYTHONPATH": path}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder)
        assert done.returncode == 1 and done.stdout == "" and len(done.stderr.splitlines()) == 1
        assert done.stderr.startswith(f"landmarks: error: `import transforms` finds {stranger}")
    library = [sys.executable, "-c", "try: import beam_pipeline\nexcept ImportError as e: print(e)"]
    done = subprocess.run(library, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert f"`import transforms` finds {stranger}" in done.stdout, done.stderr


@pytest.mark.parametrize("kilobytes", [60_000, 300_000, 600_000, 900_000, 1_500_000, 2_900_000])
def test_too_little_memory_to_start_is_said_in_a_line(tmp_path, kilobytes):
    command = f"{sys.executable} -m beam_pipeline index --images a.jpg --labels l.csv --output out"
    command += " --direct_num_workers 4"
    (tmp_path / "l.csv").write_text("id,landmark_id\na,1\n")
    (tmp_path / "a.jpg").write_bytes(b"x")
    done = shell(f"ulimit -v {kilobytes}; {command}", cwd=tmp_path)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert done.stderr.startswith("landmarks: error: not enough memory: ") and "MB (ulimit -v" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_thread_without_memory_ends_the_process():
    script = (
        "import sys, threading; from beam_pipeline import memory\n"
        "def work(): raise RuntimeError('can\\'t start new thread' if sys.argv[1] == 'lack' else 'another')\n"
        "memory.watch_threads(lambda: print('released', flush=True))\n"
        "threading.Thread(target=work).start(); threading.Event().wait(2)"
    )
    for what, code in (("lack", 1), ("other", 0)):
        done = subprocess.run(
            [sys.executable, "-c", script, what],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": HERE},
        )
        assert done.returncode == code and (done.stdout == "released\n") is bool(code)
        said = "landmarks: error: not enough memory: RuntimeError; " if code else "another"
        assert said in done.stderr and (len(done.stderr.splitlines()) == 1) is bool(code)


def test_a_file_that_is_not_there_is_named_without_numbers(tmp_path, capsys):
    command = ["index", "--images", "p", "--labels", f"{tmp_path}/none.csv", "--output", f"{tmp_path}/out"]
    assert main.main(command) == 1
    assert capsys.readouterr().err == f"landmarks: error: {tmp_path}/none.csv: no such file or directory\n"
