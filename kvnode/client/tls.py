"""How a client proves a server, and itself."""

from __future__ import annotations

import ssl
from dataclasses import dataclass

from kvnode.errors import BadRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientTls:
    """For addresses that begin with ``https://``; without effect on others."""

    ca_file: str = ""
    """Certificates, PEM, that the server's must lead to. Empty: the system's."""
    cert_file: str = ""
    """Our own certificate, PEM, for servers that ask for one."""
    key_file: str = ""
    """Its key; empty: it is in ``cert_file`` as well."""
    server_name: str = ""
    """Name that the server's certificate must be for. Empty: the host in the address."""
    verify: bool = True
    """False trusts whoever answers: for trying things out."""

    def context(self) -> ssl.SSLContext:
        """Read the files. Blocks.

        Raises:
            BadRequest: A file cannot be used; the text names it.
        """
        if self.key_file and not self.cert_file:
            raise BadRequest("a client key needs its certificate as well")
        try:
            context = ssl.create_default_context(cafile=self.ca_file or None)
        except (OSError, ssl.SSLError) as error:
            raise BadRequest(f"{self.ca_file}: no CA certificates: {_why(error)}") from error
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        if self.cert_file:
            try:
                context.load_cert_chain(self.cert_file, self.key_file or None, _no_password)
            except (OSError, ssl.SSLError) as error:
                files = ", ".join(name for name in (self.cert_file, self.key_file) if name)
                raise BadRequest(f"{files}: no certificate with its key: {_why(error)}") from error
        if not self.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context


def _no_password() -> str:
    # Without this OpenSSL would ask on the terminal, and wait.
    raise BadRequest("the client key is encrypted; give one without a pass phrase")


def _why(error: OSError) -> str:
    if isinstance(error, ssl.SSLError):
        return (error.reason or str(error)).replace("_", " ").lower()
    return error.strerror or str(error)
