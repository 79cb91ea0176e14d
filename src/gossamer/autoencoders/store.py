"""Activations on disk: shards that together may be larger than memory, and batches of them by the step."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from gossamer.autoencoders.hooks import activations
from gossamer.data.dataset import generator
from gossamer.errors import ConfigError, DataError, NumericsError
from gossamer.runs.files import atomic, write_json

FORMAT, VERSION, MANIFEST = "gossamer-activations", 1, "activations.json"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_GROUPS, _ROWS = 0, 1  # independent random streams of one seed


def collect(
    folder: str | Path,
    model: nn.Module,
    inputs: Iterable[Any],
    module: str,
    *,
    target: str | None = None,
    limit: int | None = None,
    skip: int = 0,
    shard_rows: int = 65_536,
    dtype: str = "float32",
    overwrite: bool = False,
    source: str = "",
) -> Path:
    """Run a model over inputs and write the outputs of one of its modules, one row per token, into shards.

    No more than a shard and a batch are held in memory.

    Args:
        inputs: batches that the model takes; of a tuple the first is taken.
        module: dotted name. target: another module whose output a transcoder shall predict.
        limit: rows at most. skip: first positions of every sequence to leave out (their activations are outliers).
        dtype: of the files: float32, bfloat16 or float16.
        source: what to remember about where they come from.
    Raises:
        ConfigError: an unknown module or dtype, a folder that holds other things. NumericsError: NaN activations.
        DataError: no inputs.
    """
    folder = Path(folder)
    if dtype not in DTYPES or shard_rows < 1 or skip < 0:
        raise ConfigError(f"dtype={dtype!r} of {', '.join(DTYPES)}; shard_rows={shard_rows} >= 1; skip={skip} >= 0")
    _make_room(folder, overwrite)
    writer = _Writer(folder, shard_rows, DTYPES[dtype], {"module": module, "target": target, "source": source})
    names = [module] if target is None else [module, target]
    for batch in inputs:
        x = batch[0] if isinstance(batch, tuple | list) else batch
        rows = [_rows(found, skip) for found in activations(model, x, *names)]
        if limit is not None:
            rows = [part[: limit - writer.total] for part in rows]
        writer.add(rows)
        if limit is not None and writer.total >= limit:
            break
    return writer.finish()


def _rows(found: Tensor, skip: int) -> Tensor:
    kept = found[:, skip:] if skip and found.dim() > 2 else found
    return kept.reshape(-1, kept.shape[-1])


def _make_room(folder: Path, overwrite: bool) -> None:
    if not folder.exists() or not any(folder.iterdir()):
        return
    if not (folder / MANIFEST).exists():
        raise ConfigError(f"{folder} holds files but no activations; choose a new folder")
    if not overwrite:
        raise ConfigError(f"{folder} holds activations; use them, replace them (--overwrite) or go elsewhere")
    shutil.rmtree(folder)


class _Writer:
    """Gathers rows and writes a shard whenever one is full."""

    def __init__(self, folder: Path, shard_rows: int, dtype: torch.dtype, about: dict[str, Any]) -> None:
        self.folder, self.shard_rows, self.dtype, self.about = folder, shard_rows, dtype, about
        self.held: list[list[Tensor]] = []
        self.count = self.total = 0
        self.shards: list[dict[str, Any]] = []
        self.widths: list[int] = []
        self._write_manifest(complete=False)

    def add(self, rows: list[Tensor]) -> None:
        if len({len(part) for part in rows}) > 1:
            raise ConfigError(f"the two modules give {[len(part) for part in rows]} rows; they must match one to one")
        for part in rows:
            if not bool(torch.isfinite(part).all()):
                raise NumericsError(
                    f"module {self.about['module']!r} gives NaN or infinite activations near row {self.total}; "
                    "look at the model or its inputs"
                )
        self.widths = [part.shape[1] for part in rows]
        self.held.append(rows)
        self.count, self.total = self.count + len(rows[0]), self.total + len(rows[0])
        while self.count >= self.shard_rows:
            self._flush(self.shard_rows)

    def _flush(self, rows: int) -> None:
        joined = [torch.cat(parts) for parts in zip(*self.held, strict=True)]
        names = ("activations", "targets")
        tensors = {n: part[:rows].to(self.dtype).contiguous() for n, part in zip(names, joined, strict=False)}
        path = self.folder / f"shard-{len(self.shards):05d}.safetensors"
        with atomic(path) as temporary:
            save_file(tensors, temporary)
        self.shards.append({"file": path.name, "rows": rows, "bytes": path.stat().st_size})
        self.held = [[part[rows:].clone() for part in joined]]
        self.count -= rows
        self._write_manifest(complete=False)

    def finish(self) -> Path:
        if self.count:
            self._flush(self.count)
        if not self.total:
            raise DataError("there were no inputs to take activations of")
        self._write_manifest(complete=True)
        return self.folder

    def _write_manifest(self, complete: bool) -> None:
        record = {
            "format": FORMAT,
            "version": VERSION,
            "complete": complete,
            "rows": sum(shard["rows"] for shard in self.shards),
            "widths": self.widths,
            **self.about,
            "shards": self.shards,
        }
        write_json(self.folder / MANIFEST, record)


class ActivationStore:
    """Batches of activations from `collect`'s shards; `batch(step)` depends on (seed, step) alone.

    A few shards at a time are read and shuffled together; their order changes from epoch to epoch. Without `shuffle`
    the batches come in the order in which they were collected, the last of a group possibly smaller.

    Args:
        batch_size: rows; rows that do not fill a batch of a group are left out where `shuffle` is on.
        mix: shards that are held in memory and shuffled together.
    Raises:
        DataError: no store, an unfinished one, a missing or truncated shard. ConfigError: sizes below 1, or a batch
            that is larger than the rows of a group.
    """

    def __init__(
        self, folder: str | Path, batch_size: int = 4096, *, seed: int = 0, shuffle: bool = True, mix: int = 4
    ) -> None:
        self.folder = Path(folder)
        self.record = _read_manifest(self.folder)
        if batch_size < 1 or mix < 1 or seed < 0:
            raise ConfigError(f"batch_size={batch_size}, mix={mix}, seed={seed}: need at least 1, 1 and 0")
        self.batch_size, self.seed, self.shuffle = batch_size, seed, shuffle
        shards = self.record["shards"]
        self.groups = [shards[start : start + mix] for start in range(0, len(shards), mix)]
        sizes = [sum(shard["rows"] for shard in group) for group in self.groups]
        self.per_group = [n // batch_size if shuffle else -(-n // batch_size) for n in sizes]
        if not sum(self.per_group):
            raise ConfigError(f"batches of {batch_size} rows need more than the {max(sizes)} rows of {mix} shards")
        self._held: tuple[tuple[int, int], tuple[Tensor, ...]] | None = None

    @property
    def d(self) -> int:
        """Width of the activations."""
        return int(self.record["widths"][0])

    @property
    def d_out(self) -> int | None:
        """Width of the targets; None where there are none."""
        widths = self.record["widths"]
        return int(widths[1]) if len(widths) > 1 else None

    @property
    def samples(self) -> int:
        """Rows in all."""
        return int(self.record["rows"])

    def __len__(self) -> int:
        """Batches of an epoch."""
        return sum(self.per_group)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        return (self.batch(step) for step in range(len(self)))

    def batch(self, step: int) -> tuple[Tensor, ...]:
        """The batch of a step, counted over epochs: (activations,) or (activations, targets), float32."""
        epoch, place = divmod(step, len(self))
        order = list(range(len(self.groups)))
        if self.shuffle:
            order = torch.randperm(len(self.groups), generator=generator(self.seed, _GROUPS, epoch)).tolist()
        for group in order:
            if place < self.per_group[group]:
                rows = slice(place * self.batch_size, (place + 1) * self.batch_size)
                return tuple(tensor[rows] for tensor in self._group(epoch if self.shuffle else 0, group))
            place -= self.per_group[group]
        raise AssertionError("the batches of the groups add up to an epoch")

    def _group(self, epoch: int, group: int) -> tuple[Tensor, ...]:
        if self._held is None or self._held[0] != (epoch, group):
            self._held = None  # two groups at once would double the memory
            parts = [_read_shard(self.folder, shard) for shard in self.groups[group]]
            tensors = tuple(torch.cat(part) for part in zip(*parts, strict=True))
            if self.shuffle:
                order = torch.randperm(len(tensors[0]), generator=generator(self.seed, _ROWS, epoch, group))
                tensors = tuple(tensor[order] for tensor in tensors)
            self._held = ((epoch, group), tensors)
        return self._held[1]


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["format"] != FORMAT or record["version"] != VERSION:
            raise DataError(f"{path} is of {record['format']} {record['version']}, this reads {FORMAT} {VERSION}")
        if not record["complete"]:
            raise DataError(f"{folder} was not finished; collect the activations again (--overwrite)")
        for shard in record["shards"]:
            if Path(shard["file"]).name != shard["file"] or int(shard["rows"]) < 1:
                raise DataError(f"{path} names the shard {shard['file']!r} of {shard['rows']} rows, which cannot be")
            _check_size(folder / shard["file"], int(shard["bytes"]))
    except FileNotFoundError as error:
        raise DataError(f"{folder} holds no activations: there is no {MANIFEST}; collect some first") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"cannot read {path}: {error!r}") from error
    return dict(record)


def _check_size(path: Path, size: int) -> None:
    if not path.is_file():
        raise DataError(f"activation shard {path} is missing; collect the activations again")
    if path.stat().st_size != size:
        raise DataError(
            f"activation shard {path} is truncated or altered: {path.stat().st_size} bytes, not {size}; collect again"
        )


def _read_shard(folder: Path, shard: dict[str, Any]) -> list[Tensor]:
    path = folder / shard["file"]
    try:
        with safe_open(path, "pt") as file:
            names = sorted(file.keys())  # activations, targets
            tensors = [file.get_tensor(name).float() for name in names]
    except (OSError, SafetensorError) as error:
        raise DataError(f"cannot read activation shard {path}: {error}; collect the activations again") from error
    for tensor in tensors:
        if tensor.dim() != 2 or len(tensor) != shard["rows"]:
            raise DataError(f"activation shard {path} holds {tuple(tensor.shape)}, not {shard['rows']} rows")
        if not bool(torch.isfinite(tensor).all()):
            raise NumericsError(f"activation shard {path} holds NaN or infinite values; collect it anew")
    return tensors
