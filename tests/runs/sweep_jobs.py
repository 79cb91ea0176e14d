"""Jobs for test_sweep: functions that a fresh process can import."""

import os
import signal
import time

from gossamer.errors import NumericsError
from gossamer.runs.signals import Interrupted, StopSignals


def square(config, folder, device):
    with (folder / "calls.txt").open("a") as file:
        file.write(device + "\n")
    if config["x"] == 3:
        raise NumericsError("the loss is NaN at step 7")
    if config["x"] == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    if config["x"] == 5:
        raise KeyError("missing")
    return {"square": config["x"] ** 2}


def wait_for_signal(config, folder, device):
    with StopSignals() as stop:
        (folder / "ready").touch()
        while not stop.received:
            time.sleep(0.01)
        (folder / "saved").touch()
        raise Interrupted(stop.received)
