"""Where results are written: checked before the work of finding them is done for nothing."""

from __future__ import annotations

from pathlib import Path, PurePath

from wpo_optuna.errors import InvalidArgument


def check_directory(path: Path, argument: str) -> None:
    """Refuses a directory that cannot be made or written into; leaves everything as it is.

    Args:
        path: the directory, which need not exist.
        argument: which of the user's arguments it is, for the message.

    Raises:
        InvalidArgument: files cannot be written there.
    """
    if path.exists() and not path.is_dir():
        raise InvalidArgument(f"{argument} = {str(path)!r}: this is not a directory.")
    missing = [parent for parent in (path, *path.parents) if not parent.exists()]
    probe = path / ".wpo_optuna.partial"
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InvalidArgument(
            f"{argument} = {str(path)!r}: files cannot be written into this directory "
            f"({error.strerror}); another one is needed."
        ) from error
    finally:
        for made in missing:
            if made.is_dir() and not any(made.iterdir()):
                made.rmdir()


def directory_of_study(output: Path, study_name: str) -> Path:
    """The directory of a study's results: its name under ``output``.

    Slashes in the name make directories, as for the layers of a network.

    Raises:
        InvalidArgument: the name leads out of ``output``.
    """
    name = PurePath(study_name)
    if name.is_absolute() or ".." in name.parts or not name.parts:
        raise InvalidArgument(
            f"study_name = {study_name!r}: results are kept in a directory of this name, which "
            "must not lead elsewhere; a name without '..' and without a slash in front is needed."
        )
    return output / name
