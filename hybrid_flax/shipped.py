"""The experiments that come with the package, to start from."""

import importlib.resources
from pathlib import Path

from hybrid_flax.errors import ConfigError, nearest
from hybrid_flax.files import write_whole
from hybrid_flax.flags import command

__all__ = ["list_experiments", "write_experiment"]

_QUOTES = '"""'  # before the docstring


def list_experiments() -> list[str]:
    """A line for each experiment: its name, and the first line of its docstring."""
    sources = _sources()
    width = max(map(len, sources))
    return [f"{name:{width}}  {source.splitlines()[0].removeprefix(_QUOTES)}" for name, source in sources.items()]


def write_experiment(file: str, name: str) -> list[str]:
    """Copy the experiment `name` to `file`, and beside it those that it loads; returns what was done, a line each.

    The commands in its docstring become those of the new file. Raises ConfigError for an unknown name, and for a file
    that is there already or cannot be written.
    """
    sources, path = _sources(), Path(file)
    if name not in sources:
        raise ConfigError(f"--from={name} is no experiment of the package; {nearest(name, sources)}")
    if path.suffix != ".py" or ":" in file:
        raise ConfigError(f"{file} cannot be an experiment: its name must end in .py, without a colon")
    loaded = [other for other in sources if other != name and f"/{other}.py" in sources[name]]
    if path.stem in loaded:
        raise ConfigError(f"{file} cannot be a copy of {name}, which loads a file of that name: choose another name")
    if path.exists():
        raise ConfigError(f"{file} is there already: choose another name")
    copies = {path: name} | {path.with_name(f"{other}.py"): other for other in loaded}
    lines = []
    for copy, origin in copies.items():
        if copy.exists():
            lines.append(f"{copy} is there already and stays as it is: {path} loads it")
            continue
        text = sources[origin].replace(f"experiments/{origin}.py", str(copy)).replace("python launch.py", command())
        try:
            write_whole(copy, text)
        except OSError as error:
            raise ConfigError(f"{copy} cannot be written: {error.strerror}") from error
        lines.append(f"{copy} written" + (f": {path} loads it" if copy != path else ""))
    return [*lines, f"the first lines of {path} say how to launch it"]


def _sources() -> dict[str, str]:
    """{name: source} of the experiments: inside an installed package, beside it in a checkout."""
    package = importlib.resources.files("hybrid_flax")
    folder = package / "experiments"
    if not folder.is_dir():
        folder = Path(str(package)).parent / "experiments"
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".py")), key=lambda file: file.name)
    return {file.name.removesuffix(".py"): file.read_text(encoding="utf-8") for file in files}
