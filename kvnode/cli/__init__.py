"""The command line: ``kvnode agent | dev | kv | members | operator | tls | version``.

Data go to stdout, talk goes to stderr, so that every command can stand in a pipe. ``--output json`` gives
one JSON document per command. Exit codes: 0 it worked; 1 the answer is no (no such key, a ``--cas`` that
did not fit, a refusal, nobody answers); 2 the command itself is wrong.

- ``main.py`` puts the commands together and turns errors into exit codes.
- ``agent_command.py`` reads ``kvnode agent``'s flags; they are Consul's too, single dashes and all, which
  no option parser would take, so it has its own (``kvnode.config``).
- ``dev.py`` and ``supervisor.py`` run a whole cluster on this machine.
- ``tls.py`` makes certificates; ``tls_options.py`` gives every client command what it needs to use them.
- ``kv.py`` and ``operator.py`` are clients of a running node, over ``kvnode.client``.

Invariants:

- Only processes that were started here are ever ended here.
- Only this package prints; everything below it logs.
"""
