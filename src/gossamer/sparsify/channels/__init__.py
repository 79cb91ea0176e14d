"""Coupled channels: which positions of which parameters must be removed, permuted or doubled together."""

from .choice import Choice, Energy, Ratio, Threshold, channel_rows, check_channels, choose_channels, vote
from .groups import ChannelGraph, ChannelGroup, channel_graph, channel_groups

__all__ = [
    "ChannelGraph",
    "ChannelGroup",
    "Choice",
    "Energy",
    "Ratio",
    "Threshold",
    "channel_graph",
    "channel_groups",
    "channel_rows",
    "check_channels",
    "choose_channels",
    "vote",
]
