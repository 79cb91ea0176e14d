"""Signals: the first sets a flag, the second ends the process."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from gossamer.runs.signals import Interrupted, StopSignals

SOURCE = str(Path(__file__).parents[2] / "src")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_sets_a_flag_and_handlers_come_back(number):
    before = signal.getsignal(number)
    with StopSignals() as stop:
        assert stop.received is None
        os.kill(os.getpid(), number)
        assert stop.received == number
    assert signal.getsignal(number) is before
    with pytest.raises(SystemExit) as caught:
        raise Interrupted(number)
    assert caught.value.code == 128 + number


LOOP = """
    import sys, time
    from gossamer.runs.signals import Interrupted, StopSignals
    with StopSignals() as stop:
        print("ready", flush=True)
        while not stop.received:
            time.sleep(0.01)
        print("saved", flush=True)
        if sys.argv[1] == "hang":
            time.sleep(60)
        raise Interrupted(stop.received)
"""


@pytest.mark.parametrize(
    ("behaviour", "number", "code"),
    [("leave", signal.SIGINT, 130), ("leave", signal.SIGTERM, 143), ("hang", signal.SIGINT, 130)],
)
def test_exit_codes_and_the_second_ctrl_c(behaviour, number, code):
    environment = os.environ | {"PYTHONPATH": SOURCE}
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(LOOP), behaviour], env=environment, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout.readline() == b"ready\n"
        child.send_signal(number)
        assert child.stdout.readline() == b"saved\n"
        if behaviour == "hang":
            child.send_signal(number)
        assert child.wait(20) == code


def test_other_threads_are_left_alone():
    before = signal.getsignal(signal.SIGINT)
    seen = []

    def work():
        with StopSignals() as stop:
            seen.append((stop.received, signal.getsignal(signal.SIGINT)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(None, before)]
