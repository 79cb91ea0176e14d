"""Compiles the native kernels for 64-bit ARM and runs tests/native/check.cpp on them in an emulator.

    python tests/cross.py

Needs g++-aarch64-linux-gnu and qemu-user-static (names of Debian's packages); says so and stops with status 77 where
they are missing. The flags are those of CMakeLists.txt. Python's binding is not built.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "aarch64"
COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64-static"
FLAGS = ["-std=c++20", "-fPIC", "-Wall", "-Werror", "-Wno-unused-function"]
KERNELS = ["-O3", "-fno-math-errno", "-fno-trapping-math"]
LEVELS = ("portable", "neon")


def main() -> int:
    """Exit status: 0 when every level computes the same as plain loops."""
    missing = [program for program in (COMPILER, EMULATOR) if shutil.which(program) is None]
    if missing:
        print(f"not found: {', '.join(missing)}", file=sys.stderr)
        return 77
    BUILD.mkdir(parents=True, exist_ok=True)
    jobs = [(ROOT / "tests" / "native" / "check.cpp", "check.o", ["-O1"])]
    for source in sorted((ROOT / "csrc").rglob("*.cpp")):
        name = "-".join(source.relative_to(ROOT / "csrc").with_suffix("").parts)
        if source.stem.endswith("_kernels"):
            jobs += [(source, f"{name}-{level}.o", [*KERNELS, f"-DGOSSAMER_NS={level}"]) for level in LEVELS]
        elif source.stem not in ("bind", "module"):
            jobs.append((source, f"{name}.o", ["-O2"]))
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda job: compile_one(*job), jobs))
    objects = [str(BUILD / name) for _, name, _ in jobs]
    subprocess.run([COMPILER, "-static", *objects, "-o", BUILD / "check", "-pthread"], check=True)
    return subprocess.run([EMULATOR, BUILD / "check"]).returncode


def compile_one(source: Path, name: str, flags: list[str]) -> None:
    subprocess.run([COMPILER, *FLAGS, *flags, "-c", source, "-o", BUILD / name], check=True)


if __name__ == "__main__":
    sys.exit(main())
