"""Nothing in the sources loads what can execute code, but for the one importer that says so."""

import ast
from pathlib import Path

import pytest

import fuserec

ROOT = Path(fuserec.__file__).parents[2]
# It reads a format that is pickle, in a process of its own, where the user says so.
ALLOWED = {Path("src/fuserec/importers/_recbole_reader.py")}
# Modules whose files are pickle, or that make code of bytes.
MODULES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "torch.package"}
# Functions that run what they read, by the end of their name.
CALLS = {"eval", "exec", "torch.load", "torch.save", "torch.hub.load", "pandas.read_pickle", "pd.read_pickle"}
SAFE_YAML = {"SafeLoader", "CSafeLoader", "BaseLoader", "CBaseLoader"}
FLAGS = {"allow_pickle": True, "trust_remote_code": True, "weights_only": False}


def dotted(node: ast.expr) -> str:
    """Return `a.b.c` for such an expression, what of it is a name else."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def offences(source: str) -> list[str]:
    """Return what a source does that it may not, each with its line."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names]
            if isinstance(node, ast.ImportFrom):
                module = node.module or ""
                names = [module, *(f"{module}.{name}" for name in names)]
            banned = MODULES | {call for call in CALLS if "." in call}
            bad = [name for name in names if name in banned or name.split(".")[0] in MODULES]
            found += [f"line {node.lineno}: imports {name}" for name in bad]
        elif isinstance(node, ast.Call):
            name, flags = dotted(node.func), {word.arg: word.value for word in node.keywords}
            if name in CALLS:
                found.append(f"line {node.lineno}: calls {name}")
            if name in ("__import__", "importlib.import_module") and not isinstance(node.args[0], ast.Constant):
                continue  # a name that is computed: what is imported is installed already
            if name in ("yaml.load", "yaml.load_all") and _loader(node, flags) not in SAFE_YAML:
                found.append(f"line {node.lineno}: {name} without SafeLoader")
            if name in ("yaml.unsafe_load", "yaml.full_load", "yaml.unsafe_load_all", "yaml.full_load_all"):
                found.append(f"line {node.lineno}: calls {name}")
            for flag, bad in FLAGS.items():
                value = flags.get(flag)
                # Anything but the plain harmless constant: a variable may turn out to be either.
                if value is not None and not (isinstance(value, ast.Constant) and value.value is not bad):
                    found.append(f"line {node.lineno}: {flag} may be {bad}")
    return found


def _loader(node: ast.Call, flags: dict[str | None, ast.expr]) -> str:
    loader = flags.get("Loader") or (node.args[1] if len(node.args) > 1 else None)
    return dotted(loader).split(".")[-1] if loader is not None else ""


def sources() -> list[Path]:
    return sorted(path.relative_to(ROOT) for room in ("src", "bench") for path in (ROOT / room).rglob("*.py"))


def test_there_are_sources() -> None:
    names = {str(path) for path in sources()}
    assert {"src/fuserec/models/checkpoint.py", "bench/quality.py"} <= names


@pytest.mark.parametrize("path", sources(), ids=str)
def test_source_loads_nothing_that_executes(path: Path) -> None:
    if path not in ALLOWED:
        found = offences((ROOT / path).read_text(encoding="utf-8"))
        assert not found, f"{path} {'; '.join(found)}: use safetensors, JSON or Parquet"


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import pickle as p",
        "from pickle import loads",
        "def f():\n    import dill",
        "import joblib.externals",
        "from torch import load",
        "import torch\ntorch.load(path)",
        "import torch\ntorch.load(path, weights_only=True)",
        "import numpy as np\nnp.load(path, allow_pickle=True)",
        "import numpy as np\nnp.load(path, allow_pickle=trusted)",
        "eval(text)",
        "exec(text)",
        "import yaml\nyaml.load(text)",
        "import yaml\nyaml.load(text, Loader=yaml.Loader)",
        "import yaml\nyaml.load(text, yaml.UnsafeLoader)",
        "import yaml\nyaml.unsafe_load(text)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
    ],
)
def test_offence_is_found(source: str) -> None:
    assert offences(source)


@pytest.mark.parametrize(
    "source",
    [
        "model.eval()",
        "names.list.eval(element)",
        "import yaml\nyaml.load(text, Loader=yaml.SafeLoader)",
        "import yaml\nyaml.safe_load(text)",
        "np.load(path, allow_pickle=False)",
        "from safetensors.torch import load",
        "# pickle, torch.load and eval( in a comment",
    ],
)
def test_what_is_harmless_is_no_offence(source: str) -> None:
    assert not offences(source)
