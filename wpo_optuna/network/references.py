"""Functions named on the command line: ``package.module:function`` or ``path/file.py:function``."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import re
import sys
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any

from wpo_optuna.errors import InvalidArgument

_DOTTED_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")
_USER_MODULE = "wpo_optuna_user_"
_FORMS = "package.module:function or path/file.py:function"


def is_reference(text: str) -> bool:
    """Whether a text names a function rather than a file or a built-in choice.

    A Windows drive (``C:\\nets\\bert.pt``) is not taken for a module: what follows the last colon
    must be a dotted name, and what stands before it a dotted name or a ``.py`` file.
    """
    module, colon, function = text.rpartition(":")
    return bool(
        colon
        and _DOTTED_NAME.fullmatch(function)
        and (module.endswith(".py") or _DOTTED_NAME.fullmatch(module))
    )


def load_function(reference: str, argument: str) -> Callable[..., Any]:
    """The function a reference names.

    Args:
        reference: ``package.module:function`` or ``path/file.py:function``; modules are found on
            ``sys.path`` and in the current directory.
        argument: Which of the user's arguments this is, for the error messages.

    Raises:
        InvalidArgument: If the module cannot be found or fails to import, or has no such function.
    """
    if not is_reference(reference):
        raise InvalidArgument(f"{argument} {reference!r} is not of the form {_FORMS}.")
    module_name, _, function_name = reference.rpartition(":")
    if module_name.endswith(".py"):
        module = _import_file(Path(module_name), reference, argument)
    else:
        module = _import_module(module_name, reference, argument)
    return _attribute(module, module_name, function_name, reference, argument)


def call_function(
    function: Callable[..., Any], reference: str, argument: str, *arguments: Any
) -> Any:
    """Call a user's function, turning whatever it raises into one sentence.

    Raises:
        InvalidArgument: If the function raises; the original exception is its cause.
    """
    try:
        return function(*arguments)
    # A training script may end the program where it should return.
    except (Exception, SystemExit) as error:
        raise InvalidArgument(f"{argument} {reference!r} raised {_in_one_line(error)}.") from error


def _import_module(name: str, reference: str, argument: str) -> ModuleType:
    # A console script's sys.path lacks the current directory, where users keep their networks.
    here = str(Path.cwd())
    added = here not in sys.path and "" not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(error.name + ".")):
            raise InvalidArgument(
                f"{argument} {reference!r}: there is no module {error.name!r}"
                f"{_meant(name, _modules_beside(name))}."
            ) from error
        raise InvalidArgument(
            f"{argument} {reference!r}: importing {name!r} raised {_in_one_line(error)}."
        ) from error
    except (Exception, SystemExit) as error:
        raise InvalidArgument(
            f"{argument} {reference!r}: importing {name!r} raised {_in_one_line(error)}."
        ) from error
    finally:
        if added:
            sys.path.remove(here)


def _import_file(path: Path, reference: str, argument: str) -> ModuleType:
    if not path.is_file():
        beside = [str(other) for other in path.parent.glob("*.py")]
        raise InvalidArgument(
            f"{argument} {reference!r}: there is no file {str(path)!r}{_meant(str(path), beside)}."
        )
    # Named after its place, so that two files net.py in different folders do not share a module.
    digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]
    try:
        return _import_as(f"{_USER_MODULE}{path.stem}_{digest}", path.resolve())
    except (Exception, SystemExit) as error:
        raise InvalidArgument(
            f"{argument} {reference!r}: importing {str(path)!r} raised {_in_one_line(error)}."
        ) from error


def _import_as(name: str, path: Path) -> ModuleType:
    if name in sys.modules:
        return sys.modules[name]
    # Files import their neighbours; at the end of the path these hide nobody else's modules.
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None  # a .py file always has a loader
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def imported_files() -> dict[str, Path]:
    """The users' files imported so far, by the name of their module.

    What is pickled of them can be read in another process once that has called
    :func:`import_files` with these.
    """
    return {
        name: Path(str(module.__file__))
        for name, module in list(sys.modules.items())
        if name.startswith(_USER_MODULE)
    }


def import_files(files: Mapping[str, Path]) -> None:
    """Imports users' files under the names that they have in another process."""
    for name, path in files.items():
        _import_as(name, path)


def _attribute(
    module: ModuleType, module_name: str, function_name: str, reference: str, argument: str
) -> Callable[..., Any]:
    found: Any = module
    for part in function_name.split("."):
        if not hasattr(found, part):
            callables = [n for n, v in vars(found).items() if callable(v) and not n.startswith("_")]
            raise InvalidArgument(
                f"{argument} {reference!r}: {module_name!r} has no function {part!r}"
                f"{_meant(part, callables)}."
            )
        found = getattr(found, part)
    if not callable(found):
        raise InvalidArgument(
            f"{argument} {reference!r}: {function_name!r} is of type {type(found).__name__}; "
            "a function is needed."
        )
    return found


def _modules_beside(name: str) -> list[str]:
    parent = name.rpartition(".")[0]
    folders = [Path(p or ".") for p in sys.path]
    if parent:
        package = sys.modules.get(parent)
        folders = [Path(p) for p in getattr(package, "__path__", [])]
    prefix = f"{parent}." if parent else ""
    return [
        prefix + entry.stem
        for folder in folders
        if folder.is_dir()
        for entry in folder.iterdir()
        if entry.suffix == ".py" or (entry / "__init__.py").is_file()
    ]


def _meant(name: str, candidates: list[str]) -> str:
    close = get_close_matches(name, candidates, n=1, cutoff=0.7)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _in_one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()).rstrip(".")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
