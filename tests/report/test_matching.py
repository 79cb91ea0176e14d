"""The picture of a matching."""

import pytest
import torch

from gossamer.errors import ShapeError
from gossamer.report.matching import plane, plot_matching

pytest.importorskip("matplotlib", reason="pictures need the report extra")


def test_tables_come_to_the_plane():
    x, y = torch.rand(4, 2), torch.rand(3, 2)
    assert torch.equal(plane(x, y)[0].float(), x)
    one, two = plane(x[:, :1], y[:, :1])
    assert (one[:, 1] == 0).all()
    assert (two[:, 1] == 1).all()
    wide = torch.cat([x, x], 1), torch.cat([y, y], 1)  # of rank two: distances stay
    one, two = plane(*wide)
    assert torch.allclose(torch.cdist(one, two).float(), torch.cdist(*wide), atol=1e-5)


def test_a_panel_for_each_plan(tmp_path):
    x, y = torch.rand(4, 2), torch.rand(3, 2)
    path = plot_matching(x, y, {"one": torch.eye(4, 3), "all": torch.ones(4, 3)}, tmp_path / "m.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ShapeError, match=r"plan 'one' has shape \(3, 4\)"):
        plot_matching(x, y, {"one": torch.ones(3, 4)}, tmp_path / "n.png")
