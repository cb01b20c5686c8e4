"""Stand-in for the metadata server of Google Compute Engine, for a TPU slice.

As https://cloud.google.com/compute/docs/metadata/querying-metadata says: plain
HTTP; a request without `Metadata-Flavor: Google` gets 403, one with
`X-Forwarded-For` too; what there is not, 404; each answer has `Metadata-Flavor:
Google`. Which attributes a worker of a slice has, and their form, is what JAX
reads there (jax/_src/clusters/cloud_tpu_cluster.py), and MaxText and others.
Each worker asks a server of its own, since each answer is its own.
"""

import contextlib
import http.server
import threading
from collections.abc import Generator

_PREFIX = "/computeMetadata/v1/instance/attributes/"


class MetadataServer(http.server.ThreadingHTTPServer):
  """Listens on loopback, at a port that is free.

  Args:
    attributes: values by name.

  Attributes:
    requests: paths that were asked for.
  """

  def __init__(self, attributes: dict[str, str]) -> None:
    super().__init__(("127.0.0.1", 0), _Handler)
    self.attributes = attributes
    self.requests: list[str] = []

  @property
  def address(self) -> str:
    """What GCE_METADATA_IP is to say."""
    return f"127.0.0.1:{self.server_port}"


class _Handler(http.server.BaseHTTPRequestHandler):
  server: MetadataServer

  def do_GET(self) -> None:
    self.server.requests.append(self.path)
    code, text = 404, "404 page not found"
    if (
      self.headers.get("Metadata-Flavor") != "Google"
      or "X-Forwarded-For" in self.headers
    ):
      code, text = 403, "Missing Metadata-Flavor:Google header."
    elif self.path.startswith(_PREFIX):
      found = self.server.attributes.get(self.path.removeprefix(_PREFIX))
      if found is not None:
        code, text = 200, found
    self.send_response(code)
    self.send_header("Metadata-Flavor", "Google")
    self.send_header("Content-Type", "application/text")
    self.end_headers()
    self.wfile.write(text.encode())

  def log_message(self, format: str, *args: object) -> None:
    pass


def slice_of(
  hosts: list[str],
) -> contextlib.AbstractContextManager[list[MetadataServer]]:
  """The servers that the workers of a slice see, one each.

  Args:
    hosts: addresses of the workers.
  """
  return _serving(
    [
      {
        "agent-worker-number": str(worker),
        "worker-network-endpoints": ",".join(hosts),
        "tpu-env": f"ACCELERATOR_TYPE: 'v5litepod-{4 * len(hosts)}'\n"
        f"WORKER_ID: '{worker}'\n",
      }
      for worker in range(len(hosts))
    ]
  )


def nodes_of_gke(
  count: int,
) -> contextlib.AbstractContextManager[list[MetadataServer]]:
  """The servers that pods see, which know nothing of TPUs: GKE conceals it."""
  return _serving([{}] * count)


@contextlib.contextmanager
def _serving(
  attributes: list[dict[str, str]],
) -> Generator[list[MetadataServer]]:
  servers = [MetadataServer(one) for one in attributes]
  threads = [
    threading.Thread(target=server.serve_forever, daemon=True)
    for server in servers
  ]
  for thread in threads:
    thread.start()
  try:
    yield servers
  finally:
    for server, thread in zip(servers, threads, strict=True):
      server.shutdown()
      thread.join()
      server.server_close()
