"""Functions named on the command line: ``package.module:function`` or ``path/file.py:function``."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from wpo_optuna.errors import InvalidArgument, did_you_mean

_DOTTED_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")
_USER_MODULE = "wpo_optuna_user_"


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
        argument: which of the user's arguments this is, for the messages.

    Raises:
        InvalidArgument: the module cannot be found or fails to import, or has no such function.
    """
    if not is_reference(reference):
        raise InvalidArgument(
            f"{argument} {reference!r} is not of the form package.module:function or "
            "path/file.py:function."
        )
    module_name, _, function_name = reference.rpartition(":")
    path = Path(module_name)
    if path.suffix == ".py" and not path.is_file():
        hint = did_you_mean(module_name, map(str, path.parent.glob("*.py")))
        raise InvalidArgument(f"{argument} {reference!r}: there is no file {module_name!r}{hint}.")
    try:
        module = _import_file(path) if path.suffix == ".py" else _import_module(module_name)
    except (Exception, SystemExit) as error:
        raise InvalidArgument(
            f"{argument} {reference!r}: importing {module_name!r} raised {raised(error)}."
        ) from error
    found: Any = module
    for part in function_name.split("."):
        if not hasattr(found, part):
            known = [name for name, value in vars(found).items() if callable(value)]
            raise InvalidArgument(
                f"{argument} {reference!r}: {module_name!r} has no function {part!r}"
                f"{did_you_mean(part, known)}."
            )
        found = getattr(found, part)
    if not callable(found):
        raise InvalidArgument(
            f"{argument} {reference!r}: {function_name!r} is of type {type(found).__name__}; "
            "a function is needed."
        )
    return found


def call_function(
    function: Callable[..., Any], reference: str, argument: str, *arguments: Any
) -> Any:
    """Calls a user's function, turning whatever it raises into one sentence.

    Raises:
        InvalidArgument: the function raises; the original exception is its cause.
    """
    try:
        return function(*arguments)
    # A training script may end the program where it should return.
    except (Exception, SystemExit) as error:
        raise InvalidArgument(f"{argument} {reference!r} raised {raised(error)}.") from error


def raised(error: BaseException) -> str:
    """What a user's code raised, in one line without a full stop."""
    text = " ".join(str(error).split()).rstrip(".")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


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


def _make_importable(folder: Path) -> None:
    # At the end of the path its modules hide nobody else's.
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def _import_module(name: str) -> ModuleType:
    _make_importable(Path.cwd())  # which a console script's sys.path lacks
    return importlib.import_module(name)


def _import_file(path: Path) -> ModuleType:
    # Named after its place, so that two files net.py in different folders do not share a module.
    digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]
    return _import_as(f"{_USER_MODULE}{path.stem}_{digest}", path.resolve())


def _import_as(name: str, path: Path) -> ModuleType:
    if name in sys.modules:
        return sys.modules[name]
    _make_importable(path.parent)  # files import their neighbours
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
