"""``kvnode tls``: certificate authorities, certificates and peer secrets, without further tools."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kvnode.cli.output import emit, fail, say
from kvnode.errors import BadRequest

CA_CERT, CA_KEY = "ca.crt", "ca.key"
_CA_DAYS, _CERT_DAYS = 3650, 365

app = typer.Typer(
    help="Make certificates and secrets for a cluster.",
    no_args_is_help=True,
    epilog="Examples: kvnode tls ca create · kvnode tls cert create --host kvnode-0.example · "
    "kvnode tls secret > peer-secret",
)
ca = typer.Typer(help="Certificate authorities.", no_args_is_help=True)
cert = typer.Typer(help="Certificates of nodes and of clients.", no_args_is_help=True)
app.add_typer(ca, name="ca")
app.add_typer(cert, name="cert")

Directory = Annotated[
    Path, typer.Option("--dir", help="Where files are read and written.", file_okay=False)
]
Force = Annotated[bool, typer.Option("--force", help="Replace files that are there.")]


@ca.command("create")
def create_ca(
    directory: Directory = Path(),
    name: Annotated[str, typer.Option("--name", help="For people who read it.")] = "kvnode CA",
    days: Annotated[int, typer.Option("--days", min=1, max=36500)] = _CA_DAYS,
    force: Force = False,
) -> None:
    """Make an authority: ca.crt, which every node and client gets, and ca.key, which none of them needs.

    Examples: kvnode tls ca create · kvnode tls ca create --dir /etc/kvnode/tls --days 1825
    """
    from kvnode.tls.authority import make_ca

    pair = make_ca(name, days)
    _write(directory, {CA_CERT: pair.cert}, {CA_KEY: pair.key}, force=force)


@cert.command("create")
def create_cert(
    hosts: Annotated[
        list[str] | None,
        typer.Option(
            "--host",
            "--additional-dnsname",
            "--additional-ipaddress",
            help="DNS name, *.name or IP address that the certificate is for; repeatable. "
            "localhost and 127.0.0.1 are always in a node's.",
        ),
    ] = None,
    client: Annotated[
        bool, typer.Option("--client", help="For an HTTP client, which opens no peer port.")
    ] = False,
    name: Annotated[
        str, typer.Option("--name", help="Name of the files: NAME.crt, NAME.key.")
    ] = "tls",
    days: Annotated[int, typer.Option("--days", min=1, max=36500)] = _CERT_DAYS,
    directory: Directory = Path(),
    ca_file: Annotated[
        Path | None, typer.Option("--ca", help="The authority. Not given: ca.crt in --dir.")
    ] = None,
    ca_key: Annotated[
        Path | None, typer.Option("--key", help="Its key. Not given: ca.key in --dir.")
    ] = None,
    force: Force = False,
) -> None:
    """Make a certificate with its key, signed by the authority. One may serve all nodes.

    Examples: kvnode tls cert create --host '*.kvnode-headless.default.svc.cluster.local' ·
    kvnode tls cert create --client --name alice
    """
    from kvnode.tls.authority import Pair, make_certificate

    try:
        authority = Pair(
            cert=(ca_file or directory / CA_CERT).read_bytes(),
            key=(ca_key or directory / CA_KEY).read_bytes(),
        )
    except OSError as error:
        fail(f"{error.filename}: {error.strerror}; `kvnode tls ca create` makes an authority")
    names = [*(hosts or []), *([] if client else ["localhost", "127.0.0.1"])]
    try:
        subject = name if client else (hosts or ["localhost"])[0]
        pair = make_certificate(authority, subject, names, days=days, server=not client)
    except BadRequest as error:
        fail(str(error), code=2)
    _write(directory, {f"{name}.crt": pair.cert}, {f"{name}.key": pair.key}, force=force)


@app.command("secret")
def secret() -> None:
    """Print a new peer secret, for --peer-secret-file.

    Examples: (umask 077; kvnode tls secret > peer-secret)
    """
    from kvnode.tls.authority import make_secret

    emit(make_secret().encode() + b"\n")


def _write(
    directory: Path, public: dict[str, bytes], private: dict[str, bytes], *, force: bool
) -> None:
    """Write files, none of them over one that is there.

    Raises:
        typer.Exit: It is there, or cannot be written.
    """
    from kvnode.tls.authority import write_file

    taken = [str(directory / name) for name in (*public, *private) if (directory / name).exists()]
    if taken and not force:
        fail(f"{' and '.join(taken)} exist already; --force replaces them")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        # The key first: a node that looks in between finds a pair that does not fit, and waits.
        for name, data in private.items():
            write_file(directory / name, data, private=True)
        for name, data in public.items():
            write_file(directory / name, data, private=False)
    except OSError as error:
        fail(f"{error.filename or directory}: {error.strerror}")
    say("wrote " + " and ".join(str(directory / name) for name in (*public, *private)))
