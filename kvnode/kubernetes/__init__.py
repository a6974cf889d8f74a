"""What the API server of Kubernetes is asked: how large a StatefulSet is to be, a label on one pod, Secrets.

Vocabulary:

- *scale*: a StatefulSet's name, ``spec.replicas`` and ``spec.ordinals.start`` (``kvnode.ports.Scale``).
- *credentials*: the folder that Kubernetes mounts into a pod with a service account: token, CA, namespace.

Invariants:

- A node makes two calls, both with least rights: ``get`` on one StatefulSet, ``patch`` on pods (only for the
  leader's label). Nothing is listed, watched or kept. Secrets are read and made by a Job alone (``secrets``).
- What is not certain is an error: a StatefulSet that is not there, that is being deleted, or that says no
  number, is never "zero replicas".
- The token and the CA are read again for each call: the kubelet exchanges them while the pod runs.
- Every call is bounded in time and size, follows no redirect, and sends the token over TLS only.
- An error says what an operator can do about it.

What becomes of an answer is decided in ``kvnode.replica.scaling``. Not done here: retries (whoever asks
asks again), watches, and any other object.
"""

from kvnode.kubernetes.api import ApiServer
from kvnode.kubernetes.credentials import ApiSettings, default_api

__all__ = ["ApiServer", "ApiSettings", "default_api"]
