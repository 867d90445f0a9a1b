"""A private certificate authority, and TLS in front of a server that speaks none."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

DAY = datetime.timedelta(days=1)


class Authority:
    """Signs certificates for one test; ``file`` is what its clients trust."""

    def __init__(self, directory: Path, name: str = "test authority") -> None:
        self._directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        made = self._builder(self._name, self._key.public_key())
        made = made.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        identifier = x509.SubjectKeyIdentifier.from_public_key(self._key.public_key())
        made = made.add_extension(identifier, critical=False)
        usage = x509.KeyUsage(True, False, False, False, False, True, True, False, False)
        made = made.add_extension(usage, critical=True)
        certificate = made.sign(self._key, hashes.SHA256())
        self.file = directory / f"{name}.pem"
        self.file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def _builder(
        self, subject: x509.Name, key: ec.EllipticCurvePublicKey
    ) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - DAY)
            .not_valid_after(now + DAY)
        )

    def server(self, *names: str) -> ssl.SSLContext:
        """A server's context with a certificate for 127.0.0.1 and these names."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a server")])
        held: list[x509.GeneralName] = [x509.DNSName(name) for name in names]
        if not names:
            held.append(x509.IPAddress(ipaddress.ip_address("127.0.0.1")))
        made = self._builder(subject, key.public_key())
        made = made.add_extension(x509.SubjectAlternativeName(held), critical=False)
        known = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        made = made.add_extension(known, critical=False)
        certificate = made.sign(self._key, hashes.SHA256())
        path = self._directory / "server.pem"
        path.write_bytes(
            certificate.public_bytes(serialization.Encoding.PEM)
            + key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(path)
        return context


@asynccontextmanager
async def secured(upstream: str, context: ssl.SSLContext) -> AsyncIterator[str]:
    """An endpoint that ends TLS and hands the bytes on."""
    host, _, port = upstream.removeprefix("http://").rpartition(":")

    async def serve(client: trio.SSLStream[trio.SocketStream]) -> None:
        # A client that refuses our certificate, or hangs up, is what is tested.
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            server = await trio.open_tcp_stream(host, int(port))
            async with client, server, trio.open_nursery() as nursery:
                nursery.start_soon(_pump, server, client, nursery.cancel_scope)
                await _pump(client, server, nursery.cancel_scope)

    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_ssl_over_tcp_listeners(
            0, context, host="127.0.0.1", https_compatible=True
        )
        nursery.start_soon(trio.serve_listeners, serve, [listener])
        number = listener.transport_listener.socket.getsockname()[1]
        try:
            yield f"https://127.0.0.1:{number}"
        finally:
            nursery.cancel_scope.cancel()


async def _pump(
    source: trio.abc.ReceiveStream, target: trio.abc.SendStream, scope: trio.CancelScope
) -> None:
    with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        while data := await source.receive_some(1 << 16):
            await target.send_all(data)
    scope.cancel()
