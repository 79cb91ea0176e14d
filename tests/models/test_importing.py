"""A `.pth` file is never unpickled here, and only imported on an explicit wish."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from gossamer.errors import CheckpointError, ConfigError
from gossamer.models import build, import_pickled_weights, load_weights


class Payload:
    """Runs a shell command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return os.system, (self.command,)


def test_weights_arrive_exactly(tmp_path: Path) -> None:
    model, other = build("mlp"), build("mlp")
    state = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "a.pth")
    target = import_pickled_weights(tmp_path / "a.pth", tmp_path / "a.safetensors", allow_pickle_weights=True)
    load_weights(other, target)
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pth", "a.safetensors"]


def test_without_the_flag_nothing_is_read(tmp_path: Path) -> None:
    torch.save(build("mlp").state_dict(), tmp_path / "a.pth")
    with pytest.raises(ConfigError, match=r"allow_pickle_weights=True \(--import-pth\)") as caught:
        import_pickled_weights(tmp_path / "a.pth", tmp_path / "a.safetensors")
    assert "can run its author's code" in str(caught.value)
    assert "CVE-2025-32434" in str(caught.value)
    assert not (tmp_path / "a.safetensors").exists()


@pytest.mark.parametrize("new_format", [True, False])
def test_a_payload_never_runs(tmp_path: Path, new_format: bool) -> None:
    marker, path = tmp_path / "was-run", tmp_path / "evil.pth"
    torch.save({"w": torch.zeros(2), "x": Payload(f"touch {marker}")}, path, _use_new_zipfile_serialization=new_format)
    # The trap works: an ordinary unpickling, in a process of its own, does run the command.
    code = f"import torch; torch.load({str(path)!r}, weights_only=False)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent)
    assert marker.exists()
    marker.unlink()
    with pytest.raises(CheckpointError, match=r"evil\.pth was not imported.*tensors-only reader said"):
        import_pickled_weights(path, tmp_path / "out.safetensors", allow_pickle_weights=True)
    assert not marker.exists()
    assert [item.name for item in tmp_path.iterdir()] == ["evil.pth"]


@pytest.mark.parametrize(
    ("content", "message"),
    [([torch.zeros(2)], "holds a list, not a state dict"), ({"a": "text"}, "'a' is no tensor"), ({}, "holds a dict")],
)
def test_other_content_is_named(tmp_path: Path, content: object, message: str) -> None:
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=message):
        import_pickled_weights(tmp_path / "a.pth", tmp_path / "o.safetensors", allow_pickle_weights=True)


def test_damaged_and_missing_files(tmp_path: Path) -> None:
    torch.save(nn.Linear(20, 20).state_dict(), tmp_path / "a.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "a.pth").read_bytes()[:900])
    (tmp_path / "o.safetensors").write_bytes(b"older result")
    for name in ("cut.pth", "missing.pth"):
        with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
            import_pickled_weights(tmp_path / name, tmp_path / "o.safetensors", allow_pickle_weights=True)
    assert (tmp_path / "o.safetensors").read_bytes() == b"older result"


@pytest.mark.skipif(sys.platform != "linux", reason="memory of a process is limited on Linux only")
def test_a_bomb_meets_the_memory_limit(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(1 << 26)}, tmp_path / "plain.pth")  # 256 MiB of zeros, compressed below
    with (
        zipfile.ZipFile(tmp_path / "plain.pth") as plain,
        zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as bomb,
    ):
        for member in plain.infolist():
            bomb.writestr(member.filename, plain.read(member))
    (tmp_path / "plain.pth").unlink()
    with pytest.raises(CheckpointError, match=r"bomb\.pth was not imported.*memory"):
        import_pickled_weights(
            tmp_path / "bomb.pth", tmp_path / "o.safetensors", allow_pickle_weights=True, memory_bytes=1 << 26
        )
    assert not (tmp_path / "o.safetensors").exists()


def test_a_slow_import_is_stopped(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(2)}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"longer than 0\.05 s"):
        import_pickled_weights(
            tmp_path / "a.pth", tmp_path / "o.safetensors", allow_pickle_weights=True, timeout_s=0.05
        )
    assert [item.name for item in tmp_path.iterdir()] == ["a.pth"]
