"""Where data sets lie: `--data`, `$GOSSAMER_DATA`, or a `shared/data` folder beside the checkout."""

from __future__ import annotations

import os
from pathlib import Path

from gossamer.errors import DataError

VARIABLE = "GOSSAMER_DATA"

_chosen: Path | None = None


def use_folder(folder: str | Path | None) -> None:
    """Search `folder` before every other place from now on; None forgets the choice.

    Raises:
        DataError: `folder` is not an existing folder.
    """
    global _chosen
    if folder is not None and not Path(folder).is_dir():
        raise DataError(f"data folder {str(folder)!r} does not exist; pass a folder that holds data sets")
    _chosen = None if folder is None else Path(folder).resolve()


def roots() -> list[Path]:
    """The folders that `find` searches, in order: `use_folder`, `$GOSSAMER_DATA`, `../shared/data`.

    `$GOSSAMER_DATA` may name several folders, separated as in `$PATH`. The last place is looked for
    beside the current folder and beside the checkout that holds this package.
    """
    named = [Path(part) for part in os.environ.get(VARIABLE, "").split(os.pathsep) if part]
    checkouts = [Path.cwd(), Path(__file__).resolve().parents[3]]
    shared = [checkout.parent / "shared" / "data" for checkout in checkouts]
    chosen = [] if _chosen is None else [_chosen]
    return list(dict.fromkeys(chosen + named + shared))


def find(name: str, *required: str) -> Path:
    """The folder of the data set `name`: the first `root/name` that holds every file of `required`.

    Args:
        name: folder name below a root, such as "mnist".
        required: paths below that folder that must exist.
    Raises:
        DataError: no root holds it; the message lists what was searched and how to set another place.
    """
    for root in roots():
        folder = root / name
        if folder.is_dir() and all((folder / path).exists() for path in required):
            return folder
    wanted = f" with {', '.join(required)}" if required else ""
    searched = ", ".join(str(root / name) for root in roots())
    raise DataError(
        f"data set {name!r}{wanted} not found; searched {searched}. "
        f"Set ${VARIABLE} (or pass --data) to the folder that holds {name!r}"
    )
