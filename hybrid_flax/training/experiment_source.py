"""The source of an experiment, kept in the folder of its run as text: that of its file, and of what it imports.

It is run only where the user trusts the folder, and only where the file itself is gone or has changed.
"""

import ast
import importlib.util
import os
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from hybrid_flax.config import check_trust, load_module, unregistered
from hybrid_flax.errors import ConfigError, running
from hybrid_flax.files import read_json, write_whole
from hybrid_flax.training.folder import RunFolder

__all__ = ["is_same_source", "kept_modules", "own_modules", "register_own", "run_experiment", "save_source"]

_PACKAGE = Path(__file__).parents[1]


def register_own(workdir: str | os.PathLike, experiment: str | None = None, *, trust: bool = False) -> None:
    """Run `experiment` for what it registers of a run's, or with `trust` the file that the folder names.

    Where that file is gone or has changed, the source that the folder keeps of it is run, and a line says so.
    Raises ConfigError in one line where the run needs what is not registered and nothing says which file may be run: a
    folder may come from anywhere, and a file that it names is a program.
    """
    folder = RunFolder(workdir)
    if experiment is not None:
        needs = folder.config.exists() and unregistered(read_json(folder.config, dict))
        if needs and not is_same_source(folder, experiment):
            print(f"{experiment} is run, which is not as {folder.experiment} keeps it", file=sys.stderr)
        load_module(experiment)
    if not folder.config.exists():
        return
    own = ", ".join(unregistered(read_json(folder.config, dict)))
    if own and experiment is not None:
        raise ConfigError(f"{folder.path} needs {own}, and {experiment} registers none of that name")
    named = folder.read_about().get("experiment") if own or (trust and folder.about.exists()) else None
    if own and not named:
        raise ConfigError(f"{folder.path} needs {own}, and run.json names no experiment: add --config")
    if own:
        check_trust(f"{folder.path} needs {own}", str(named), trust)
    if own or (named and (Path(str(named).partition(":")[0]).is_file() or folder.experiment.is_file())):
        run_experiment(folder, str(named))  # with trust also for readers and hooks, of which a config does not speak


def save_source(folder: RunFolder, experiment: str) -> None:
    """Write the file of `path.py[:arg]` as experiment.py, and the user's own modules that it imports into modules/.

    They are those that are imported and no installed packages, a package as a whole as far as it is imported.
    """
    source = _as_run(experiment)
    if source is None:
        return
    for name, module in own_modules(source).items():
        path = folder.modules.joinpath(*name.split("."))
        path = path / "__init__.py" if hasattr(module, "__path__") else path.with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, Path(str(module.__file__)).read_bytes())
    write_whole(folder.experiment, source)


def own_modules(source: bytes) -> dict[str, ModuleType]:
    """The modules by name that a source imports, and those that they import, which are loaded and not installed."""
    found: dict[str, ModuleType] = {}
    waiting = [source]
    while waiting:
        for top in _imported(waiting.pop()):
            module = sys.modules.get(top)
            if top in found or not (_is_own(module) or getattr(module, "__file__", "") is None):
                continue
            parts = [name for name in sys.modules if name == top or name.startswith(f"{top}.")]
            new = {name: sys.modules[name] for name in parts if name not in found and _is_own(sys.modules[name])}
            found |= new
            waiting += [Path(str(module.__file__)).read_bytes() for module in new.values()]
    return found


def is_same_source(folder: RunFolder, experiment: str) -> bool:
    """Whether the file of `path.py[:arg]`, and the modules that are found now, are those that the folder keeps.

    Also where it keeps none.
    """
    if not folder.experiment.is_file():
        return True
    return _on_disk(experiment) == folder.experiment.read_bytes() and not any(
        _found(path.relative_to(folder.modules)) != path.read_bytes() for path in folder.modules.rglob("*.py")
    )


def run_experiment(folder: RunFolder, experiment: str) -> None:
    """Run `path.py[:arg]`, or what the folder keeps of it where that is gone or has changed: then a line says so.

    Raises ConfigError as `load_module`. Only for folders that the user trusts.
    """
    if is_same_source(folder, experiment):
        load_module(experiment)
        return
    name, colon, arg = experiment.partition(":")
    what = "has changed since the run began" if Path(name).exists() else "is not there"
    print(f"{name} {what}: {folder.experiment}, its source then, is run", file=sys.stderr)
    with kept_modules(folder):
        load_module(f"{folder.experiment}{colon}{arg}")


@contextmanager
def kept_modules(folder: RunFolder) -> Iterator[None]:
    """The modules that the folder keeps are imported in place of others of their names, and stay so.

    In the end all of them are, for functions that import them when they are called.
    """
    kept, names = str(folder.modules.absolute()), _names(folder)
    tops = {name.partition(".")[0] for name in names}
    for name in [name for name in sys.modules if name.partition(".")[0] in tops]:
        del sys.modules[name]
    sys.path.insert(0, kept)
    importlib.invalidate_caches()
    try:
        yield
        for name in names:
            with running(folder.modules / name, "does not load"):
                importlib.import_module(name)
    finally:
        sys.path.remove(kept)


def _names(folder):
    """The modules that a folder keeps."""
    parts = (path.relative_to(folder.modules).with_suffix("").parts for path in folder.modules.rglob("*.py"))
    return sorted({".".join(part for part in names if part != "__init__") for names in parts})


def _found(path):
    """The bytes of a module, `package/part.py`, where Python finds it now; None where it does not."""
    try:
        spec = importlib.util.find_spec(path.with_suffix("").parts[0])
        places = [*(spec.submodule_search_locations or ())] if spec else []
        place = Path(places[0]).parent if places else Path(str(spec.origin)).parent if spec else None
        return None if place is None else (place / path).read_bytes()
    except (ImportError, OSError, ValueError):
        return None


def _as_run(experiment):
    """The bytes of the file of `path.py[:arg]` as this process ran it, or else as it is; None where there is none."""
    path = Path(experiment.partition(":")[0])
    module = sys.modules.get(f"experiment_{path.stem}")
    if module is not None and getattr(module, "__file__", "") == str(path):
        return vars(module).get("__source__")
    return _on_disk(experiment)


def _on_disk(experiment):
    path = Path(experiment.partition(":")[0])
    try:
        return path.read_bytes() if experiment and path.is_file() else None
    except OSError:
        return None


def _imported(source):
    """Top-level names of what a source imports."""
    try:
        nodes = list(ast.walk(ast.parse(source)))
    except (SyntaxError, ValueError):
        return set()
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module and not node.level]
    return {name.partition(".")[0] for name in names}


def _is_own(module):
    file = getattr(module, "__file__", None)
    if not file or not file.endswith(".py"):
        return False
    path = Path(os.path.realpath(file))
    installed = {"site-packages", "dist-packages"} & {*path.parts}
    library = Path(os.path.realpath(sysconfig.get_paths()["stdlib"]))
    return path.is_file() and not installed and not path.is_relative_to(library) and not path.is_relative_to(_PACKAGE)
