"""Coupled channels: which positions of which parameters must be removed, permuted or doubled together."""

from .groups import ChannelGraph, ChannelGroup, channel_graph, channel_groups

__all__ = ["ChannelGraph", "ChannelGroup", "channel_graph", "channel_groups"]
