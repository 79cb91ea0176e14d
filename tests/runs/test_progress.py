"""Progress: lines where there is no terminal, a bar where there is one, silence on request."""

import io
import re

from gossamer.runs.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_without_a_terminal_there_is_one_line_each_tenth():
    stream = io.StringIO()
    with Progress(50, "train", stream=stream) as progress:
        for step in range(1, 51):
            progress.update(step, loss=1 / step)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 10
    assert re.fullmatch(r"train: 5/50, \d+ s, \d+ s left loss 0.2", lines[0])
    assert lines[-1].startswith("train: 50/50")


def test_a_resumed_run_does_not_repeat_its_tenths():
    stream = io.StringIO()
    with Progress(50, "train", stream=stream) as progress:
        progress.start_at(40)
        for step in range(41, 51):
            progress.update(step)
    assert [line.split(",")[0] for line in stream.getvalue().splitlines()] == ["train: 45/50", "train: 50/50"]


def test_a_terminal_gets_a_bar_with_the_time_left():
    stream = Terminal()
    with Progress(4, "train", stream=stream) as progress:
        for step in range(1, 5):
            progress.update(step, loss=0.25)
    text = stream.getvalue()
    assert "4/4" in text
    assert "loss 0.25" in text
    assert re.search(r"\d:\d\d:\d\d", text)


def test_it_can_be_silent():
    stream = Terminal()
    with Progress(4, "train", shown=False, stream=stream) as progress:
        progress.update(4)
    assert stream.getvalue() == ""
