"""What a command leaves out when it imports Beam can be imported afterwards; nobody else goes without it."""

import subprocess
import sys


def test_what_was_left_out_can_be_imported_afterwards():
    code = (
        "import gc, importlib, sys; from beam_pipeline import beam_import; beam_import.import_beam(); "
        "assert gc.isenabled() and not {*beam_import.LEFT_OUT} & {*sys.modules}; "
        "[importlib.import_module(name) for name in (*beam_import.LEFT_OUT, 'google.cloud.storage')]"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_file_systems_that_stay_beam_s_have_what_they_need(tmp_path):
    (tmp_path / "hdfs.py").write_text("import requests\n")  # as the real one does
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from beam_pipeline import beam_import; "
        "beam_import.import_beam(); from apache_beam.io import hadoopfilesystem; assert hadoopfilesystem.hdfs"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)]).returncode == 0


def test_a_command_in_the_process_of_another_program_leaves_its_beam_whole():
    code = (
        "import gc, sys; from beam_pipeline.main import main; assert main(['verify', 'none']) == 2; "
        "from apache_beam.typehints import pandas_type_compatibility; from apache_beam.io.gcp import gcsio; "
        "from apache_beam.io import mongodbio; assert mongodbio.MongoClient and not gc.get_freeze_count()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
