"""dvc.yaml against the code: every import is a dependency, every hyperparameter read is declared, and no other."""

import ast
import functools
import re
import sys
from pathlib import Path

import pytest
from tiny import ROOT, read_yaml_file

from lesionlab.params import Params

STAGES = (
    "download@images",
    "download@weights",
    "crop",
    "split",
    "baseline",
    "transfer",
    "finetune",
    "evaluate",
    "detect",
    "explain",
)
# Modules that cannot change what a stage writes: they word errors, start the command line, show progress, record runs.
HARMLESS = {
    "lesionlab/__init__.py", "lesionlab/errors.py", "lesionlab/progress.py", "lesionlab/stage.py",
    "lesionlab/studies/__init__.py", "lesionlab/studies/schemas.py", "lesionlab/tracking.py", "stages/__init__.py",
}  # fmt: skip
# The script of both downloads imports what draws a phantom; weights are not drawn.
HARMLESS_TO = {"download@weights": {"lesionlab/seeds.py"}}
# Learning curves go to MLflow alone.
HARMLESS_TO |= {stage: {"lesionlab/pictures.py"} for stage in ("baseline", "transfer", "finetune")}


@functools.cache
def pipeline() -> dict:
    return read_yaml_file(ROOT / "dvc.yaml")


def stage_entry(stage: str) -> dict:
    """A stage of dvc.yaml; of `foreach` stages with the item's values filled in."""
    name, _, item = stage.partition("@")
    entry = pipeline()["stages"][name]
    if not item:
        return entry
    values = {"key": item, **{f"item.{key}": value for key, value in entry["foreach"][item].items()}}

    def fill(part: object) -> object:
        if isinstance(part, dict):
            return {fill(key): fill(value) for key, value in part.items()}
        if isinstance(part, list):
            return [fill(value) for value in part]
        if isinstance(part, str):
            return re.sub(r"\$\{(.*?)\}", lambda match: str(values.get(match[1], match[0])), part)
        return part

    return fill(entry["do"])


def written(entry: dict) -> set[str]:
    """Paths of a stage's outs and metrics."""
    return {next(iter(out)) if isinstance(out, dict) else out for out in (*entry["outs"], *entry.get("metrics", []))}


def script(stage: str) -> Path:
    return ROOT / "stages" / f"{stage.partition('@')[0]}.py"


@functools.cache
def syntax(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def module_file(name: str) -> Path | None:
    """The file of a module of this repository, None for anything else."""
    path = ROOT / name.replace(".", "/")
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if name.split(".")[0] in ("lesionlab", "stages") and candidate.is_file():
            return candidate
    return None


def imported(path: Path) -> set[Path]:
    """Files of this repository that a file imports, in functions too; names used for types alone are left out."""
    typing_only = {
        id(inner)
        for node in ast.walk(syntax(path))
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    found = set()
    for node in ast.walk(syntax(path)):
        if id(node) in typing_only:
            continue
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        found |= {file for file in map(module_file, names) if file}
    return found


def imported_by_stage(stage: str) -> set[str]:
    """All files that run in a stage, relative to the root; what only harmless modules import is left out."""
    todo, seen = [script(stage)], set()
    while todo:
        path = todo.pop()
        name = path.relative_to(ROOT).as_posix()
        if name in seen:
            continue
        seen.add(name)
        if name not in HARMLESS:
            todo += imported(path)
    return seen


@pytest.mark.parametrize("stage", STAGES)
def test_every_module_that_runs_in_a_stage_is_in_its_deps(stage):
    deps = [Path(dep) for dep in stage_entry(stage)["deps"]]
    missing = {
        name
        for name in imported_by_stage(stage) - HARMLESS - HARMLESS_TO.get(stage, set())
        if not any(Path(name).is_relative_to(dep) for dep in deps) and not name.endswith("__init__.py")
    }
    assert missing == set()


@pytest.mark.parametrize("stage", STAGES)
def test_code_in_deps_exists_and_is_imported(stage):
    """A dependency that no stage imports would run it again for nothing."""
    running = imported_by_stage(stage)
    for dep in stage_entry(stage)["deps"]:
        if dep.startswith(("lesionlab/", "stages/")):
            assert (ROOT / dep).exists(), dep
            code = dep.endswith(".py") or any((ROOT / dep).glob("*.py"))
            assert not code or any(Path(name).is_relative_to(dep) for name in running), dep


@pytest.mark.parametrize("stage", ["download@images", "download@weights", "crop", "split"])
def test_data_stages_never_reach_keras_or_mlflow(stage):
    heavy = {"keras", "tensorflow", "mlflow"}
    for name in imported_by_stage(stage):
        for node in syntax(ROOT / name).body:
            if isinstance(node, ast.Import):
                assert not {alias.name.split(".")[0] for alias in node.names} & heavy, name
            elif isinstance(node, ast.ImportFrom):
                assert (node.module or "").split(".")[0] not in heavy, name


def test_the_harmless_modules_exist():
    assert all((ROOT / name).is_file() for name in HARMLESS.union(*HARMLESS_TO.values()))


@pytest.mark.parametrize("stage", STAGES)
def test_paths_in_the_command_are_deps_and_outs(stage):
    entry = stage_entry(stage)
    words = entry["cmd"].split()
    assert words[:3] == ["python", "-m", f"stages.{stage.partition('@')[0]}"]
    named = {word for word in words if word.startswith(("data/", "models/", "metrics/", "plots/", "pictures/"))}
    outs = written(entry)
    assert outs <= named
    read = [Path(dep) for dep in entry["deps"]]
    for path in named - outs:
        assert any(dep == Path(path) or dep.is_relative_to(path) for dep in read), path


# ---- hyperparameters


def declared(stage: str) -> set[str]:
    """Keys of params.yaml in a stage's `params`; the whole card is `card`."""
    keys = set()
    for entry in stage_entry(stage)["params"]:
        keys.add("card" if isinstance(entry, dict) else entry)
        assert not isinstance(entry, dict) or list(entry) == ["datasets/${dataset}.yaml"]
    return keys


def attribute_chain(node: ast.AST) -> list[str] | None:
    """['params', 'training', 'threads'] of `params.training.threads`."""
    names = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    return [node.id, *names[::-1]] if isinstance(node, ast.Name) else None


def keys_read_in(tree: ast.AST) -> set[str]:
    """`section` or `section.leaf` of every `params.section[.leaf]` that the code reads.

    `section.model_dump()` reads the section. `resolve_model(params.model, card).image_size` reads that leaf alone:
    backbone and weights do not decide the size. A section bound to a name (`settings = params.detect`) is read whole.
    """
    keys, inside = set(), set()
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Attribute)
            and node.attr == "image_size"
            and isinstance(node.value, ast.Call)
            and ast.unparse(node.value.func) == "resolve_model"
        ):
            assert ast.unparse(node.value.args[0]) == "params.model"
            keys.add("model.image_size")
            inside |= set(map(id, ast.walk(node)))
    for node in ast.walk(tree):
        chain = attribute_chain(node) if isinstance(node, ast.Attribute) and id(node) not in inside else None
        if chain and chain[0] == "params" and chain[1] in Params.model_fields:
            inside |= set(map(id, ast.walk(node)))
            section = Params.model_fields[chain[1]].annotation
            leaf = len(chain) > 2 and chain[2] in getattr(section, "model_fields", {})
            keys.add(f"{chain[1]}.{chain[2]}" if leaf else chain[1])
    return keys


def functions_given_params(tree: ast.AST) -> set[str]:
    """Names of functions and classes that get the whole Params object as an argument."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            arguments = [*node.args, *(keyword.value for keyword in node.keywords)]
            if any(isinstance(argument, ast.Name) and argument.id == "params" for argument in arguments):
                names.add(ast.unparse(node.func).split(".")[-1])
    return names


def definition(name: str, files: set[str]) -> ast.AST | None:
    """A function that takes Params, wherever in the stage's files it is defined."""
    for file in sorted(files):
        for node in ast.walk(syntax(ROOT / file)):
            if isinstance(node, ast.FunctionDef) and node.name == name:
                for argument in (*node.args.args, *node.args.kwonlyargs):
                    if (
                        argument.arg == "params"
                        and argument.annotation
                        and ast.unparse(argument.annotation) == "Params"
                    ):
                        return node
    return None


def branch(tree: ast.AST, stage: str) -> ast.AST:
    """Of the download script, the branch that the item takes: `if what == 'images'`."""
    _, _, item = stage.partition("@")
    if not item:
        return tree

    class Choose(ast.NodeTransformer):
        def visit_If(self, node: ast.If) -> object:
            if ast.unparse(node.test) == "what == 'images'":
                return node.body if item == "images" else node.orelse
            return self.generic_visit(node)

    return Choose().visit(ast.parse(ast.unparse(tree)))


def read_by(stage: str) -> set[str]:
    files = imported_by_stage(stage)
    tree = branch(syntax(script(stage)), stage)
    keys, todo, seen = set(), [tree], set()
    while todo:
        tree = todo.pop()
        keys |= keys_read_in(tree)
        if re.search(r"\bread_card\(", ast.unparse(tree)):
            keys.add("card")
        for name in functions_given_params(tree) - seen:
            seen.add(name)
            found = definition(name, files)
            assert found is not None, f"{stage}: {name} takes params but no such function was found"
            todo.append(found)
    return keys


def without_leaves_of_sections(keys: set[str]) -> set[str]:
    return {key for key in keys if key.split(".")[0] not in keys or "." not in key}


@pytest.mark.parametrize("stage", STAGES)
def test_params_are_what_the_stage_reads(stage):
    read, named = without_leaves_of_sections(read_by(stage)), declared(stage)
    undeclared = {key for key in read if key not in named and key.split(".")[0] not in named}
    unread = {key for key in named if key not in read and not any(k.startswith(f"{key}.") for k in read)}
    assert (undeclared, unread) == (set(), set())


@pytest.mark.parametrize("stage", STAGES)
def test_the_docstring_names_the_same_params(stage):
    if not stage.startswith("download"):
        assert set(re.split(r",\s*", params_line(stage))) == declared(stage) - {"card"}


def params_line(stage: str) -> str:
    """What a stage's docstring says of its params, lines that go on joined."""
    documentation = ast.get_docstring(syntax(script(stage)))
    return " ".join(re.search(r"^params  (.*(?:\n +\S.*)*)", documentation, re.MULTILINE)[1].split())


def test_the_docstring_of_download_names_what_each_item_adds():
    line = params_line("download@images")
    shared = declared("download@images") & declared("download@weights") - {"card"}
    assert set(re.split(r",\s*", line.split(";")[0])) == shared
    for item in ("images", "weights"):
        own = declared(f"download@{item}") - shared - {"card"}
        assert re.search(rf"{item}: (\w+)", line)[1] in own
        assert len(own) == 1


def test_every_key_of_params_yaml_is_read_by_some_code():
    read = {
        node.attr
        for path in (*(ROOT / "lesionlab").rglob("*.py"), *(ROOT / "stages").glob("*.py"))
        for node in ast.walk(syntax(path))
        if isinstance(node, ast.Attribute)
    }
    for section, content in read_yaml_file(ROOT / "params.yaml").items():
        for key in [section, *(content if isinstance(content, dict) else ())]:
            assert key in read, f"{section}.{key}"


def test_every_section_is_declared_by_some_stage():
    sections = set(read_yaml_file(ROOT / "params.yaml"))
    assert {key.split(".")[0] for stage in STAGES for key in declared(stage)} - {"card"} == sections


def test_every_file_that_a_plot_shows_is_an_out():
    outs = set()
    for stage in STAGES:
        entry = stage_entry(stage)
        outs |= {
            next(iter(out)) if isinstance(out, dict) else out for out in (*entry["outs"], *entry.get("metrics", []))
        }
    for plot in pipeline()["plots"]:
        files = [plot] if isinstance(plot, str) else list(next(iter(plot.values()))["y"])
        for file in files:
            assert any(Path(file).is_relative_to(out) for out in outs), file
    for artifact in pipeline()["artifacts"].values():
        assert artifact["path"] in outs


def test_small_results_are_kept_in_git():
    """Metrics are never in the DVC cache; of outs only images, models and boxes, not tables for plots."""
    for stage in STAGES:
        entry = stage_entry(stage)
        for metric in entry.get("metrics", []):
            assert next(iter(metric.values())) == {"cache": False}
        for out in entry["outs"]:
            if isinstance(out, str):
                assert out.startswith(("data/", "models/", "pictures/")), out


def test_the_modules_of_this_test_are_those_of_this_python():
    assert module_file("lesionlab.params") == Path(sys.modules["lesionlab.params"].__file__)
