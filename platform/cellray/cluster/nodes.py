"""What the head of a Ray cluster says of its nodes."""

import json

from cellray.cluster.processes import answers


def alive_nodes(dashboard: str, token: str) -> int:
    """Count the nodes that the head knows to be alive; 0 where it does not answer."""
    body = answers(f"{dashboard}/api/v0/nodes", token=token)
    if body is None:
        return 0
    listed = json.loads(body)["data"]["result"]["result"]
    return sum(1 for node in listed if node["state"] == "ALIVE")
