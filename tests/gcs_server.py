"""A stand-in on loopback for the JSON API of Google Cloud Storage.

  python tests/gcs_server.py [--port=P] [--latency=SECONDS]

Nothing real can be had where tests run. This behaves as the documentation says,
and `gcs_server_test.py` says which sentence of it each behaviour is from. The
clients are the real ones: TensorStore, gcsfs and google-cloud-storage, told by
the two variables of `environment`. It knows no accounts and no permissions;
a bucket is there when it is first named, except those called `missing`, and
`forbidden`, which nobody may use.

Objects live in memory. What was asked, and how many bytes went each way, is
counted in `GcsServer.log` and answered as JSON at `/counts`.
"""

import argparse
import base64
import collections
import contextlib
import dataclasses
import email.parser
import email.policy
import hashlib
import http.server
import itertools
import json
import re
import sys
import threading
import time
import urllib.parse

import google_crc32c

MISSING, FORBIDDEN = "missing", "forbidden"
_CHUNK = 256 * 1024  # Parts of a resumable upload are multiples of it.
_PAGE = 1000  # Most entries of a page.


@dataclasses.dataclass(frozen=True)
class Object:
  """A version of an object."""

  data: bytes
  generation: int
  content_type: str = "application/octet-stream"
  metadata: dict = dataclasses.field(default_factory=dict)
  created: float = dataclasses.field(default_factory=time.time)

  @property
  def crc32c(self):
    return _base64(google_crc32c.Checksum(self.data).digest())

  @property
  def md5(self):
    return _base64(hashlib.md5(self.data).digest())


class ApiError(Exception):
  """An answer that is not a success."""

  def __init__(self, status, reason, message):
    super().__init__(message)
    self.status, self.reason = status, reason


class GcsServer:
  """The server; objects by (bucket, name).

  Args:
    latency: seconds that every answer takes longer.
    port: of loopback; 0: a free one.
  """

  def __init__(self, latency=0.0, port=0):
    self.latency = latency
    self.objects = {}
    self.uploads = {}
    # One row an answer: (method, path, bytes in, bytes out).
    self.log = []
    self.fail_next = []  # Statuses that the next requests get.
    self.lock = threading.Lock()
    # Unique, and not rising: nobody may count on it.
    self.numbers = itertools.count(10**15, -1)
    handler = type("Handler", (_Handler,), {"store": self})
    self._server = _Server(("127.0.0.1", port), handler)
    self.address = f"http://127.0.0.1:{self._server.server_address[1]}"

  @property
  def environment(self):
    """Variables that make the clients ask this server."""
    return {
      "STORAGE_EMULATOR_HOST": self.address,
      "TENSORSTORE_GCS_HTTP_URL": self.address,
      # gcsfs asks by gRPC whether a bucket has folders, and waits for long.
      "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
      # Nobody is asked who the user is, which would take seconds.
      "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",
      "NO_GCE_CHECK": "true",
    }

  def serve_forever(self):
    self._server.serve_forever(poll_interval=0.05)

  @contextlib.contextmanager
  def running(self):
    """A context in which it answers."""
    thread = threading.Thread(target=self.serve_forever, daemon=True)
    thread.start()
    try:
      yield self
    finally:
      self._server.shutdown()
      self._server.server_close()
      thread.join()

  def names(self, bucket):
    """Names of all objects of a bucket, in order."""
    return sorted(name for where, name in list(self.objects) if where == bucket)

  def read(self, bucket, name):
    return self.objects[bucket, name].data

  def put(self, bucket, name, data, conditions=None, **fields):
    """Writes an object if the conditions hold; returns its version."""
    with self.lock:
      _check(self.objects.get((bucket, name)), conditions or {})
      version = Object(data, next(self.numbers), **fields)
      self.objects[bucket, name] = version
    return version

  def delete(self, bucket, name, conditions):
    with self.lock:
      _check(self._find(bucket, name), conditions)
      del self.objects[bucket, name]

  def get(self, bucket, name, conditions):
    """The object, if the conditions hold for it."""
    version = self._find(bucket, name)
    wanted = conditions.get("generation")
    if wanted and int(wanted) != version.generation:
      raise _not_found(bucket, name)
    _check(version, conditions, reading=True)
    return version

  def _find(self, bucket, name):
    if (bucket, name) not in self.objects:
      raise _not_found(bucket, name)
    return self.objects[bucket, name]

  def list(self, bucket, query):
    """A page of objects and common prefixes, as objects.list gives it."""
    prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
    start, end = query.get("startOffset", ""), query.get("endOffset")
    after = base64.b64decode(query.get("pageToken", "")).decode()
    most = min(int(query.get("maxResults") or _PAGE), _PAGE)
    trailing = query.get("includeTrailingDelimiter") == "true"
    entries = {}  # By what is sorted: the name, or the prefix.
    for name in self.names(bucket):
      if not name.startswith(prefix) or name < start or (end and name >= end):
        continue
      rest = name[len(prefix) :]
      at = rest.find(delimiter) if delimiter else -1
      if at < 0:
        entries[name] = "item"
        continue
      common = prefix + rest[: at + len(delimiter)]
      entries.setdefault(common, "prefix")
      if trailing and common == name:
        entries[common] = "both"
    left = [key for key in sorted(entries) if key > after or not after]
    page = left[:most]
    items = [
      resource(bucket, key, version)
      for key in page
      if entries[key] != "prefix"
      if (version := self.objects.get((bucket, key)))
    ]
    answer = {"kind": "storage#objects"}
    if items:
      answer["items"] = items
    if prefixes := [key for key in page if entries[key] != "item"]:
      answer["prefixes"] = prefixes
    if len(left) > most:
      answer["nextPageToken"] = _base64(page[-1].encode())
    return answer

  def counts(self):
    """Requests by method, and bytes each way."""
    methods = collections.Counter(method for method, *_ in self.log)
    return {
      "requests": dict(methods),
      "bytes_in": sum(row[2] for row in self.log),
      "bytes_out": sum(row[3] for row in self.log),
    }


def _check(version, conditions, *, reading=False):
  """Raises unless preconditions hold; version is None where no object is."""
  generation = version.generation if version else 0
  match = conditions.get("ifGenerationMatch")
  if match is not None and int(match) != generation:
    raise _unmet()
  unmatch = conditions.get("ifGenerationNotMatch")
  if unmatch is not None and int(unmatch) == generation:
    raise ApiError(304, "notModified", "") if reading else _unmet()
  match = conditions.get("ifMetagenerationMatch")
  if match is not None and (version is None or int(match) != 1):
    raise _unmet()


def _unmet():
  text = "At least one of the pre-conditions you specified did not hold."
  return ApiError(412, "conditionNotMet", text)


def _not_found(bucket, name):
  return ApiError(404, "notFound", f"No such object: {bucket}/{name}")


def resource(bucket, name, version):
  """The metadata of an object, as the API gives them."""
  stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(version.created))
  stamp += f".{int(version.created % 1 * 1000):03d}Z"
  quoted = urllib.parse.quote(name, safe="")
  values = {
    "kind": "storage#object",
    "id": f"{bucket}/{name}/{version.generation}",
    "selfLink": f"https://www.googleapis.com/storage/v1/b/{bucket}/o/{quoted}",
    "name": name,
    "bucket": bucket,
    "generation": str(version.generation),
    "metageneration": "1",
    "contentType": version.content_type,
    "storageClass": "STANDARD",
    "size": str(len(version.data)),
    "md5Hash": version.md5,
    "crc32c": version.crc32c,
    "etag": _base64(str(version.generation).encode()),
    "timeCreated": stamp,
    "updated": stamp,
  }
  return values | ({"metadata": version.metadata} if version.metadata else {})


def _base64(data):
  return base64.b64encode(data).decode()


class _Server(http.server.ThreadingHTTPServer):
  """Threads that end with the program; clients that hang up are no error."""

  daemon_threads = True
  request_queue_size = 128

  def handle_error(self, request, client_address):
    if not isinstance(sys.exc_info()[1], ConnectionError):
      super().handle_error(request, client_address)


class _Handler(http.server.BaseHTTPRequestHandler):
  """One connection; `store` is the server."""

  protocol_version = "HTTP/1.1"
  disable_nagle_algorithm = True
  store: GcsServer

  def log_message(self, *_):
    pass

  def _answer(self):
    """Reads a request, finds who answers it, sends the answer."""
    self._body = self._read_body()
    if self.store.latency:
      time.sleep(self.store.latency)
    try:
      status, headers, body = self._route()
    except ApiError as error:
      status, headers, body = _error(error)
    with contextlib.suppress(ConnectionError):  # Clients may hang up.
      self._send(status, headers, body)

  do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = _answer  # noqa: N815

  def _read_body(self):
    """Reads it whole; half of one, of a client that died, is not an object.

    Raises:
      ConnectionResetError: the client has hung up.
    """
    if self.headers.get("Transfer-Encoding") == "chunked":
      parts = []
      while size := int(self.rfile.readline().split(b";")[0] or b"-1", 16):
        parts.append(self._read(size))
        self.rfile.readline()
      self.rfile.readline()
      return b"".join(parts)
    return self._read(int(self.headers.get("Content-Length") or 0))

  def _read(self, size):
    data = self.rfile.read(size) if size > 0 else b""
    if len(data) != size:
      raise ConnectionResetError
    return data

  def _send(self, status, headers, body):
    self.store.log.append((self.command, self.path, len(self._body), len(body)))
    self.send_response(status)
    for name, value in headers.items():
      self.send_header(name, value)
    if status != 304:
      self.send_header("Content-Length", str(len(body)))
    self.end_headers()
    if self.command != "HEAD" and status != 304:
      self.wfile.write(body)

  def _route(self):
    address = urllib.parse.urlsplit(self.path)
    query = dict(urllib.parse.parse_qsl(address.query, keep_blank_values=True))
    if address.path == "/counts":
      return _json(self.store.counts())
    if self.store.fail_next:
      raise ApiError(self.store.fail_next.pop(0), "backendError", "Try again.")
    if address.path == "/batch/storage/v1":
      return self._batch()
    return self._one(self.command, address.path, query)

  def _one(self, method, path, query):
    """Answers one request of the API."""
    found = re.fullmatch(
      r"/(?:(upload|download)/)?storage/v1/b/([^/]+)(?:/o(?:/([^/]+)(/.*)?)?)?/?",
      path,
    )
    if not found:
      raise ApiError(404, "notFound", f"No such path: {path}")
    kind, bucket, name, more = found.groups()
    bucket = urllib.parse.unquote(bucket)
    if bucket == MISSING:
      raise ApiError(404, "notFound", "The specified bucket does not exist.")
    if bucket == FORBIDDEN:
      raise ApiError(403, "forbidden", "Caller does not have access.")
    if kind == "upload":
      return self._upload(method, bucket, query)
    if name is None and "/o" not in path[len("/storage/v1/b/") :]:
      return _json({"kind": "storage#bucket", "name": bucket, "id": bucket})
    if name is None:
      return _json(self.store.list(bucket, query))
    name = urllib.parse.unquote(name)
    if more:
      return self._copy(bucket, name, more, query)
    if method == "DELETE":
      self.store.delete(bucket, name, query)
      return 204, {}, b""
    version = self.store.get(bucket, name, query)
    if query.get("alt") == "media" or kind == "download":
      return self._media(version)
    return _json(resource(bucket, name, version))

  def _media(self, version):
    """The content of an object, or the part of it that is asked for."""
    data, size = version.data, len(version.data)
    headers = {
      "Content-Type": version.content_type,
      "Accept-Ranges": "bytes",
      "ETag": _base64(str(version.generation).encode()),
      "X-Goog-Generation": str(version.generation),
      "X-Goog-Metageneration": "1",
      "X-Goog-Hash": f"crc32c={version.crc32c},md5={version.md5}",
      "X-Goog-Stored-Content-Length": str(size),
    }
    wanted = re.fullmatch(
      r"bytes=(\d*)-(\d*)", self.headers.get("Range", "").replace(" ", "")
    )
    if not wanted or not any(wanted.groups()):
      return 200, headers, data
    first, last = wanted.groups()
    if not first:  # So many bytes of the end.
      begin, end = max(size - int(last), 0), size
      unsatisfiable = int(last) == 0 or size == 0
    else:
      begin, end = int(first), min(int(last or size) + 1, size)
      unsatisfiable = begin >= size
    if unsatisfiable:
      headers |= {"Content-Range": f"bytes */{size}"}
      return 416, headers, b"Request range not satisfiable"
    headers |= {"Content-Range": f"bytes {begin}-{end - 1}/{size}"}
    return 206, headers, data[begin:end]

  def _upload(self, method, bucket, query):
    """objects.insert in its three forms."""
    if "upload_id" in query:
      return self._go_on(method, query["upload_id"])
    kind = self.headers.get("Content-Type", "application/octet-stream")
    if query.get("uploadType") == "media":
      fields = {"name": query["name"], "contentType": kind}
      return self._insert(bucket, fields, self._body, query)
    if query.get("uploadType") == "multipart":
      head = f"Content-Type: {kind}\r\n\r\n".encode()
      parser = email.parser.BytesParser(policy=email.policy.HTTP)
      parts = parser.parsebytes(head + self._body).get_payload()
      fields = json.loads(parts[0].get_payload(decode=True) or b"{}")
      # Not by the parser, which may change the ends of lines of the data.
      boundary = re.search(r'boundary="?([^";]+)', kind)[1].encode()
      data = self._body.split(b"--" + boundary)[2]
      data = data.split(b"\r\n\r\n", 1)[1].removesuffix(b"\r\n")
      fields.setdefault("contentType", parts[1].get_content_type())
      return self._insert(
        bucket, {"name": query.get("name")} | fields, data, query
      )
    if query.get("uploadType") == "resumable":
      fields = {"name": query.get("name")} | json.loads(self._body or b"{}")
      fields.setdefault(
        "contentType",
        self.headers.get("X-Upload-Content-Type", "application/octet-stream"),
      )
      number = f"upload-{next(self.store.numbers)}"
      self.store.uploads[number] = [bucket, fields, query, b""]
      path = f"/upload/storage/v1/b/{bucket}/o"
      where = f"{self.store.address}{path}?uploadType=resumable"
      return 200, {"Location": f"{where}&upload_id={number}"}, b""
    raise ApiError(400, "badRequest", "Unknown uploadType.")

  def _go_on(self, method, number):
    """A part of a resumable upload, or a question how far it has come."""
    if number not in self.store.uploads:
      raise ApiError(410, "gone", "There is no such upload.")
    upload = self.store.uploads[number]
    bucket, fields, query, data = upload
    if method == "DELETE":
      del self.store.uploads[number]
      return 499, {}, b""
    said = self.headers.get("Content-Range")
    wanted = re.fullmatch(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)", said or "")
    if said and not wanted:
      raise ApiError(400, "badRequest", f"Bad Content-Range: {said}")
    first, _, total = wanted.groups() if wanted else (None, None, None)
    if first is not None and int(first) > len(data):
      raise ApiError(503, "backendError", "Parts of the upload are missing.")
    data = data[: int(first)] if first is not None else data
    data += self._body
    done = not said or (total != "*" and len(data) == int(total))
    if not done:
      if len(data) % _CHUNK and self._body:
        raise ApiError(400, "badRequest", "A part is no multiple of 256 KiB.")
      upload[3] = data
      headers = {"Range": f"bytes=0-{len(data) - 1}"} if data else {}
      return 308, headers, b""
    answer = self._insert(bucket, fields, data, query)
    del self.store.uploads[number]
    return answer

  def _insert(self, bucket, fields, data, query):
    sums = {"crc32c": Object(data, 0).crc32c, "md5Hash": Object(data, 0).md5}
    for name, value in sums.items():
      if fields.get(name, value) != value:
        raise ApiError(400, "invalid", f"Provided {name} does not match.")
    version = self.store.put(
      bucket,
      fields["name"],
      data,
      query,
      content_type=fields.get("contentType") or "application/octet-stream",
      metadata=fields.get("metadata") or {},
    )
    return _json(resource(bucket, fields["name"], version))

  def _copy(self, bucket, name, more, query):
    """objects.compose, objects.copy and objects.rewrite."""
    if more == "/compose":
      wanted = json.loads(self._body)
      data = b"".join(
        self.store.get(bucket, one["name"], {}).data
        for one in wanted["sourceObjects"]
      )
      version = self.store.put(bucket, name, data, query)
      return _json(resource(bucket, name, version))
    found = re.fullmatch(r"/(rewriteTo|copyTo)/b/([^/]+)/o/([^/]+)", more)
    if not found:
      raise ApiError(404, "notFound", f"No such path: {more}")
    there, target = map(urllib.parse.unquote, found.groups()[1:])
    source = self.store.get(bucket, name, {})
    version = self.store.put(
      there, target, source.data, query, content_type=source.content_type
    )
    copy = resource(there, target, version)
    if found[1] == "copyTo":
      return _json(copy)
    size = str(len(source.data))
    return _json(
      {
        "kind": "storage#rewriteResponse",
        "totalBytesRewritten": size,
        "objectSize": size,
        "done": True,
        "resource": copy,
      }
    )

  def _batch(self):
    """Several requests in one, each answered by itself."""
    kind = self.headers["Content-Type"]
    parser = email.parser.BytesParser(policy=email.policy.HTTP)
    whole = parser.parsebytes(
      f"Content-Type: {kind}\r\n\r\n".encode() + self._body
    )
    answers = []
    for part in whole.get_payload():
      text = part.get_payload(decode=True).decode().lstrip()
      method, target, *_ = text.split()
      address = urllib.parse.urlsplit(target)
      query = dict(urllib.parse.parse_qsl(address.query))
      try:
        status, _, body = self._one(method, address.path, query)
      except ApiError as error:
        status, _, body = _error(error)
      named = part.get("Content-ID", "<0>").lstrip("<")
      answers.append(
        "--batch\r\nContent-Type: application/http\r\n"
        f"Content-ID: <response-{named}\r\n\r\nHTTP/1.1 {status} Answer\r\n"
        "Content-Type: application/json; charset=UTF-8\r\n"
        f"Content-Length: {len(body)}\r\n\r\n{body.decode()}\r\n"
      )
    text = "".join(answers) + "--batch--\r\n"
    headers = {"Content-Type": "multipart/mixed; boundary=batch"}
    return 200, headers, text.encode()


def _json(value):
  headers = {"Content-Type": "application/json; charset=UTF-8"}
  return 200, headers, json.dumps(value).encode()


def _error(error):
  if error.status == 304:
    return 304, {}, b""
  detail = {"domain": "global", "reason": error.reason, "message": str(error)}
  value = {
    "error": {
      "code": error.status,
      "message": str(error),
      "errors": [detail],
    }
  }
  return error.status, *_json(value)[1:]


def main():
  """Serves until it is stopped; prints what clients need first."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--port", type=int, default=0)
  parser.add_argument("--latency", type=float, default=0.0)
  arguments = parser.parse_args()
  server = GcsServer(arguments.latency, arguments.port)
  for name, value in server.environment.items():
    print(f"export {name}={value}", flush=True)
  server.serve_forever()


if __name__ == "__main__":
  main()
