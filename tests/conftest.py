"""Every test: one thread, fixed seeds, no network."""

from __future__ import annotations

import ipaddress
import random
import socket
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)
settings.register_profile(
    "gossamer",
    deadline=None,
    max_examples=25,
    derandomize=True,
    # the fixtures below only set global state, which hypothesis restores for itself
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
settings.load_profile("gossamer")


def _is_local(host: str) -> bool:
    if host in ("", "localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _local_only(connect: Callable[..., Any]) -> Callable[..., Any]:
    def guarded(self: socket.socket, address: Any) -> Any:
        if self.family in (socket.AF_INET, socket.AF_INET6) and not _is_local(address[0]):
            raise RuntimeError(f"a test tried to reach the network: {address}")
        return connect(self, address)

    return guarded


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sockets reach this machine only."""
    monkeypatch.setattr(socket.socket, "connect", _local_only(socket.socket.connect))
    monkeypatch.setattr(socket.socket, "connect_ex", _local_only(socket.socket.connect_ex))


@pytest.fixture(autouse=True)
def seeds() -> None:
    """The same random numbers in every run, whatever ran before."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  (libraries read the global state)
    torch.manual_seed(0)
