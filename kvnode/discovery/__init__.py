"""Where other nodes may be: addresses from settings and from DNS. Never who belongs to the cluster.

Vocabulary:

- *seed*: a place to try, ``host:port``, with the pod's name where DNS tells it.
- *round*: one set of DNS queries with one resolver, bounded in time.
- *nobody yet*: NXDOMAIN or no data; what a Service says before its first pod. Not a failure.
- *last good answer*: the newest one that named anybody; it stays in force while DNS is empty or ill.

Invariants:

- A seed adds an address to dial, nothing else: no answer, however wrong, stale or foreign, adds or
  removes a member or changes a quorum (RC-56). Whoever answers at a seed must introduce itself.
- A node draws no conclusion from its own absence: its pod is in DNS only after its process started,
  and a dead node's pod stays listed for minutes.
- Names, not IPs, wherever DNS gives names: they are resolved again at each dial (RC-53).
- The same pods give the same list, whatever order the name server chose.
- Rounds never overlap, and nothing here runs on the path of a request.
- Each round has a resolver of its own, because c-ares caches inside the process.

Not done here: the Kubernetes API (the number of replicas is the agent's business), mDNS, cloud
providers' inventories, and Consul's gossip.
"""

from kvnode.discovery.discovery import Discovery
from kvnode.discovery.dns import Answer, DnsSettings
from kvnode.discovery.seeds import Seed, natural_key
from kvnode.discovery.static import parse_retry_join

__all__ = ["Answer", "Discovery", "DnsSettings", "Seed", "natural_key", "parse_retry_join"]
