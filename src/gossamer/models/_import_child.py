"""Child process of `gossamer.models.importing`: SOURCE TARGET MEMORY_BYTES SECONDS FILE_BYTES.

Runs alone (`python -I`), lowers its own limits, reads tensors with `weights_only=True`, writes safetensors.
Imports nothing of gossamer, so that as little as possible is loaded beside the foreign file.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from safetensors.torch import save_file


def limit(memory: int, seconds: int, file_bytes: int) -> None:
    """Caps memory, CPU time, file size, and forbids new processes, where the system can."""
    try:
        import resource
    except ImportError:  # not a POSIX system
        return
    caps = {
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_FSIZE: file_bytes,
        resource.RLIMIT_NPROC: 0,
        resource.RLIMIT_CORE: 0,
    }
    if sys.platform == "linux":
        with open("/proc/self/statm") as statm:
            mapped = int(statm.read().split()[0]) * resource.getpagesize()
        caps[resource.RLIMIT_AS] = mapped + memory
    for kind, value in caps.items():
        ceiling = resource.getrlimit(kind)[1]
        value = value if ceiling == resource.RLIM_INFINITY else min(value, ceiling)
        resource.setrlimit(kind, (value, value))


def tensors(content: Any) -> dict[str, torch.Tensor]:
    """The flat state dict inside `content`, without the prefix that DataParallel adds."""
    for key in ("state_dict", "model", "model_state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not content:
        raise ValueError(f"holds a {type(content).__name__}, not a state dict")
    other = [str(name) for name, value in content.items() if not isinstance(value, torch.Tensor)]
    if other:
        raise ValueError(f"entry {other[0]!r} is no tensor")
    # Clones, because safetensors refuses tensors that share memory.
    return {str(name).removeprefix("module."): value.detach().clone().contiguous() for name, value in content.items()}


def main() -> int:
    source, target, *limits = sys.argv[1:]
    limit(*map(int, limits))
    try:
        save_file(tensors(torch.load(source, map_location="cpu", weights_only=True)), target)
    except Exception as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
