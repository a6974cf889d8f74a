"""Settings: declared once, read from four places, documented by themselves.

Each setting is one field of ``Config`` (``settings.py``) with its type, unit, default, bounds and help.
That one declaration gives

- the flag ``--http-port`` (and Consul's spelling ``-http-port``),
- the variable ``KVNODE_HTTP_PORT``,
- the member ``http_port`` of a TOML or JSON file (and Consul's ``ports.http``),
- its row in ``docs/configuration.md`` and in ``kvnode agent --help``.

Flags win over variables, variables over files, files over defaults (design §7).

Invariants:

- A value that cannot be used stops the start with a ``SettingError`` that names where it was given.
- What is merely unknown to us in a *file* never stops the start: Consul's own members are many
  (spec §15). It becomes a ``Notice``, which the agent logs once logging works.
- A ``Config`` is frozen: nothing changes while the node runs, except what SIGHUP reads again.

What it does not do: touch the network, guess addresses, or create directories. ``kvnode.agent`` does.
"""

from kvnode.config.declaration import Setting
from kvnode.config.loading import Loaded, Notice, load
from kvnode.config.settings import SETTINGS, Config
from kvnode.errors import SettingError

__all__ = ["SETTINGS", "Config", "Loaded", "Notice", "Setting", "SettingError", "load"]
