"""A cluster of a head that runs no work and two worker nodes, in a process of its own; see test_nodes.py.

Prints the cluster's address as JSON, then answers each line of its input with a line of JSON: `lose` kills the younger
worker node, `gain` adds one, `where` tells on which nodes each kind of task and actor ran. It ends with its input.

usage: python nodes.py [GPUS]                 GPUs that the younger worker node says it has
"""

from __future__ import annotations

import json
import socket
import sys
from collections import defaultdict

from ray.cluster_utils import Cluster
from ray.util.state import list_actors, list_tasks


def where(dashboard: str) -> dict[str, list[str]]:
    """Ids of the nodes on which tasks and actors ran, by name."""
    found: defaultdict[str, set[str]] = defaultdict(set)
    for task in list_tasks(address=dashboard, limit=10_000, detail=True):
        if task.node_id:
            found[task.name].add(task.node_id)
    for actor in list_actors(address=dashboard, limit=10_000, detail=True):
        if actor.node_id:
            found[actor.class_name].add(actor.node_id)
    return {name: sorted(nodes) for name, nodes in found.items()}


def main() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    head = {"num_cpus": 0, "include_dashboard": True, "dashboard_port": port}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    gpus = int(*sys.argv[1:])
    workers = [cluster.add_node(num_cpus=2, num_gpus=n) for n in (0, gpus)]
    cluster.wait_for_nodes()
    print(json.dumps(cluster.address), flush=True)
    for line in sys.stdin:
        if line.strip() == "lose":
            cluster.remove_node(workers.pop(), allow_graceful=False)
            print(json.dumps("lost"), flush=True)
        elif line.strip() == "gain":
            workers.append(cluster.add_node(num_cpus=2))
            print(json.dumps("gained"), flush=True)
        else:
            print(json.dumps(where(f"http://127.0.0.1:{port}")), flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    main()
