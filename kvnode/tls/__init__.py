"""Certificates: read, checked, used on both ports, and exchanged for new ones while the node runs.

What it is ---------- One certificate with its key and one CA serve everything: the peer port
(mutual TLS, both sides verify the other against the CA), the HTTP port, and what this node says
when it dials. ``contexts`` turns the files into ``ssl.SSLContext`` objects after a trial handshake
of the node with itself; ``watched`` makes them anew when the files change; ``listener`` accepts
connections; ``names`` compares names; ``authority`` makes CAs and certificates for ``kvnode tls``
and ``kvnode dev --tls``.

Vocabulary
----------
- *leaf*: the node's own certificate, the first one in ``tls_cert_file``; intermediates may follow it.
- *trial*: the node shakes hands with itself in memory. It fails for whatever would make every peer
  refuse this
  certificate: a key of another one, a foreign CA, a certificate that may not be used as a client.
- *plain*: a connection whose first byte is no TLS record of the kind that opens a handshake.

Invariants
----------
- Each new connection uses the newest good certificate; nothing is changed under a connection that
  stands.
- A change of the files that does not pass the trial changes nothing: the old certificate stays in
  force, and a log line and a counter say so.
- No session is ever resumed on the peer port, so a CA that was taken out of the file lets nobody in.
- A stranger costs a bounded amount: handshakes under way are counted, timed, and the oldest gives way.
- Keys are read by OpenSSL only; no key and no secret is ever logged.

What it does not do ------------------- No revocation lists: give certificates short lives and
change them, which costs nothing here. No certificate per
name (SNI). Connections that stand are not ended when a certificate changes.
"""

from kvnode.tls.contexts import Contexts, Leaf, TlsFiles, build
from kvnode.tls.listener import TlsListener
from kvnode.tls.names import certificate_names, matches
from kvnode.tls.watched import Watched

__all__ = [
    "Contexts",
    "Leaf",
    "TlsFiles",
    "TlsListener",
    "Watched",
    "build",
    "certificate_names",
    "matches",
]
