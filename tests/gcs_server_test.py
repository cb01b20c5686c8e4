"""The stand-in for Google Cloud Storage, against what is documented of it.

Each test names the page under https://cloud.google.com/storage/docs/ that
vouches for what it asks. No client is used: they ask less than is documented.
"""

import base64
import concurrent.futures
import hashlib
import http.client
import json
import socket
import urllib.parse

import google_crc32c
import pytest
from gcs_server import GcsServer


@pytest.fixture(scope="module")
def server():
  with GcsServer().running() as server:
    yield server


@pytest.fixture
def ask(server):
  """Asks; returns status, headers and content."""
  host = urllib.parse.urlsplit(server.address).netloc
  connection = http.client.HTTPConnection(host)

  def ask(method, path, body=b"", **headers):
    headers = {k.replace("_", "-"): v for k, v in headers.items()}
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    return answer.status, answer.headers, answer.read()

  yield ask
  connection.close()


def put(ask, bucket, name, data=b"", query="", **headers):
  """Uploads; returns status and the object's metadata, or the error."""
  name = urllib.parse.quote(name, safe="")
  path = f"/upload/storage/v1/b/{bucket}/o?uploadType=media&name={name}{query}"
  status, _, body = ask("POST", path, data, **headers)
  return status, json.loads(body)


def list_objects(ask, bucket, **query):
  path = f"/storage/v1/b/{bucket}/o?{urllib.parse.urlencode(query)}"
  answer = json.loads(ask("GET", path)[2])
  names = [item["name"] for item in answer.get("items", [])]
  return names, answer.get("prefixes", []), answer.get("nextPageToken")


def test_metadata_of_an_object(ask):
  """json_api/v1/objects: the resource representation."""
  status, value = put(ask, "meta", "a/b", b"data", Content_Type="text/plain")
  crc = google_crc32c.Checksum(b"data").digest()
  assert status == 200 and value["name"] == "a/b" and value["size"] == "4"
  assert value["contentType"] == "text/plain" and value["kind"]
  assert base64.b64decode(value["md5Hash"]) == hashlib.md5(b"data").digest()
  assert base64.b64decode(value["crc32c"]) == crc
  assert int(value["generation"]) > 0 and value["metageneration"] == "1"
  status, _, body = ask("GET", "/storage/v1/b/meta/o/a%2Fb")
  assert status == 200 and json.loads(body) == value


def test_content_and_its_headers(ask):
  """json_api/v1/objects/get, xml-api/reference-headers."""
  _, value = put(ask, "media", "x", b"0123456789")
  for path in ("/storage/v1/b/media/o/x", "/download/storage/v1/b/media/o/x"):
    status, headers, body = ask("GET", f"{path}?alt=media")
    assert status == 200 and body == b"0123456789"
    assert headers["x-goog-generation"] == value["generation"]
    assert f"crc32c={value['crc32c']}" in headers["x-goog-hash"]
  path = f"/storage/v1/b/media/o/x?alt=media&generation={value['generation']}"
  assert ask("GET", path)[0] == 200
  assert ask("GET", path + "1")[0] == 404  # No such version.
  assert ask("GET", "/storage/v1/b/media/o/y?alt=media")[0] == 404
  assert ask("GET", "/storage/v1/b/missing/o/y?alt=media")[0] == 404


@pytest.mark.parametrize(
  ("wanted", "status", "data", "where"),
  [
    ("bytes=0-2", 206, b"012", "bytes 0-2/10"),
    ("bytes=7-", 206, b"789", "bytes 7-9/10"),
    ("bytes=7-99", 206, b"789", "bytes 7-9/10"),
    ("bytes=-3", 206, b"789", "bytes 7-9/10"),
    ("bytes=-99", 206, b"0123456789", "bytes 0-9/10"),
    ("bytes=10-12", 416, None, "bytes */10"),
    ("bytes=-0", 416, None, "bytes */10"),
    ("nonsense", 200, b"0123456789", None),
  ],
)
def test_ranges(ask, wanted, status, data, where):
  """json_api/v1/parameters#range, and RFC 9110 section 14."""
  put(ask, "ranges", "x", b"0123456789")
  path = "/storage/v1/b/ranges/o/x?alt=media"
  got, headers, body = ask("GET", path, Range=wanted)
  assert got == status and headers["Content-Range"] == where
  assert data is None or body == data


def test_preconditions(ask):
  """request-preconditions, generations-preconditions."""
  status, first = put(ask, "if", "x", b"1", "&ifGenerationMatch=0")
  assert status == 200
  status, error = put(ask, "if", "x", b"2", "&ifGenerationMatch=0")
  assert status == 412
  assert error["error"]["errors"][0]["reason"] == "conditionNotMet"
  number = first["generation"]
  status, second = put(ask, "if", "x", b"3", f"&ifGenerationMatch={number}")
  assert status == 200 and second["generation"] != number
  assert put(ask, "if", "x", b"4", f"&ifGenerationMatch={number}")[0] == 412
  # "Setting to 0 makes the operation succeed only if there is a live version".
  assert put(ask, "if", "x", b"5", "&ifGenerationNotMatch=0")[0] == 200
  assert put(ask, "if", "new", b"6", "&ifGenerationNotMatch=0")[0] == 412
  path = "/storage/v1/b/if/o/x"
  now = json.loads(ask("GET", path)[2])["generation"]
  # A read whose ifGenerationNotMatch fails is 304, any other is 412.
  assert ask("GET", f"{path}?ifGenerationNotMatch={now}")[0] == 304
  assert ask("GET", f"{path}?ifGenerationMatch={number}")[0] == 412
  assert ask("DELETE", f"{path}?ifGenerationMatch={number}")[0] == 412
  assert ask("DELETE", f"{path}?ifGenerationMatch={now}")[0] == 204
  assert ask("DELETE", path)[0] == 404


def test_one_of_many_writers_wins(server, ask):
  """generations-preconditions: what locks are built on."""

  def write(number):
    try:
      server.put("race", "x", b"%d" % number, {"ifGenerationMatch": "0"})
      return number
    except Exception:
      return None

  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    won = [n for n in pool.map(write, range(64)) if n is not None]
  assert len(won) == 1 and server.read("race", "x") == b"%d" % won[0]


def test_listing(ask):
  """json_api/v1/objects/list: prefix, delimiter, offsets, order."""
  for name in ("b", "a/2", "a/1", "a/", "a/c/3", "ab", "é"):
    put(ask, "list", name)
  everything = ["a/", "a/1", "a/2", "a/c/3", "ab", "b", "é"]
  assert list_objects(ask, "list") == (everything, [], None)
  assert list_objects(ask, "list", delimiter="/") == (
    ["ab", "b", "é"],
    ["a/"],
    None,
  )
  assert list_objects(ask, "list", prefix="a/", delimiter="/") == (
    ["a/", "a/1", "a/2"],
    ["a/c/"],
    None,
  )
  trailing = {"delimiter": "/", "includeTrailingDelimiter": "true"}
  assert list_objects(ask, "list", **trailing)[0] == ["a/", "ab", "b", "é"]
  # startOffset is in, endOffset is out.
  assert list_objects(ask, "list", startOffset="a/2", endOffset="b")[0] == [
    "a/2",
    "a/c/3",
    "ab",
  ]
  assert list_objects(ask, "list", prefix="none") == ([], [], None)


def test_pages(ask):
  """json_api/v1/objects/list: maxResults counts items and prefixes."""
  for name in ("a/1", "a/2", "b", "c/1", "d"):
    put(ask, "pages", name)
  token, pages = "", []
  while token is not None:
    names, prefixes, token = list_objects(
      ask, "pages", delimiter="/", maxResults=2, pageToken=token
    )
    pages.append((names, prefixes))
  assert pages == [(["b"], ["a/"]), (["d"], ["c/"])]


def test_multipart_upload(ask):
  """uploading-objects: multipart, which says what the checksum must be."""
  data = b"--line\r\n\r\nends\n\r\n"

  def upload(checksum):
    fields = {"name": "x", "crc32c": checksum, "metadata": {"a": "b"}}
    body = (
      b"--sep\r\nContent-Type: application/json\r\n\r\n"
      + json.dumps(fields).encode()
      + b"\r\n--sep\r\nContent-Type: text/plain\r\n\r\n"
      + data
      + b"\r\n--sep--"
    )
    path = "/upload/storage/v1/b/multi/o?uploadType=multipart"
    kind = "multipart/related; boundary=sep"
    status, _, answer = ask("POST", path, body, Content_Type=kind)
    return status, json.loads(answer)

  right = base64.b64encode(google_crc32c.Checksum(data).digest()).decode()
  status, value = upload(right)
  assert status == 200 and value["metadata"] == {"a": "b"}
  assert value["contentType"] == "text/plain"
  assert ask("GET", "/storage/v1/b/multi/o/x?alt=media")[2] == data
  assert upload("AAAAAA==")[0] == 400  # "the request fails"


def test_resumable_upload(ask):
  """performing-resumable-uploads: parts, questions, conditions."""
  part = bytes(256 * 1024)
  start = "/upload/storage/v1/b/resume/o?uploadType=resumable&name=x"

  def begin(more=""):
    status, headers, _ = ask("POST", start + more, b"{}")
    assert status == 200
    return urllib.parse.urlsplit(headers["Location"]).path + (
      "?" + urllib.parse.urlsplit(headers["Location"]).query
    )

  where, other = begin(), begin("&ifGenerationMatch=0")
  assert where != other
  total = len(part) + 5
  assert ask("PUT", where, Content_Range=f"bytes */{total}")[0] == 308
  status, headers, _ = ask(
    "PUT", where, part, Content_Range=f"bytes 0-{len(part) - 1}/{total}"
  )
  assert status == 308 and headers["Range"] == f"bytes=0-{len(part) - 1}"
  # "Each chunk should be a multiple of 256 KiB, unless it is the last".
  bad = f"bytes {len(part)}-{len(part) + 1}/*"
  assert ask("PUT", where, b"12", Content_Range=bad)[0] == 400
  status, headers, _ = ask("PUT", where, Content_Range="bytes */*")
  assert status == 308 and headers["Range"] == f"bytes=0-{len(part) - 1}"
  last = f"bytes {len(part)}-{total - 1}/{total}"
  status, _, body = ask("PUT", where, b"12345", Content_Range=last)
  assert status == 200 and json.loads(body)["size"] == str(total)
  assert ask("PUT", other, b"late")[0] == 412  # Somebody has written it.
  assert ask("PUT", begin(), b"at once")[0] == 200
  assert ask("GET", "/storage/v1/b/resume/o/x?alt=media")[2] == b"at once"


def test_copies(ask):
  """json_api/v1/objects/rewrite, copy and compose."""
  put(ask, "copies", "d/x", b"one")
  put(ask, "copies", "y", b"two")
  path = "/storage/v1/b/copies/o"
  status, _, body = ask("POST", f"{path}/d%2Fx/rewriteTo/b/copies/o/e%2Fx")
  answer = json.loads(body)
  assert status == 200 and answer["done"] and "rewriteToken" not in answer
  assert answer["resource"]["name"] == "e/x"
  assert ask("POST", f"{path}/d%2Fx/copyTo/b/copies/o/z")[0] == 200
  sources = {"sourceObjects": [{"name": "e/x"}, {"name": "y"}, {"name": "z"}]}
  ask("POST", f"{path}/all/compose", json.dumps(sources).encode())
  assert ask("GET", f"{path}/all?alt=media")[2] == b"onetwoone"


def test_batches(ask):
  """batch: every part is answered by itself."""
  put(ask, "batch", "x")
  parts = "".join(
    f"--sep\r\nContent-Type: application/http\r\nContent-ID: <{k}>\r\n\r\n"
    f"DELETE /storage/v1/b/batch/o/{name} HTTP/1.1\r\n\r\n\r\n"
    for k, name in enumerate("xy")
  )
  status, headers, body = ask(
    "POST",
    "/batch/storage/v1",
    f"{parts}--sep--".encode(),
    Content_Type="multipart/mixed; boundary=sep",
  )
  assert status == 200 and "multipart/mixed" in headers["Content-Type"]
  assert b"HTTP/1.1 204" in body and b"HTTP/1.1 404" in body
  assert b"response-0" in body and b"response-1" in body


def test_what_was_asked_is_counted(server, ask):
  server.log.clear()
  put(ask, "counted", "x", b"12345")
  ask("GET", "/storage/v1/b/counted/o/x?alt=media")
  counts = json.loads(ask("GET", "/counts")[2])
  assert counts["requests"] == {"POST": 1, "GET": 1}
  assert counts["bytes_in"] == 5 and counts["bytes_out"] > 5


@pytest.mark.parametrize(
  "half",
  [
    b"Content-Length: 10\r\n\r\n1234",
    b"Transfer-Encoding: chunked\r\n\r\nA\r\n1234",
    b"Transfer-Encoding: chunked\r\n\r\n4\r\n1234\r\n",
  ],
)
def test_half_an_upload_is_none(half):
  """Of a client that was killed: nothing is there of it (RFC 9112, 8)."""
  with GcsServer().running() as server:
    host, port = server.address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as client:
      path = "/upload/storage/v1/b/half/o?uploadType=media&name=x"
      client.sendall(f"POST {path} HTTP/1.1\r\nHost: x\r\n".encode() + half)
      client.shutdown(socket.SHUT_WR)
      assert client.recv(100) == b""
    assert server.names("half") == []
