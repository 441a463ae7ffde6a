"""Who may import whom: no circles, and nothing runs back up. Imports inside functions count too."""

import ast
import graphlib
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PRODUCT = ("beam_pipeline", "transforms")

# Folders at the top, each with those that it may import.
ROOMS = {
    "transforms": set(),
    "beam_pipeline": {"transforms"},
    "training": {"beam_pipeline", "transforms"},
    "benchmarks": {"beam_pipeline", "training", "transforms"},
    "docker": {"beam_pipeline"},
    "examples": {"beam_pipeline", "transforms"},
}

# In the order of the data.
STEPS = {
    f"transforms.{name}"
    for name in (
        "patterns",
        "images",
        "features",
        "extraction",
        "retrieval",
        "verification",
        "database_augmentation",
        "aggregation",
        "submission",
        "gap",
        "beam_yaml",
        "whitening",
    )
}

# Beside them, known to all.
SHARED = {"transforms.types", "transforms.file_formats"}

# Folders below the steps; each imports those before it alone.
FOLDERS = ("processes", "arrays", "storage", "models")


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


IMPORTERS = {"import_module", "__import__"}
COMPUTED = "(computed)"  # stands for a name that is no literal in the text
CALLED = "functions that import are called by their own names, where they are named"
COMPUTE_NAMES = {"beam_pipeline.commands", "benchmarks.run", "transforms"}


def imported(source, modules):
    """The names that a module's text imports, by functions too; of `from a import b` a.b where that is a
    module, else a.
    """
    found, nodes = set(), list(ast.walk(ast.parse(source)))
    called = [node.func for node in nodes if isinstance(node, ast.Call)]
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            assert node.names[0].name != "*", "imports say what they import"
            assert not any(a.name in IMPORTERS and a.asname for a in node.names), CALLED
            names = {alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            found |= {full if full in modules else node.module for full in names.values()}
        elif function_of(node) in IMPORTERS:
            assert node in called, CALLED
        elif isinstance(node, ast.Call) and function_of(node.func) in IMPORTERS:
            name = (node.args or [keyword.value for keyword in node.keywords])[0]
            found.add(name.value if isinstance(name, ast.Constant) else COMPUTED)
            assert not any(name.startswith(".") for name in found), "imports are absolute"
    return found


def function_of(node):
    """The name that an expression ends in; "" where it is none."""
    return getattr(node, "attr", getattr(node, "id", ""))


def into(modules, folder):
    """Those of `modules` that are `folder`, or lie in it."""
    return {module for module in modules if f"{module}.".startswith(f"{folder}.")}


def circle(graph):
    """The modules of a circle, in its order; none where there is no circle."""
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as e:
        return e.args[1]
    return []


@pytest.fixture(scope="module")
def graph():
    """What each module imports."""
    paths = {module_name(path): path for top in ROOMS for path in (ROOT / top).rglob("*.py")}
    assert paths.keys() >= STEPS and {"beam_pipeline.report.pages", "beam_pipeline.gldv2.fetch"} <= {*paths}
    return {name: imported(path.read_text(), paths) for name, path in paths.items()}


def within(graph, package):
    return {name: graph[name] for name in into(graph, package)}


def test_there_is_no_circle(graph):
    assert circle({name: {m for m in modules if m in graph} for name, modules in graph.items()}) == []


def test_a_circle_would_be_found():
    sources = {"a": "def f():\n  from b import c", "b.c": "import d", "d": "from a import x"}
    found = {name: imported(text, sources) for name, text in sources.items()}
    assert sorted(set(circle(found))) == ["a", "b.c", "d"]
    assert circle({**found, "d": set()}) == []


@pytest.mark.parametrize(
    "source, found",
    [
        ("import importlib\nimportlib.import_module('b.c')", {"importlib", "b.c"}),
        ("from importlib import import_module\nimport_module(name=f'b.{c}')", {"importlib", COMPUTED}),
        ("def f():\n  return __import__('b')", {"b"}),
    ],
)
def test_imports_by_functions_are_seen(source, found):
    assert imported(source, {}) == found


@pytest.mark.parametrize(
    "source, problem",
    [
        ("from b import *", "imports say what they import"),
        ("from importlib import import_module as load\nload('b.c')", CALLED),
        ("import importlib\nload = importlib.import_module", CALLED),
        ("from . import c", "imports are absolute"),
        ("import importlib\nimportlib.import_module('.c', 'b')", "imports are absolute"),
    ],
)
def test_imports_that_would_hide_something_are_refused(source, problem):
    with pytest.raises(AssertionError, match=problem):
        imported(source, {"b"})


def test_names_are_computed_in_few_places(graph):
    assert {name for name, modules in graph.items() if COMPUTED in modules} == COMPUTE_NAMES


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_those_below_it_alone(graph, room):
    others = {path.stem for path in ROOT.iterdir() if path.is_dir() or path.suffix == ".py"}
    others -= {*ROOMS[room], room}
    assert others >= {"tests", "setup"} and within(graph, room)
    for name, modules in within(graph, room).items():
        assert {module.split(".")[0] for module in modules} & others == set(), name


COMMAND_LINE = {f"beam_pipeline.{name}" for name in ("__main__", "main", "parser", "commands", "flags")}


def test_no_job_knows_the_command_line(graph):
    """Which imports jobs by their names, where `graph` does not see it."""
    for name in within(graph, "beam_pipeline").keys() - COMMAND_LINE:
        assert not graph[name] & COMMAND_LINE, name


def test_no_job_looks_into_the_report_or_into_one_data_set(graph):
    for name in {name for name in within(graph, "beam_pipeline") if name.count(".") == 1} - COMMAND_LINE:
        for folder in ("beam_pipeline.report", "beam_pipeline.gldv2"):
            assert not into(graph[name], folder), name


@pytest.mark.parametrize(
    "source",
    ["from a import b", "from a.b import C", "import a.b", "import a.b.c", "def f():\n  from a.b import c"],
)
def test_imports_of_a_folder_and_out_of_it_are_seen(source):
    assert into(imported(source, {"a", "a.b", "a.b.c"}), "a.b") and not into({"a", "a.bc"}, "a.b")


def test_what_lies_beside_the_steps_is_a_step(graph):
    beside = {name for name in graph if name.count(".") == 1 and into({name}, "transforms")}
    folders = {f"transforms.{name}" for name in FOLDERS}
    assert beside == STEPS | SHARED | folders


def test_no_step_is_imported_by_another_nor_by_what_steps_use(graph):
    below = within(graph, "transforms")
    for above in ("transforms", "transforms.extraction", "transforms.beam_yaml"):  # put steps together
        del below[above]
    assert {name: modules & STEPS for name, modules in below.items() if modules & STEPS} == {}


def test_folders_import_those_below_them_alone(graph):
    for at, folder in enumerate(FOLDERS):
        allowed = ("transforms.types", *(f"transforms.{name}" for name in FOLDERS[: at + 1]))
        for name, modules in within(graph, f"transforms.{folder}").items():
            assert [m for m in modules if m.startswith("transforms.") and not m.startswith(allowed)] == [], (
                name
            )


def test_computing_on_arrays_knows_no_beam_and_no_disk(graph):
    allowed = {"transforms.types", "transforms.processes.onnx_runtime", "transforms.processes.settings"}
    for name, modules in within(graph, "transforms.arrays").items():
        ours = {m for m in modules if m.startswith("transforms.") and not m.startswith("transforms.arrays")}
        assert ours <= allowed, name
        assert not {m for m in modules if m.split(".")[0] == "apache_beam"}, name


def test_what_all_use_imports_next_to_nothing(graph):
    def ours(name):
        return {module for module in graph[name] if module.split(".")[0] in PRODUCT}

    leaves = {
        "transforms.types",
        "transforms.storage.uris",
        "beam_pipeline.quiet",
        "beam_pipeline.gldv2.published",
    }
    assert all(not ours(name) for name in leaves)
    assert ours("beam_pipeline.config") <= leaves
