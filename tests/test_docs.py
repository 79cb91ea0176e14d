"""The code blocks of the docs and of the README run as written."""

import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
PAGES = ["docs/guide.md", "docs/sparse-training.md"]


def blocks(page):
    return re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(encoding="utf-8"), re.M | re.S)


@pytest.mark.parametrize("page", PAGES)
def test_blocks_run_in_order(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace: dict = {}
    for number, block in enumerate(blocks(page), start=1):
        exec(compile(block, f"{page}, block {number}", "exec"), namespace)


def test_the_snippet_of_the_readme(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = torch.nn.Linear(200, 50)
    namespace = {
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), 0.1),
        "loader": [(torch.randn(4, 200), torch.randint(50, (4,))) for _ in range(15)],
        "epochs": 10,
        "loss_fn": torch.nn.functional.cross_entropy,
    }
    (snippet,) = blocks("README.md")
    exec(snippet, namespace)
    assert int(model.weight.count_nonzero()) <= 500
