"""What a cluster refuses, and why, in a line."""

from collections.abc import Sequence

from cellray.cluster.address import Address, ClusterError
from cellray.core.secrets import in_words, scrub

UNREACHED = "Cannot connect to host"
"""What the head says where the node is gone that it asks."""
CHECK = "check the address (the dashboard's port, 8265 unless told), and that the cluster is up"


def last_line(error: Exception) -> str:
    """Give the last line of what an error says: of a traceback on the head node, its error."""
    lines = tail_lines(str(error).removesuffix("."), 1) or [type(error).__name__]
    return in_words(scrub(lines[-1])).strip()[:200]


def refused_token(address: Address, said: str) -> ClusterError:
    """Say what is wrong with the token."""
    url = address.url
    if said.startswith("Authentication required"):
        return ClusterError(
            f"the cluster at {url} wants a token, and none was sent",
            "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH to a file that holds it",
        )
    if said.startswith("Authentication failed") and address.token is not None:
        return ClusterError(
            f"the cluster at {url} refuses the token of {address.token}",
            "unset it: the token of the local cluster is found without it",
        )
    if said.startswith("Authentication failed"):
        return ClusterError(
            f"the cluster at {url} refuses the token",
            "set RAY_AUTH_TOKEN_PATH, or RAY_AUTH_TOKEN, to the one that it was started with",
        )
    return ClusterError(
        f"no token for the cluster at {url}: {said.partition('. ')[0]}",
        "set RAY_AUTH_TOKEN_PATH to a file that holds it",
    )


def tail_lines(said: str, count: int) -> Sequence[str]:
    """Give the last lines that say something."""
    return [line.rstrip() for line in said.splitlines() if line.strip()][-count:]
