"""colocate: prefill and decode of one LLM share one device, each confined to its own part of it."""

__version__ = "0.1.0"
