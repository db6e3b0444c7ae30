"""What must never be in the product: ways to run code that comes with data."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("detectors", "pruning", "server", "proto")
FILES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
PICKLES = {"pickle", "cPickle", "_pickle", "joblib", "dill", "cloudpickle", "shelve", "marshal"}
BUILTINS = {"eval", "exec", "compile", "__import__"}


def offences(source: str) -> list[str]:
    """What a source does that it must not, as `line: what`."""
    tree = ast.parse(source)
    names = _module_names(tree)
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            found += [(node.lineno, f"imports {name}") for name in _imported(node) if _forbidden_import(name)]
        elif isinstance(node, ast.Call):
            called = _called(node.func, names)
            if (
                called.removeprefix("builtins.") in BUILTINS
                or called == "torch.load"
                or called.endswith(".read_pickle")
            ):
                found.append((node.lineno, f"calls {called}"))
            elif called in {"numpy.load", "numpy.lib.npyio.load"} and not _refuses_pickle(node):
                found.append((node.lineno, "calls numpy.load without allow_pickle=False"))
            elif called.endswith("import_module") and _names_forbidden(node):
                found.append((node.lineno, "imports it by name"))
    return [f"{line}: {what}" for line, what in found]


def _module_names(tree: ast.AST) -> dict[str, str]:
    """Local name -> full name, of everything imported anywhere in the file."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {
                (a.asname or a.name.split(".")[0]): (a.name if a.asname else a.name.split(".")[0]) for a in node.names
            }
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {(a.asname or a.name): f"{node.module}.{a.name}" for a in node.names}
    return names


def _imported(node: ast.Import | ast.ImportFrom) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [f"{node.module or ''}.{alias.name}" for alias in node.names]


def _forbidden_import(name: str) -> bool:
    parts = set(name.split("."))
    return bool(parts & PICKLES) or name in {"torch.load", "torch.serialization.load"}


def _names_forbidden(call: ast.Call) -> bool:
    return any(isinstance(given, ast.Constant) and _forbidden_import(str(given.value)) for given in call.args)


def _called(function: ast.expr, names: dict[str, str]) -> str:
    """The full dotted name of what is called, as far as the source tells."""
    parts: list[str] = []
    while isinstance(function, ast.Attribute):
        parts.append(function.attr)
        function = function.value
    if not isinstance(function, ast.Name):
        return "." + ".".join(reversed(parts))
    return ".".join([names.get(function.id, function.id), *reversed(parts)])


def _refuses_pickle(call: ast.Call) -> bool:
    return any(
        keyword.arg == "allow_pickle" and isinstance(keyword.value, ast.Constant) and keyword.value.value is False
        for keyword in call.keywords
    )


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_product_never_runs_code_from_data(path: Path) -> None:
    """No pickle in any form, no torch.load, no eval, exec or compile, no numpy.load that may unpickle."""
    assert offences(path.read_text(encoding="utf-8")) == []


def test_the_product_is_where_this_test_looks() -> None:
    """A moved folder does not make the test above pass with nothing."""
    for folder in FOLDERS:
        assert any(path.is_relative_to(ROOT / folder) for path in FILES)


@pytest.mark.parametrize(
    "planted",
    [
        "import pickle",
        "import pickle as p",
        "from pickle import loads",
        "from _pickle import loads",
        "import joblib",
        "from joblib import load",
        "from sklearn.externals import joblib",
        "import dill",
        "import cloudpickle",
        "from ray import cloudpickle",
        "import shelve",
        "def f():\n    import marshal",
        "import torch\ntorch.load('x')",
        "import torch as t\nt.load('x', weights_only=True)",
        "from torch import load",
        "from torch import load as read\nread('x')",
        "from torch.serialization import load",
        "eval('1')",
        "exec('1')",
        "compile('1', '', 'eval')",
        "import builtins\nbuiltins.eval('1')",
        "from builtins import exec as run\nrun('1')",
        "__import__('pickle')",
        "import importlib\nimportlib.import_module('pickle')",
        "import numpy as np\nnp.load('x')",
        "import numpy as np\nnp.load('x', allow_pickle=True)",
        "import numpy as np\nnp.load('x', None)",
        "from numpy import load\nload('x')",
        "import pandas as pd\npd.read_pickle('x')",
    ],
)
def test_planted_offences_are_caught(planted: str) -> None:
    """The checker sees through aliases and wherever in a file they stand."""
    assert offences(planted)


@pytest.mark.parametrize(
    "innocent",
    [
        "network.eval()",
        "import re\nre.compile('a')",
        "import numpy as np\nnp.load('x', allow_pickle=False)",
        "from safetensors.numpy import load\nload(b'')",
        "import torch\ntorch.nn.Linear(1, 1).load_state_dict({})",
        "import json\njson.load(open('x'))",
        "note = 'pickle.loads(x)'",
    ],
)
def test_innocent_code_is_let_through(innocent: str) -> None:
    """Methods and functions that only share a name are fine."""
    assert offences(innocent) == []
