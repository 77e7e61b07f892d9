"""What tests look at of a run's folder."""

from pathlib import Path

from bandits.runs.directory import VOLATILE


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file, by its path in the folder, but those that hold wall-clock times."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in VOLATILE)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def only(output: Path) -> Path:
    """Return the folder of the only run of a kind below ``output``."""
    (folder,) = (path for path in output.glob("*/*") if path.is_dir())
    return folder
