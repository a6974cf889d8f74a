"""``kvnode agent``: from the command's words to a running node."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from kvnode import agent_signals
from kvnode.config import Loaded, SettingError, load
from kvnode.config.documentation import flags_help

_HELP = """\
Usage: kvnode agent [FLAGS]

Run one node until SIGTERM or SIGINT. Each flag is also a variable (--http-port: KVNODE_HTTP_PORT) and a
member of a --config-file (http_port). Consul's spellings (-http-port=8500) are taken too.

Examples:
  kvnode agent --dev
  kvnode agent --node-name n1 --data-dir /var/lib/kvnode --bootstrap-expect 3 \\
      --retry-join n1.example:8300 --retry-join n2.example:8300 --retry-join n3.example:8300
  kvnode agent --data-dir /data --bootstrap-expect 3 --client 0.0.0.0 \\
      --join-srv _raft._tcp.kvnode.default.svc.cluster.local

"""


def run(argv: Sequence[str]) -> int:
    """Run a node with the settings in ``argv``, the environment and files; return the exit code."""
    if any(word in ("-h", "--help", "-help") for word in argv):
        sys.stdout.write(_HELP + flags_help())
        return 0
    if not __debug__:
        # Assertions are the last line of defence of the data (RC-75).
        sys.stderr.write("kvnode agent: refuses to run under python -O, which removes assertions\n")
        return 2

    def read() -> Loaded:
        return load(argv, os.environ)

    with agent_signals.held():
        try:
            loaded = read()
        except SettingError as error:
            sys.stderr.write(f"kvnode agent: {error}\n")
            return 2
        from kvnode.agent import run_agent  # RocksDB and the rest: not for --help

        return run_agent(loaded, read)
