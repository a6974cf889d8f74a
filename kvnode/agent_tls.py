"""Certificates and the peer secret of one node: read at the start, looked at again every few seconds.

The files are read in a thread, since a volume may hang and a handshake is arithmetic; what is made of them
is put in force on the loop, for the next connection.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import structlog
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from kvnode.config import Config
from kvnode.errors import SettingError
from kvnode.tls import Contexts, TlsFiles, Watched, build
from kvnode.tls.listener import Refusal
from kvnode.transport.metrics import LogBrake
from kvnode.transport.peer_tls import PeerTls
from kvnode.transport.secret import Secrets, parse_secrets

_LOG = structlog.get_logger("kvnode.tls")

LOOK_S = 10.0
"""Between two looks at the files."""
_WARN_SHARE = 1 / 6
"""A certificate is near its end when less than this of its life is left: renewal is usual at a third."""
_WARN_EVERY_S = 3600.0
_SECRET_BYTES_MAX = 64 * 1024


class Security:
    """What the ports are given. ``start`` and ``stop`` with the loop running."""

    def __init__(self, config: Config, *, clock: Callable[[], float] = time.time) -> None:
        """Read everything; blocks.

        Raises:
            SettingError: A file cannot be used.
        """
        self._config = config
        self._clock = clock
        self._task: asyncio.Task[None] | None = None
        self._busy = asyncio.Lock()
        self._warn_after = float("-inf")
        self._brake = LogBrake(60.0, total_per_interval=5)
        self.http_refused = 0
        """Handshakes that failed on the HTTP port."""
        self.on_secrets: Callable[[Secrets], None] = lambda _: None
        """Told of new secrets."""
        self._certificate: Watched[Contexts] | None = None
        if config.tls_cert_file:
            files = tls_files(config)
            self._certificate = Watched("certificate", files.paths, lambda: build(files))
            self._note("certificate_loaded")
        secret_files = (config.peer_secret_file,) if config.peer_secret_file else ()
        self._secrets = Watched("peer secret", secret_files, lambda: read_secrets(config))

    @property
    def secrets(self) -> Secrets:
        """The secrets in force."""
        return self._secrets.value

    @property
    def peers(self) -> PeerTls | None:
        """For the transport; None: plain connections."""
        certificate, config = self._certificate, self._config
        if certificate is None or config.tls_peers == "off":
            return None
        return PeerTls(
            lambda: certificate.value,
            server_name=config.tls_server_name,
            required=config.tls_peers == "require",
        )

    @property
    def http(self) -> Callable[[], ssl.SSLContext] | None:
        """Gives the context for the next HTTP connection; None: plain HTTP."""
        certificate = self._certificate
        if certificate is None or not self._config.tls_http:
            return None
        return lambda: certificate.value.http

    def start(self) -> None:
        """Begin to look at the files."""
        self._task = asyncio.get_running_loop().create_task(self._watch(), name="certificates")

    async def stop(self) -> None:
        """Look no more. Idempotent."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    async def look(self, *, again: bool = False) -> None:
        """Take over what changed; with ``again`` also what did not seem to."""
        async with self._busy:
            if self._certificate is not None and await asyncio.to_thread(
                self._certificate.refresh, again=again
            ):
                self._warn_after = float("-inf")
                self._note("certificate_reloaded")
            if await asyncio.to_thread(self._secrets.refresh, again=again):
                self.on_secrets(self._secrets.value)
                _LOG.info("peer_secret_reloaded", accepted=len(self._secrets.value.accepted))
        self._warn()

    async def _watch(self) -> None:
        while True:
            self._warn()
            await asyncio.sleep(LOOK_S)
            await self.look()

    def _note(self, event: str) -> None:
        assert self._certificate is not None, "called when there is one"
        leaf = self._certificate.value.leaf
        _LOG.info(
            event,
            path=self._config.tls_cert_file,
            names=list(leaf.names),
            serial=leaf.serial,
            expires=_date(leaf.not_after),
        )

    def _warn(self) -> None:
        """Say, at most once an hour, that a certificate is at its end."""
        now = self._clock()
        if self._certificate is None or now < self._warn_after:
            return
        leaf = self._certificate.value.leaf
        left, life = leaf.not_after - now, leaf.not_after - leaf.not_before
        path = self._config.tls_cert_file
        if left <= 0:
            _LOG.error("certificate_expired", path=path, since=_date(leaf.not_after), advice=_RENEW)
        elif leaf.not_before > now:
            _LOG.error("certificate_not_valid_yet", path=path, until=_date(leaf.not_before))
        elif leaf.ca_not_after <= now:
            ca = self._config.tls_ca_file
            _LOG.error("ca_expired", path=ca, since=_date(leaf.ca_not_after), advice=_RENEW)
        elif left < life * _WARN_SHARE:
            _LOG.warning("certificate_expires", path=path, at=_date(leaf.not_after), advice=_RENEW)
        else:
            return
        self._warn_after = now + _WARN_EVERY_S

    def http_handshake_failed(self, refusal: Refusal) -> None:
        """Somebody did not get through the handshake of the HTTP port; clients are many, so log little."""
        self.http_refused += 1
        if self._brake.allows(refusal.host, time.monotonic()):
            _LOG.info(
                "http_tls_refused", host=refusal.host, plain=refusal.plain, why=refusal.reason
            )

    def collector(self) -> Collector:
        """The metrics."""
        return _Collector(self)

    def measure(self) -> Iterator[Metric]:
        """Read the metrics; nothing without a certificate or a secret file."""
        certificate = self._certificate
        if certificate is not None:
            now, leaf = self._clock(), certificate.value.leaf
            yield GaugeMetricFamily(
                "kvnode_tls_certificate_expiry_seconds",
                "Seconds until the node's certificate expires; negative afterwards.",
                value=leaf.not_after - now,
            )
            if self._config.tls_ca_file:
                yield GaugeMetricFamily(
                    "kvnode_tls_ca_expiry_seconds",
                    "Seconds until the last certificate of the CA file expires.",
                    value=leaf.ca_not_after - now,
                )
            yield CounterMetricFamily(
                "kvnode_tls_http_refused",
                "Connections of the HTTP port that failed the handshake or spoke no TLS.",
                value=self.http_refused,
            )
        watched: list[tuple[str, Watched[Contexts] | Watched[Secrets]]] = []
        if certificate is not None:
            watched.append(("certificate", certificate))
        if self._config.peer_secret_file:
            watched.append(("peer_secret", self._secrets))
        reloads = CounterMetricFamily(
            "kvnode_tls_reloads", "Changes of files that were taken over.", labels=("what",)
        )
        failures = CounterMetricFamily(
            "kvnode_tls_reload_failures",
            "Changes of files that could not be used; the old ones stayed in force.",
            labels=("what",),
        )
        for what, one in watched:
            reloads.add_metric((what,), one.reloads)
            failures.add_metric((what,), one.failures)
        if watched:
            yield reloads
            yield failures


class _Collector(Collector):
    def __init__(self, security: Security) -> None:
        self._security = security

    def collect(self) -> Iterator[Metric]:
        """See ``Collector``."""
        yield from self._security.measure()


_RENEW = "put a new certificate and key in its place; they are taken over within seconds, without a restart"


def tls_files(config: Config) -> TlsFiles:
    """The certificate's files; there is one."""
    peers = config.tls_peers != "off"
    return TlsFiles(
        cert=config.tls_cert_file,
        key=config.tls_key_file,
        ca=config.tls_ca_file if peers or config.tls_verify_clients else "",
        peers=peers,
        verify_clients=config.tls_verify_clients and config.tls_http,
    )


def read_secrets(config: Config) -> Secrets:
    """The peer secrets: those of the file, else the one given, else none.

    Raises:
        SettingError: The file cannot be read, or holds none.
    """
    path = config.peer_secret_file
    if not path:
        if not config.peer_secret:
            return Secrets()
        return parse_secrets(config.peer_secret, "--peer-secret")
    try:
        with Path(path).open("rb") as file:
            text = file.read(_SECRET_BYTES_MAX).decode()
    except OSError as error:
        raise SettingError(f"--peer-secret-file: cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError:
        # Not chained: the error's text holds the bytes.
        raise SettingError(f"--peer-secret-file: {path} is no text") from None
    return parse_secrets(text, f"--peer-secret-file: {path}")


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
