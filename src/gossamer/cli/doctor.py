"""`gossamer doctor`: what this installation can do."""

from __future__ import annotations

import os
import platform
import re
import tempfile
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

from gossamer.cli.console import print_json, print_table
from gossamer.cli.options import Json

CORE = ("gossamer", "torch", "numpy", "scipy", "scikit-learn", "safetensors", "pydantic", "accelerate", "typer", "rich")
PEERS_OF_EXTRAS = re.compile(r"^([A-Za-z0-9_.-]+).*extra == ['\"]([^'\"]+)['\"]")


def doctor(as_json: Json = False) -> None:
    """Show versions, the native kernels, threads, installed extras, data folders and where files can be written."""
    found = examine()
    if as_json:
        print_json(found)
        return
    native, missing = (
        found["native"],
        {name: [p for p, v in e.items() if v is None] for name, e in found["extras"].items()},
    )
    rows: list[tuple[str, Any]] = [
        ("python", f"{found['python']} on {found['system']}"),
        ("versions", found["versions"]),
        ("native kernels", f"{native['level']} of {', '.join(native['levels'])}"),
        ("processor features", ", ".join(native["features"]) or "unknown without the native kernels"),
        ("threads", found["threads"]),
        ("gpu", found["gpu"] or "none"),
        ("extras", {name: f"lacks {', '.join(lacks)}" if lacks else "installed" for name, lacks in missing.items()}),
        ("data folders", {folder: ", ".join(names) or "empty" for folder, names in found["data"].items()} or "none"),
        ("can write", found["writable"]),
    ]
    print_table(("what", "found"), rows)
    if native["level"] == "none":
        print("The native kernels are missing: slower plain-torch versions run. Install again with a C++20 compiler.")


def examine() -> dict[str, Any]:
    """What `doctor` shows, as JSON values."""
    import torch

    from gossamer.data import roots
    from gossamer.kernels import native

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": {name: _version(name) for name in CORE},
        "native": native.info(),
        "threads": {
            "cores": os.cpu_count(),
            "torch": torch.get_num_threads(),
            "gossamer": native.threads(),
            "of": kernels.pool() if (kernels := native.extension()) else "torch",
        },
        "gpu": gpus,
        "extras": extras(),
        "data": {str(root): sorted(p.name for p in root.iterdir() if p.is_dir()) for root in roots() if root.is_dir()},
        "writable": {
            name: _writable(folder) for name, folder in (("here", Path.cwd()), ("temporary files", _temporary()))
        },
    }


def extras() -> dict[str, dict[str, str | None]]:
    """Extra -> its packages -> installed version, or None."""
    found: dict[str, dict[str, str | None]] = {}
    for line in requires("gossamer") or ():
        match = PEERS_OF_EXTRAS.match(line)
        if match and match[1] != "gossamer" and match[2] != "dev":
            found.setdefault(match[2], {})[match[1]] = _version(match[1])
    return found


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _temporary() -> Path:
    return Path(tempfile.gettempdir())


def _writable(folder: Path) -> bool:
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False
