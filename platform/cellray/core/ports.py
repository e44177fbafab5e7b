"""Ports on which servers of ours listen."""

import socket
from errno import EADDRINUSE
from ipaddress import ip_address

from cellray.core.errors import CellrayError


def require_free(host: str, port: int, *, mend: str = "choose another with --port") -> None:
    """Raise unless a server may listen there.

    Raises
    ------
    CellrayError
        The port is taken, or the host is none of this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            what = f"port {port} of {host} cannot be listened on"
            if error.errno == EADDRINUSE:
                what = f"port {port} is taken"
            raise CellrayError(f"{what} ({error.strerror})", mend) from error


def is_loopback(host: str) -> bool:
    """Say whether only this machine reaches a host; a name other than localhost counts as open."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
