"""A process that has imported Gossamer once and forks for every command line: real processes without the start-up.

Reads one JSON object per line, {"argv", "cwd", "out", "err"}, and answers each with the exit code.
"""

import json
import os
import sys
import traceback
import types
from importlib import import_module

# What the commands import on the way, the slow part of their start.
HEAVY = (
    "gossamer.report.experiment",
    "gossamer.report.page",
    "gossamer.report.figures",
    "accelerate",
    "sklearn.datasets",
)


def serve():
    for module in HEAVY:
        import_module(module)

    add_papers()
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            work(request)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def work(request):
    from gossamer.cli import main

    os.chdir(request["cwd"])
    for path, number in ((request["out"], 1), (request["err"], 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.argv = ["gossamer", *request["argv"]]
    code = 1
    try:
        main()
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    os._exit(code)


def add_papers():
    """In the place of the published systems: one whose claim holds, one that fails, one without its data."""
    from gossamer.claims import Claim, Measured, Paper
    from gossamer.papers import PAPERS

    def claim(holds=True, needs=()):
        def run(context):
            values = [0.5 + seed / 10 for seed in context.each_seed()]
            return Measured(sum(values) / len(values), 0.05, 0.4, len(values), holds)

        return Claim("first", "asserted", "A figure is large.", "0.6", "It is known.", run, seeds=3, needs=needs)

    PAPERS.clear()
    made = {"holding": claim(), "failing": claim(holds=False), "lacking": claim(needs=("no-such-data",))}
    for slug, made_claim in made.items():
        module = types.ModuleType(f"paper_{slug}")
        module.PAPER = Paper(
            slug, slug.title(), 2021, "a journal", "none", "unstructured", "One. Two.", ("gossamer",), (made_claim,)
        )
        sys.modules[module.__name__] = module
        PAPERS[slug] = module.__name__


if __name__ == "__main__":
    serve()
