"""`gossamer inspect`: what a file or folder holds. Nothing is ever unpickled here."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from gossamer.cli.console import print_json, print_table, size
from gossamer.cli.options import Json
from gossamer.errors import ConfigError, DataError

PICKLES = (".pth", ".pt", ".ckpt", ".bin", ".pkl", ".pickle")


def inspect(
    path: Annotated[Path, typer.Argument(help="Safetensors, run folder, sparsity.json, recipe or settings in YAML.")],
    import_pth: Annotated[
        bool, typer.Option("--import-pth", help="Accept the risk of a .pth: tensors only, in a limited process.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="With --import-pth: keep the safetensors file here.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what a file holds: every tensor, its density and the pattern of its zeros, bytes by storage format.

    Example: gossamer inspect out/train
    """
    if not path.exists():
        raise DataError(f"{path} does not exist")
    if output is not None and not import_pth:
        raise ConfigError("--output keeps what --import-pth imports; it has no use without it")
    found = _look(path, import_pth, output)
    if as_json:
        print_json(found)
    else:
        _show(found)


def refuse_pickle(path: Path) -> None:
    """Raise ConfigError where the file would have to be unpickled; says why, and how to accept the risk."""
    from gossamer.models import import_pickled_weights

    if path.suffix in PICKLES:
        import_pickled_weights(path, path)  # refuses, with the whole explanation


def _look(path: Path, import_pth: bool, output: Path | None) -> dict[str, Any]:
    if path.is_dir():
        return _folder(path)
    if path.suffix in PICKLES and import_pth:
        return _imported(path, output)
    refuse_pickle(path)
    if path.suffix == ".safetensors":
        return {"path": str(path), **_weights(path)}
    if path.suffix == ".json":
        return {"path": str(path), "masks": _record(path)}
    if path.suffix in (".yaml", ".yml"):
        return {"path": str(path), **_yaml(path)}
    raise ConfigError(f"{path}: known are folders, .safetensors, .json and .yaml, not {path.suffix or 'this kind'!r}")


def _imported(path: Path, output: Path | None) -> dict[str, Any]:
    from gossamer.models import import_pickled_weights

    with tempfile.TemporaryDirectory() as folder:
        target = output or Path(folder) / "imported.safetensors"
        import_pickled_weights(path, target, allow_pickle_weights=True)
        return {"path": str(path), "imported": str(output) if output else None, **_weights(target)}


def _weights(path: Path) -> dict[str, Any]:
    """Every tensor of a safetensors file, totals, and bytes by format."""
    from gossamer.cli.tensors import rows, sizes
    from gossamer.models import read_weights

    tensors = read_weights(path)
    table = rows(tensors)
    total, nonzero = sum(row.numel for row in table), sum(row.nonzero for row in table)
    return {
        "tensors": [{**vars(row), "shape": list(row.shape), "density": row.density} for row in table],
        "entries": total,
        "nonzero": nonzero,
        "density": nonzero / total if total else 1.0,
        "file_bytes": path.stat().st_size,
        "bytes": sizes(tensors),
    }


def _folder(path: Path) -> dict[str, Any]:
    """A run folder or a saved model: status, figures, masks checked against weights, tensors."""
    from gossamer.runs.folder import RunFolder
    from gossamer.runs.model_files import load_sparsity

    run = RunFolder(path)
    found: dict[str, Any] = {"path": str(path)}
    if run.config_path.exists():
        result = run.result() or {}
        found |= {"config": run.config(), "status": run.status(), "checkpoints": run.steps()}
        found["test"] = result.get("fit", {}).get("test")
    if (path / "sparsity.json").exists():
        masks, about = load_sparsity(path)
        found["masks"] = {
            name: {"shape": list(mask.shape), "kept": int(mask.sum()), "density": float(mask.float().mean())}
            for name, mask in masks.items()
        }
        found["about"] = about
    files = sorted(path.glob("*.safetensors"))
    weights = [file for file in files if file.name != "masks.safetensors"]
    if not weights and len(found) == 1:
        raise DataError(f"{path} holds neither a run nor a model (config.yaml, *.safetensors)")
    return found | {"files": {file.name: _weights(file) for file in weights}}


def _record(path: Path) -> dict[str, Any]:
    """The rows of a sparsity.json."""
    from gossamer.runs.model_files import FORMAT

    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["format"] != FORMAT:
            raise ValueError(f"its format is {record['format']!r}")
        return dict(record["tensors"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is no sparsity.json: {error}") from error


def _yaml(path: Path) -> dict[str, Any]:
    """A recipe, or settings of a run, checked; which of them it is, is told by its keys."""
    import yaml

    from gossamer.report.experiment import make_recipe
    from gossamer.training.config import Config, load_config

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    if isinstance(values, dict) and values.keys() & Config.model_fields.keys():
        return {"settings": load_config(path, kind=Config).model_dump(mode="json")}
    return {"recipe": make_recipe(str(path), {}).to_yaml()}


def _show(found: dict[str, Any]) -> None:
    import yaml

    for key in ("config", "settings"):
        if key in found:
            print(yaml.safe_dump(found[key], sort_keys=False), end="")
    if "recipe" in found:
        print(found["recipe"], end="")
    if status := found.get("status"):
        print(f"status: {status['state']} at step {status['step']}")
    for name, value in (found.get("test") or {}).items():
        print(f"test {name}: {value:.4g}")
    if "masks" in found:
        rows = [(name, _shape(row), row["kept"], f"{row['density']:.2%}") for name, row in found["masks"].items()]
        print_table(("mask", "shape", "kept", "density"), rows)
    for name, weights in found.get("files", {}).items():
        _show_weights(name, weights)
    if "tensors" in found:
        _show_weights(Path(found["path"]).name, found)


def _show_weights(name: str, weights: dict[str, Any]) -> None:
    headings = ("tensor", "type", "shape", "entries", "non-zero", "density", "pattern")
    rows = [
        (t["name"], t["dtype"], _shape(t), t["numel"], t["nonzero"], f"{t['density']:.2%}", t["pattern"])
        for t in weights["tensors"]
    ]
    print_table(headings, rows, name)
    print(f"{weights['nonzero']} of {weights['entries']} entries are not zero: density {weights['density']:.2%}")
    print("bytes: " + ", ".join(f"{form} {size(count)}" for form, count in weights["bytes"].items()))


def _shape(row: dict[str, Any]) -> str:
    return "x".join(map(str, row["shape"])) or "scalar"
