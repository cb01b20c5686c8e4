"""Every reader of files that strangers make, and small files for each.

A reader takes the bytes of a file and may read them or refuse them, with the
errors that its docstring names; anything else is a fault.
"""

import io
import json
import pathlib
import struct
import tempfile
import zipfile

import cv2
import numpy as np

from data_prep.formats.insightface_bin import read_bin
from data_prep.formats.recordio import Image, RecordFile
from jamsface_jax.data import decoding, records
from jamsface_jax.embedding.files import EmbeddingFiles
from jamsface_jax.errors import InputError
from jamsface_jax.run import metrics_file
from jamsface_jax.settings.stored import read_settings
from jamsface_jax.storage import manifest
from jamsface_jax.storage.plain_array import map_array
from jamsface_jax.storage.run_directory import RunDirectory
from jamsface_jax.weights import onnx_file, weight_files

FOLDER = pathlib.Path(tempfile.mkdtemp(prefix="fuzz-"))
FOUND = pathlib.Path(__file__).parent / "fuzzing" / "found"
_PIXELS = np.arange(12 * 9 * 3, dtype=np.uint8).reshape(9, 12, 3)
_MOST = 2**20  # Pixels of an image that is decoded: a run stays quick.


def _file(name, data):
  path = FOLDER / name
  path.write_bytes(data)
  return str(path)


def _image(data):
  if decoding.read_size(data)[0] * decoding.read_size(data)[1] < _MOST:
    decoding.decode_into(data, np.empty((9, 12, 3), np.uint8))


def _recordio(data):
  with RecordFile(_file("train.rec", data), None) as file:
    for record in file.records():
      if isinstance(record, Image):
        file.read_image(record)


def _index_file(data):
  path = _file("sound.rec", RECORDIO * 3)
  with RecordFile(path, _file("train.idx", data)) as file:
    list(file.records())


def _weights(data):
  weight_files.read(_file("weights", data))


def _onnx(data):
  onnx_file.read(_file("w.onnx", data))


def _array(data):
  map_array(_file("a.npy", data))


def _dataset(data):
  _file("dataset.json", data)
  records.read_index(str(FOLDER))


def _config(data):
  _file("config.json", data)
  read_settings(RunDirectory(str(FOLDER)))


def _metrics(data):
  _file("metrics.jsonl", data)
  metrics_file.read_metrics(RunDirectory(str(FOLDER)).metrics)


def _manifest(data):
  _file("manifest.json", data)
  manifest.find_damage(str(FOLDER), ())


PLAN = {
  "images": 3,
  "embedding_size": 2,
  "dtype": "float32",
  "norms": False,
  "block": 2,
}


def _journal(data):
  with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
    (pathlib.Path(folder) / "plan.json").write_text(json.dumps(PLAN))
    (pathlib.Path(folder) / "journal-0.jsonl").write_bytes(data)
    for name in ("embeddings.npy", "labels.npy"):
      (pathlib.Path(folder) / f"{name}.partial").write_bytes(b"")
    EmbeddingFiles(folder, PLAN).begin()


def _verification(data):
  read_bin("x.bin", data)


# By name: how it reads, and what it may refuse with.
READERS = {
  "image": (_image, decoding.DecodingError),
  "recordio": (_recordio, InputError),
  "index": (_index_file, InputError),
  "weights": (_weights, InputError),
  "onnx": (_onnx, InputError),
  "array": (_array, ValueError),
  "bin": (_verification, InputError),
  "dataset": (_dataset, InputError),
  "config": (_config, InputError),
  "metrics": (_metrics, InputError),
  "manifest": (_manifest, ()),
  "journal": (_journal, InputError),
}


def read(name, data):
  """Reads a file; the error of a fault, if there is one, comes out."""
  reader, refusals = READERS[name]
  try:
    reader(data)
  except refusals:
    pass


def _record():
  body = struct.pack("<IfQQ", 0, 1.0, 1, 0) + bytes(40)
  return struct.pack("<II", 0xCED7230A, len(body)) + body


RECORDIO = _record()


def _zip(members):
  stream = io.BytesIO()
  with zipfile.ZipFile(stream, "w") as archive:
    for name, data in members.items():
      archive.writestr(name, data)
  return stream.getvalue()


def _npy(array):
  stream = io.BytesIO()
  np.save(stream, array)
  return stream.getvalue()


def _torch():
  import torch_files

  with tempfile.TemporaryDirectory() as folder:
    path = f"{folder}/w.pth"
    torch_files.write_pth(path, {"a": np.ones((2, 3), np.float32)})
    return pathlib.Path(path).read_bytes()


def _safetensors():
  weight_files.write_safetensors(
    str(FOLDER / "w"), {"a": np.ones((2, 3), np.float32)}, {"x": "y"}
  )
  return (FOLDER / "w").read_bytes()


def _graph():
  import onnx

  helper = onnx.helper
  weight = onnx.numpy_helper.from_array(np.ones((3, 2), np.float32), "w")
  nodes = [
    helper.make_node("Constant", [], ["c"], value=weight),
    helper.make_node("Gemm", ["x", "w"], ["y"]),
  ]
  graph = helper.make_graph(nodes, "g", [], [], initializer=[weight])
  return helper.make_model(graph).SerializeToString()


def seeds(name):
  """Sound files of a reader, and what was found before."""
  found = [p.read_bytes() for p in sorted((FOUND / name).glob("*"))]
  return (
    found
    + {
      "image": lambda: [
        cv2.imencode(end, _PIXELS)[1].tobytes()
        for end in (".jpg", ".png", ".webp", ".bmp", ".gif", ".tiff", ".ppm")
      ],
      "recordio": lambda: [RECORDIO * 3],
      "index": lambda: [b"0\t0\n1\t72\n2\t144\n"],
      "weights": lambda: [
        _safetensors(),
        _zip({"a.npy": _npy(np.ones(3, np.float32))}),
        _torch(),
      ],
      "onnx": lambda: [_graph()],
      "array": lambda: [_npy(np.ones((2, 3), np.float32))],
      "bin": lambda: [
        b"\x80\x04]\x94(C\x01a\x94C\x01b\x94e]\x94\x88a\x86\x94."
      ],
      "dataset": lambda: [
        b'{"format": 1, "name": "a", "images": 1,'
        b' "classes": 1, "class_sizes": [1], "image_size": [2, 2],'
        b' "color_order": "RGB", "shards": [{"file": "a", "records": 1,'
        b' "bytes": 3, "sha256": "0"}]}'
      ],
      "config": lambda: [b'{"data.image_size": 112, "head.scale": 64.0}'],
      "metrics": lambda: [b'{"step": 1, "train/loss": 2.5}\n{"step": 2}\n'],
      "manifest": lambda: [
        b'{"files": {"w": {"sha256": "00", "bytes": 5}}}',
      ],
      "journal": lambda: [
        b'\n{"block": 0, "names": ["a", "b"], "broken": {"0": "x"}}\n'
      ],
    }[name]()
  )
