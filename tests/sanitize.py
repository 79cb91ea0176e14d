"""Builds the native part with AddressSanitizer and UndefinedBehaviorSanitizer and runs the kernel tests on it.

    python tests/sanitize.py [pytest arguments; default: the tests of kernels and of what plans run]

The instrumented extension stays in build/sanitize and takes the place of the ordinary one in this run only. The first
error of either kind ends the run with its stack. Linux with g++ or clang; where the compiler brings no sanitizers, or
Python cannot start with them, nothing is run, with the reason and status 0. Leaks are not looked for, as Python and
torch keep memory to the end on purpose.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "sanitize"
RUNTIMES = ("libasan.so", "libubsan.so", "libstdc++.so.6")  # the last: or exceptions are thrown before it is known
# Registered operators, exports and other processes run no native code that eager calls do not run.
DEFAULT = [
    "tests/kernels",
    "tests/engine/test_sparse_linear.py",
    "tests/engine/test_assemble.py",
    "tests/engine/test_runtime.py",
    "tests/domains/branch_prediction/test_predictors.py",
    "tests/domains/branch_prediction/test_side.py",
    *("-m", "not slow", "-k", "not opcheck and not export and not environment and not fork and not extension"),
]


def build() -> Path:
    """The instrumented extension."""
    import nanobind

    cmake, ninja = (_program(name) for name in ("cmake", "ninja"))
    definitions = {
        "CMAKE_MAKE_PROGRAM": ninja,
        "CMAKE_BUILD_TYPE": "None",
        "GOSSAMER_SANITIZE": "ON",
        "nanobind_DIR": nanobind.cmake_dir(),
        "Python_EXECUTABLE": sys.executable,
    }
    options = [f"-D{key}={value}" for key, value in definitions.items()]
    subprocess.run([cmake, "-S", ROOT, "-B", BUILD, "-G", "Ninja", *options], check=True, stdout=subprocess.DEVNULL)
    subprocess.run([cmake, "--build", BUILD, "--parallel", str(os.cpu_count() or 1)], check=True)
    return next(BUILD.glob("_native*"))


def _program(name: str) -> str:
    beside = Path(sys.executable).with_name(name)
    return str(beside) if beside.exists() else name


def runtimes() -> list[str]:
    """Paths of the sanitizers' libraries; a bare name where the compiler does not know one.

    Raises:
        OSError, CalledProcessError: no compiler, or one that does not answer.
    """
    compiler = os.environ.get("CXX", "c++")
    ask = [[compiler, f"-print-file-name={name}"] for name in RUNTIMES]
    return [subprocess.check_output(command, text=True, stderr=subprocess.DEVNULL).strip() for command in ask]


def why_not() -> str:
    """What keeps the sanitizers from running here; "" where nothing does."""
    if sys.platform != "linux":
        return f"only Linux is supported, not {sys.platform}"
    try:
        missing = [path for path in runtimes() if not Path(path).is_file()]
    except (OSError, subprocess.CalledProcessError) as error:
        return f"no compiler answers ({error})"
    if missing:
        return f"the compiler has no {', '.join(missing)}"
    start = subprocess.run([sys.executable, "-c", ""], env=environment(), capture_output=True, text=True, check=False)
    return "" if start.returncode == 0 else f"Python does not start with them: {start.stderr.strip()[:200]}"


def environment(extension: Path | None = None) -> dict[str, str]:
    """The run-time libraries of the sanitizers come first, and errors end the run."""
    return os.environ | {
        "LD_PRELOAD": " ".join(runtimes()),
        "ASAN_OPTIONS": "detect_leaks=0:halt_on_error=1:detect_stack_use_after_return=0",
        "UBSAN_OPTIONS": os.environ.get("UBSAN_OPTIONS", "halt_on_error=1:print_stacktrace=1"),
        "PYTHONMALLOC": "malloc",
        "OMP_NUM_THREADS": "1",
        "GOSSAMER_SANITIZED": str(extension),
    }


def main() -> int:
    """Exit status of pytest in the instrumented process."""
    reason = why_not()
    if reason:
        print(f"sanitizers skipped: {reason}")
        return 0
    try:
        extension = build()
    except (OSError, subprocess.CalledProcessError, StopIteration) as error:
        print(f"sanitizers skipped: the instrumented kernels cannot be built ({error})")
        return 0
    arguments = sys.argv[1:] or DEFAULT
    command = [sys.executable, __file__, "--inside", *arguments]
    return subprocess.run(command, env=environment(extension), cwd=ROOT).returncode


def inside(arguments: list[str]) -> int:
    """Put the instrumented extension where `from gossamer import _native` finds it, and run pytest."""
    import pytest

    path = os.environ["GOSSAMER_SANITIZED"]
    spec = importlib.util.spec_from_file_location("gossamer._native", path)
    assert spec is not None
    assert spec.loader is not None
    sys.modules["gossamer._native"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    from gossamer.kernels import native

    assert native.extension().__file__ == path
    return int(pytest.main(["-q", "-p", "no:cacheprovider", "--capture=sys", "--timeout=600", *arguments]))


if __name__ == "__main__":
    sys.exit(inside(sys.argv[2:]) if sys.argv[1:2] == ["--inside"] else main())
