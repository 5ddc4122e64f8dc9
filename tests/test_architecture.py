"""The rules of the house, held by tests: imports, keys, signatures, docstrings, `__all__`, sizes.

Each rule is a small function that returns what breaks it; every one is tried first on a source that does break it.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import spahgc
from spahgc import _keys

SRC = Path(spahgc.__file__).parent
FILES = sorted(SRC.rglob("*.py"))
PACKAGES = sorted(path.parent.name for path in SRC.glob("*/__init__.py"))
# Where the public names are; `methods`, `metrics`, `nn` and `encoders` have their own shapes of signature.
PUBLIC = ["datasets", "get", "io", "pl", "pp", "tl"]

# From the ground up: a room may import from the floors below its own, and from itself.
FLOORS = [
    {"_checks", "_keys"},
    {"_settings"},
    {"_geometry", "_slides"},
    {"_disk", "_run", "metrics"},
    {"_links", "_tables", "encoders"},
    {"get", "io", "nn"},
    {"datasets", "methods", "pp"},
    {"pl", "tl"},
    {"cli"},
]
FLOOR = {name: floor for floor, names in enumerate(FLOORS) for name in names}

TABLES = {"anndata", "scanpy", "spatialdata", "spatialdata_plot", "squidpy"}
PLOTTING = {"matplotlib", "seaborn"}
PICKLING = {"cloudpickle", "dill", "marshal", "pickle", "shelve"}
RUNNING = {"torch.load", "torch.save", "joblib.load", "joblib.dump", "yaml.load", "eval", "exec"}
# What a part may not use at all; the door between tables and methods is `_tables`.
FORBIDDEN = {
    "encoders": TABLES | PLOTTING,
    "methods": TABLES | PLOTTING,
    "metrics": TABLES | PLOTTING | {"torch"},
    "nn": TABLES | PLOTTING | {"pandas"},
}

SLOTS = {"layers", "obs", "obsm", "obsp", "uns", "var", "varm", "varp"}
# Values of `_keys` that mean nothing else anywhere: written out in another module, they are keys. The exception is a
# parameter as well, and stands in messages.
DISTINCTIVE = {
    value
    for name, value in vars(_keys).items()
    if name.isupper() and isinstance(value, str) and "_" in value.strip("_")
} - {_keys.MPP, _keys.TILE_QUALITY}  # the latter is the name of functions

MAX_LINES = 500
MAX_TOTAL_LINES = 19_850
MAX_STATEMENTS = 11_100
MAX_FILES = 115
MAX_PRIVATE_ROOMS = 10
MAX_POSITIONAL = 3


def part_of(path: Path) -> str:
    """Subpackage, or top-level module, that a file belongs to."""
    return path.relative_to(SRC).parts[0].removesuffix(".py")


def name_of(path: Path) -> str:
    return ".".join(("spahgc", *path.relative_to(SRC).with_suffix("").parts)).removesuffix(".__init__")


def imported(source: str, module: str, *, is_package: bool) -> Iterator[str]:
    """Absolute names of everything that a source imports, at any depth."""
    base = module.split(".") if is_package else module.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = base[: len(base) - node.level + 1] if node.level else []
            stem = ".".join([*start, node.module] if node.module else start)
            # `from . import a` and `from .b import c` may both name modules.
            yield from (f"{stem}.{alias.name}" for alias in node.names)


def bad_imports(source: str, module: str, *, is_package: bool = False) -> list[str]:
    own = module.split(".")[1] if "." in module else None
    found = []
    for name in imported(source, module, is_package=is_package):
        top, *rest = name.split(".")
        if top != "spahgc":
            if top in FORBIDDEN.get(own or "", set()):
                found.append(f"{own} may not use {top}")
        elif own is not None and rest and rest[0] != own and FLOOR.get(rest[0], -1) >= FLOOR[own]:
            found.append(f"{own} may not import {rest[0]}")
    return found


def literal_keys(source: str) -> list[str]:
    """Keys of slots written as literals: ``x.obsm["a"]``, ``x.uns.get("a")``, ``"a" in x.obs``, ``obsm={"a": y}``."""
    tree = ast.parse(source)
    found = []

    def is_slot(node: ast.AST) -> bool:
        return isinstance(node, ast.Attribute) and node.attr in SLOTS

    def is_literal(node: ast.AST | None) -> bool:
        if isinstance(node, ast.JoinedStr):
            return any(isinstance(value, ast.Constant) for value in node.values)
        return isinstance(node, ast.Constant) and isinstance(node.value, str)

    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        candidates: list[ast.AST | None] = []
        if isinstance(node, ast.Subscript) and is_slot(node.value):
            candidates = [node.slice]
        elif isinstance(node, ast.Call):
            if (
                isinstance(node.func, ast.Attribute)
                and is_slot(node.func.value)
                and node.func.attr in {"get", "pop", "setdefault"}
            ):
                candidates = list(node.args[:1])
            for keyword in node.keywords:
                if keyword.arg in SLOTS and isinstance(keyword.value, ast.Dict):
                    candidates += keyword.value.keys
        elif (
            isinstance(node, ast.Compare)
            and isinstance(node.ops[0], ast.In | ast.NotIn)
            and is_slot(node.comparators[0])
        ):
            candidates = [node.left]
        elif isinstance(node, ast.Constant) and id(node) not in docstrings and node.value in DISTINCTIVE:
            candidates = [node]
        found += [
            f"line {node.lineno}: {ast.unparse(key)}" for key in candidates if key is not None and is_literal(key)
        ]
    return found


def module_imports(path: Path) -> set[str]:
    """Files of the package that a file imports at run time, at any depth."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = [ast.Pass()]
    names = imported(ast.unparse(tree), name_of(path), is_package=path.name == "__init__.py")
    modules = {name_of(file) for file in FILES}
    found = {name if name in modules else name.rpartition(".")[0] for name in names}
    return {name for name in found & modules if name not in {"spahgc", name_of(path)}}


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of files that import each other."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    names = sorted(graph)
    edges = np.array([(names.index(a), names.index(b)) for a in names for b in graph[a]]).reshape(-1, 2)
    matrix = coo_array((np.ones(len(edges)), edges.T), shape=(len(names), len(names)))
    n, label = connected_components(matrix, directed=True, connection="strong")
    groups = [[names[i] for i in np.flatnonzero(label == group)] for group in range(n)]
    return [group for group in groups if len(group) > 1]


def defined_twice(sources: dict[str, str]) -> list[str]:
    """Names of classes that several files define, or one file twice."""
    nodes = [node for source in sources.values() for node in ast.walk(ast.parse(source))]
    names = Counter(node.name for node in nodes if isinstance(node, ast.ClassDef))
    return sorted(name for name, n in names.items() if n > 1)


def asserts(source: str) -> list[str]:
    return [f"line {node.lineno}" for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Assert)]


def unsafe_loads(source: str) -> list[str]:
    """Whatever can run code that a file brings along."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [getattr(node, "module", None) or "", *(alias.name for alias in node.names)]
            found += [f"line {node.lineno}: {name}" for name in names if name.partition(".")[0] in PICKLING]
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in RUNNING or called.endswith("read_pickle"):
                found.append(f"line {node.lineno}: {called}")
            for keyword in node.keywords:
                wanted = getattr(keyword.value, "value", None) is not False
                if keyword.arg in {"allow_pickle", "trust_remote_code"} and wanted:
                    found.append(f"line {node.lineno}: {keyword.arg}")
    return found


def order_of(name: str) -> tuple[int, str]:
    """Constants, then classes, then the rest, as ruff's RUF022 sorts them."""
    return (0 if name.isupper() else 1 if name[:1].isupper() else 2, name)


def bad_signature(function: Callable[..., Any]) -> list[str]:
    taken = [value for name, value in inspect.signature(function).parameters.items() if name not in {"self", "cls"}]
    kinds = [parameter.kind for parameter in taken]
    positional = kinds.count(inspect.Parameter.POSITIONAL_ONLY) + kinds.count(inspect.Parameter.POSITIONAL_OR_KEYWORD)
    found = [f"{positional} positional parameters, at most {MAX_POSITIONAL}"] if positional > MAX_POSITIONAL else []
    return found + (["takes *args"] if inspect.Parameter.VAR_POSITIONAL in kinds else [])


def documented_parameters(docstring: str) -> list[str]:
    """Names in the numpydoc section ``Parameters``."""
    section = re.search(
        r"^Parameters\n-+\n(.*?)(?=^\S[^\n]*\n-{3,}\n|\Z)", inspect.cleandoc(docstring), re.MULTILINE | re.DOTALL
    )
    if section is None:
        return []
    headings = [line for line in section[1].splitlines() if line and not line[0].isspace()]
    return [name.strip().lstrip("*") for line in headings for name in line.partition(" : ")[0].split(",")]


def bad_docstring(obj: Callable[..., Any]) -> list[str]:
    docstring = obj.__doc__
    if not docstring:
        return ["no docstring"]
    taken = [
        name for name in inspect.signature(obj).parameters if name not in {"self", "cls"} and not name.startswith("_")
    ]
    documented = documented_parameters(docstring)
    if not documented:  # short: the summary names each parameter
        documented = [name for name in taken if f"`{name}`" in docstring]
    return [] if sorted(documented) == sorted(taken) else [f"takes {taken}, documents {documented}"]


def public(package: str) -> dict[str, Any]:
    module = importlib.import_module(f"spahgc.{package}")
    return {name: getattr(module, name) for name in getattr(module, "__all__", ())}


def members(cls: type) -> dict[str, Callable[..., Any]]:
    """Public methods that a class defines itself."""
    return {
        name: getattr(cls, name)
        for name, value in vars(cls).items()
        if not name.startswith("_") and callable(getattr(cls, name))
    }


def callables(package: str) -> dict[str, Callable[..., Any]]:
    """Public functions and classes of a subpackage, and the public methods of these classes, by name."""
    found = {name: obj for name, obj in public(package).items() if callable(obj)}
    for name, obj in list(found.items()):
        if inspect.isclass(obj):
            found |= {f"{name}.{of}": method for of, method in members(obj).items()}
    return found


# The rules see what breaks them.


@pytest.mark.parametrize(
    ("source", "module", "expected"),
    [
        ("from ..tl import predict", "spahgc.methods.knn", ["methods may not import tl"]),
        ("def f():\n    from .. import pl", "spahgc.tl._predict", ["tl may not import pl"]),
        ("import spahgc.cli", "spahgc.pl._expression", ["pl may not import cli"]),
        ("from .. import methods", "spahgc._tables._cohorts", ["_tables may not import methods"]),
        ("from .._tables import x", "spahgc.encoders._table", ["encoders may not import _tables"]),
        ("from .pp import x", "spahgc.get", ["get may not import pp"]),
        ("import anndata as ad", "spahgc.nn.graph", ["nn may not use anndata"]),
        ("from matplotlib.figure import Figure", "spahgc.methods.base", ["methods may not use matplotlib"]),
        (
            "from .._slides import Slide\nfrom ..nn.graph import build\nfrom .base import Method",
            "spahgc.methods.knn",
            [],
        ),
        ("from ..tl import predict\nimport matplotlib", "spahgc.pl._expression", ["pl may not import tl"]),
        ("from .. import _keys\nfrom .._slides import Slide\nimport anndata", "spahgc._tables._cohorts", []),
    ],
)
def test_rule_of_imports(source: str, module: str, expected: list[str]) -> None:
    assert bad_imports(source, module) == expected


@pytest.mark.parametrize(
    ("source", "n_found"),
    [
        ("a.obsm['spatial']", 1),
        ("a.uns.get('x', {})", 1),
        ("if 'x' not in table.obs: pass", 1),
        ("AnnData(x, obsm={'spatial': y}, var=genes)", 1),
        ("a.obsm[f'image_{encoder}']", 1),
        ("name = 'spatialdata_attrs'", 1),
        ("a.obsm[keys.SPATIAL]; a.uns[key][keys.PARAMS]; a.obs[f'{key}{name}']; frame['x']", 0),
        ("'''spatialdata_attrs'''", 0),
    ],
)
def test_rule_of_keys(source: str, n_found: int) -> None:
    assert len(literal_keys(source)) == n_found


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "torch.load(f)",
        "np.load(f, allow_pickle=True)",
        "from_pretrained(x, trust_remote_code=y)",
    ],
)
def test_rule_of_unsafe_loads(source: str) -> None:
    assert len(unsafe_loads(source)) == 1
    assert unsafe_loads("np.load(f, allow_pickle=False); safetensors.torch.load_file(f); model.eval()") == []


def test_rule_of_asserts() -> None:
    assert asserts("def f(x):\n    assert x") == ["line 2"]
    assert asserts("# assert x") == []


def test_rule_of_signatures() -> None:
    def good(adata, key, other, *, rng=0, **kwargs): ...
    def too_many(adata, key, other, another): ...
    def star(adata, *args): ...

    assert bad_signature(good) == []
    assert bad_signature(too_many) == ["4 positional parameters, at most 3"]
    assert bad_signature(star) == ["takes *args"]


def test_rule_of_docstrings() -> None:
    def good(adata, *, a=1, b=2, **kwargs):
        """Say it.

        Parameters
        ----------
        adata
            A table.
        a, b
            Numbers: as in
            two lines.
        **kwargs
            More.

        Returns
        -------
        nothing
        """

    def missing(adata, *, a=1):
        """Say it.

        Parameters
        ----------
        adata
            A table.
        """

    def silent(): ...

    assert bad_docstring(good) == []
    assert bad_docstring(missing) == ["takes ['adata', 'a'], documents ['adata']"]
    assert bad_docstring(silent) == ["no docstring"]


def test_rule_of_order() -> None:
    assert sorted(["b", "Method", "METHODS", "KNN", "a"], key=order_of) == ["KNN", "METHODS", "Method", "a", "b"]


# The package keeps them.


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_file(path: Path) -> None:
    source = path.read_text()
    assert bad_imports(source, name_of(path), is_package=path.name == "__init__.py") == []
    assert asserts(source) == []
    assert unsafe_loads(source) == []
    assert len(source.splitlines()) <= MAX_LINES
    if part_of(path) != "_keys":
        assert literal_keys(source) == []


def test_the_size_of_the_whole() -> None:
    sources = [path.read_text() for path in FILES]
    assert len(FILES) <= MAX_FILES
    assert sum(source.count("\n") for source in sources) <= MAX_TOTAL_LINES
    assert sum(isinstance(node, ast.stmt) for s in sources for node in ast.walk(ast.parse(s))) <= MAX_STATEMENTS


def test_every_room_has_a_floor_and_few_are_private() -> None:
    rooms = {part_of(path) for path in FILES} - {"__init__"}
    assert rooms == set(FLOOR)
    assert len([room for room in rooms if room.startswith("_")]) <= MAX_PRIVATE_ROOMS


def test_no_circle_of_imports() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == [["b", "c"]]
    assert circles({name_of(path): module_imports(path) for path in FILES}) == []


def test_a_class_is_defined_once() -> None:
    assert defined_twice({"a": "class A: ...", "b": "class A: ...\nclass B: ..."}) == ["A"]
    assert defined_twice({name_of(path): path.read_text() for path in FILES}) == []


def test_each_concept_has_one_home() -> None:
    """The table of concepts in docs/contributing.md names things that exist, each concept once."""
    text = (SRC.parents[1] / "docs" / "contributing.md").read_text()
    table = text[text.index("| concept | home |") :].split("\n\n")[0].splitlines()[2:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    assert len(rows) >= 20
    assert [name for name, n in Counter(concept for concept, *_ in rows).items() if n > 1] == []
    for concept, home, *_ in rows:
        for name in re.findall(r"`([^`]+)`", home):
            module, _, attribute = name.removesuffix("()").rpartition(".")
            try:
                found = importlib.import_module(f"spahgc.{name}")
            except ModuleNotFoundError:
                found = getattr(importlib.import_module(f"spahgc.{module}"), attribute, None)
            assert found is not None, f"{concept}: there is no spahgc.{name}"


@pytest.mark.parametrize("package", PACKAGES)
def test_all_is_sorted_and_true(package: str) -> None:
    module = importlib.import_module(f"spahgc.{package}")
    names = getattr(module, "__all__", [])
    assert names == sorted(names, key=order_of)
    assert len(set(names)) == len(names)
    own = {
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and str(getattr(value, "__module__", "")).startswith("spahgc")
        and not inspect.ismodule(value)
    }
    assert own <= set(names)
    assert [name for name in names if not hasattr(module, name)] == []


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_is_documented(package: str) -> None:
    assert [name for name, obj in public(package).items() if callable(obj) and not obj.__doc__] == []


@pytest.mark.parametrize("package", PUBLIC)
def test_public_callables(package: str) -> None:
    problems = {name: bad_signature(obj) + bad_docstring(obj) for name, obj in callables(package).items()}
    assert {name: found for name, found in problems.items() if found} == {}
