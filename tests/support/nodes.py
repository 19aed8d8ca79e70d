"""A head that runs no work and worker nodes with two CPUs each, in a separate process; see node_process.py.

Prints the cluster's address as JSON, then answers each line of its input with a line of JSON:

    restore [GPUS]     end the worker nodes and start two, the younger with declared GPUs; wait until they are alive
    lose [NODE]        kill the worker node with this id, or else the younger one
    gain               add a worker node
    where              ids of the nodes on which the tasks and actors of the newest job ran, by name
    trains             Ray Train's own runs, the newest last, each with its attempts, as the dashboard shows them

It ends with its input.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import urllib.request
from collections import defaultdict
from pathlib import Path
from typing import Any

from ray.cluster_utils import Cluster
from ray.util.state import list_actors, list_tasks


class Workers:
    """The worker nodes beside the head, and what is asked about them."""

    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.dashboard = f"http://127.0.0.1:{port}"
        head = {"num_cpus": 0, "include_dashboard": True, "dashboard_port": port}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.nodes: list[Any] = []

    def restore(self, gpus: str = "0") -> str:
        while self.nodes:
            self.cluster.remove_node(self.nodes.pop())
        for n in (0, int(gpus)):
            self.nodes.append(self.cluster.add_node(num_cpus=2, num_gpus=n))
        self.cluster.wait_for_nodes()
        return "restored"

    def lose(self, node: str = "") -> str:
        lost = next((n for n in self.nodes if n.node_id == node), self.nodes[-1])
        self.nodes.remove(lost)
        self.cluster.remove_node(lost, allow_graceful=False)
        return "lost"

    def gain(self) -> str:
        self.nodes.append(self.cluster.add_node(num_cpus=2))
        return "gained"

    def where(self) -> dict[str, list[str]]:
        tasks = list_tasks(address=self.dashboard, limit=10_000, detail=True)
        actors = list_actors(address=self.dashboard, limit=10_000, detail=True)
        newest = max(one.job_id for one in (*tasks, *actors))
        found: defaultdict[str, set[str]] = defaultdict(set)
        for name, one in (*((t.name, t) for t in tasks), *((a.class_name, a) for a in actors)):
            if one.node_id and one.job_id == newest:
                found[name].add(one.node_id)
        return {name: sorted(nodes) for name, nodes in found.items()}

    def trains(self) -> list[dict[str, Any]]:
        token = Path(os.environ["RAY_AUTH_TOKEN_PATH"]).read_text()
        request = urllib.request.Request(
            f"{self.dashboard}/api/train/v2/runs/v1", headers={"Authorization": f"Bearer {token}"}
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            runs: list[dict[str, Any]] = json.loads(answer.read())["train_runs"]
        return sorted(runs, key=lambda run: run["start_time_ns"])


def main() -> None:
    workers = Workers()
    workers.restore()
    print(json.dumps(workers.cluster.address), flush=True)
    for line in sys.stdin:
        question, *rest = line.split()
        print(json.dumps(getattr(workers, question)(*rest)), flush=True)
    workers.cluster.shutdown()


if __name__ == "__main__":
    main()
