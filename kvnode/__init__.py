"""kvnode: a replicated, Consul-like key-value store."""

__version__ = "0.1.0"
