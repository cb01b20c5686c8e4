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

from data_prep.formats import ijb, pair_protocols
from data_prep.formats.identity_folders import read_identities
from data_prep.formats.image_list import read_entries
from data_prep.formats.insightface_bin import read_bin
from data_prep.formats.landmarks import read_landmarks
from data_prep.formats.recordio import Image, RecordFile
from data_prep.writing.exclusions import read_exclusions
from jamsface_jax.data import decoding, orientation, records
from jamsface_jax.embedding.files import EmbeddingFiles, read_broken
from jamsface_jax.errors import InputError
from jamsface_jax.protocols.groups_file import read_groups
from jamsface_jax.protocols.pairs_file import read_pairs
from jamsface_jax.protocols.results import read_roc_lines
from jamsface_jax.protocols.search_file import read_search
from jamsface_jax.protocols.template_files import read_templates
from jamsface_jax.reports.run_record import read_runs
from jamsface_jax.run import goodput, metrics_file
from jamsface_jax.run.fine_tune import plan_fine_tune
from jamsface_jax.run.launches import read_launches
from jamsface_jax.searching import threshold
from jamsface_jax.settings.stored import read_settings
from jamsface_jax.storage import lease, manifest
from jamsface_jax.storage.plain_array import map_array
from jamsface_jax.storage.plan import read_plan
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


def _in_run(name, data):
  """A run that has settings, and this file."""
  folder = FOLDER / "run"
  folder.mkdir(exist_ok=True)
  for path in folder.iterdir():
    path.unlink()
  (folder / "config.json").write_text("{}")
  (folder / name).write_bytes(data)
  return RunDirectory(str(folder))


def _image(data):
  orientation.stated_orientation(data)
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


def _results(data):
  read_runs([_in_run("results.json", data)])


def _threshold(data):
  threshold.measured(_in_run("results.json", data), 0.5)


def _against(data):
  read_roc_lines(_file("results.json", data))


def _classes(data):
  read_runs([_in_run("classes.json", data)])


def _goodput(data):
  run = _in_run("goodput.json", data)
  goodput.Goodput(run).resume({})
  read_runs([run])


def _launches(data):
  read_launches(_in_run("starts.jsonl", data))


def _fine_tune(data):
  plan_fine_tune(_in_run("fine_tune.json", data), None, "backbone")


def _plan(data):
  read_plan(_file("plan.json", data), "--output")


def _lock(data):
  lease._name(lease._read(data))


IMAGES = ("A/A_0001.jpg", "A/A_0002.jpg", "B/B_0001.jpg", "B/B_0002.jpg")


def _pairs(data):
  path = _file("pairs.txt", data)
  read_pairs(path, IMAGES)
  read_pairs(path, IMAGES, missing=[])


def _protocols(data):
  """The lists of AgeDB, CALFW, CPLFW and the like."""
  path = _file("protocol.txt", data)
  images = pair_protocols.Images(str(FOLDER), skip_missing=True)
  for read in (pair_protocols._read_agedb, pair_protocols._read_two_lines):
    try:
      read(path, images)
    except InputError:
      pass
  pair_protocols._read_numbered(path)


def _search(data):
  read_search(_file("search.csv", data), IMAGES)


def _groups(data):
  read_groups(_file("groups.csv", data), ["A", "B"])


def _templates(data):
  folder = FOLDER / "templates"
  folder.mkdir(exist_ok=True)
  (folder / "faces.csv").write_bytes(data)
  np.save(folder / "template_pairs.npy", np.array([[0, 1, 1], [1, 0, 0]]))
  read_templates(str(folder), 4, lambda: IMAGES)


def _subjects(data):
  folder = FOLDER / "subjects"
  folder.mkdir(exist_ok=True)
  lines = [f"{name},{k // 2},{k},0.5" for k, name in enumerate(IMAGES)]
  text = "\n".join(["image,template,medium,score", *lines])
  (folder / "faces.csv").write_text(text)
  np.save(folder / "template_pairs.npy", np.array([[0, 1, 1], [1, 0, 0]]))
  (folder / "gallery_G1.csv").write_bytes(data)
  read_templates(str(folder), 4, lambda: IMAGES)


def _landmarks(data):
  read_landmarks(_file("landmarks.txt", data))


def _image_list(data):
  for _ in read_entries(_file("list.lst", data)):
    pass


def _exclusions(data):
  read_exclusions(_file("exclude.tsv", data))


def _identities(data):
  folder = FOLDER / "people"
  for name in ("A", "B"):
    (folder / name).mkdir(parents=True, exist_ok=True)
  read_identities(_file("identities.txt", data), str(folder))


def _ijb_faces(data):
  ijb.read_faces(_file("face_tid_mid.txt", data), None)


def _ijb_scores(data):
  faces = _file("faces.txt", b"1.jpg 1 69544\n2.jpg 1 69544\n")
  ijb.read_faces(faces, _file("scores.txt", data))


def _ijb_pairs(data):
  ijb.read_template_pairs(_file("pair_label.txt", data), np.array([1, 7, 9]))


def _ijb_subjects(data):
  ijb.read_subjects(_file("1N_gallery.csv", data), np.array([1, 7, 9]))


def _broken(data):
  _file("broken.txt", data)
  read_broken(str(FOLDER))


def _verification(data):
  read_bin("x.bin", data)


# By name: how it reads, and what it may refuse with.
READERS = {
  "image": (_image, decoding.DecodingError),
  "recordio": (_recordio, InputError),
  "index": (_index_file, InputError),
  "safetensors": (_weights, InputError),
  "npz": (_weights, InputError),
  "pth": (_weights, InputError),
  "onnx": (_onnx, InputError),
  "array": (_array, ValueError),
  "bin": (_verification, InputError),
  "dataset": (_dataset, InputError),
  "config": (_config, InputError),
  "metrics": (_metrics, InputError),
  "manifest": (_manifest, ()),
  "journal": (_journal, InputError),
  "results": (_results, InputError),
  "threshold": (_threshold, InputError),
  "against": (_against, InputError),
  "classes": (_classes, InputError),
  "goodput": (_goodput, InputError),
  "launches": (_launches, InputError),
  "fine_tune": (_fine_tune, InputError),
  "plan": (_plan, InputError),
  "lock": (_lock, ()),
  "pairs": (_pairs, InputError),
  "protocols": (_protocols, InputError),
  "search": (_search, InputError),
  "groups": (_groups, InputError),
  "templates": (_templates, InputError),
  "subjects": (_subjects, InputError),
  "landmarks": (_landmarks, InputError),
  "image_list": (_image_list, InputError),
  "exclusions": (_exclusions, InputError),
  "identities": (_identities, InputError),
  "ijb_faces": (_ijb_faces, InputError),
  "ijb_scores": (_ijb_scores, InputError),
  "ijb_pairs": (_ijb_pairs, InputError),
  "ijb_subjects": (_ijb_subjects, InputError),
  "broken": (_broken, ()),
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
TABLE = list(enumerate(IMAGES))
RESULTS = json.dumps(
  {
    "format": 1,
    "embeddings": {},
    "sets": [
      {
        "name": "t",
        "headline": "x",
        "facts": {},
        "metrics": {"t/auc": 0.5, "t/eer": None},
        "intervals_95": {},
        "threshold": 0.25,
        "cmc": {},
        "groups": [],
        "roc": {"far": [0, 1], "tar": [0.5, 1], "threshold": [1], "auc": 0.9},
        "positive_counts": [0, 2],
        "negative_counts": [3, 0],
      }
    ],
  }
).encode()


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
      "safetensors": lambda: [_safetensors()],
      "npz": lambda: [_zip({"a.npy": _npy(np.ones(3, np.float32))})],
      "pth": lambda: [_torch()],
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
      "results": lambda: [RESULTS],
      "threshold": lambda: [RESULTS],
      "against": lambda: [RESULTS],
      "classes": lambda: [
        b'{"classes": 2, "images": 5, "tail": {"rank": [1], "size": [3]},'
        b' "top": {"0.01": 0.6}, "margins": {}}'
      ],
      "goodput": lambda: [b'{"step": 3.5, "startup": 1.25, "lost": 0}'],
      "launches": lambda: [
        b'{"time": "x", "command": "x", "versions": {}, "system": "x",'
        b' "total_steps": 5, "data_fingerprint": "x", "parameters": 5,'
        b' "devices": 1, "device_kind": "cpu", "platform": "cpu"}\n'
      ],
      "fine_tune": lambda: [
        b'{"workdir": "w", "step": 4, "keep": ["backbone"]}'
      ],
      "plan": lambda: [b'{"input": "a", "size": 112, "format": "jpg"}'],
      "lock": lambda: [
        b'{"host": "a", "pid": 5, "token": "0f", "machine": "m", "beat": 1}'
      ],
      "pairs": lambda: [
        b"1\t1\nA\t1\t2\nA\t1\tB\t2\n",
        b"A/A_0001.jpg A/A_0002.jpg 1\nA/A_0001.jpg B/B_0001.jpg 0\n",
        b"A/A_0001.jpg,B/B_0001.jpg,0,3\n",
      ],
      "protocols": lambda: [
        b"A/A_0001.jpg A/A_0002.jpg 1\n",
        b"A/A_0001.jpg 1\nA/A_0002.jpg 1\nA/A_0001.jpg 0\nB/B_0001.jpg 0\n",
        b"1 A/A_0001.jpg\n2 B/B_0001.jpg\n",
      ],
      "search": lambda: [
        b"image,subject,role\nA/A_0001.jpg,a,probe\nA/A_0002.jpg,a,gallery\n"
        b"B/B_0001.jpg,,distractor\n"
      ],
      "groups": lambda: [b"identity,group\nA,women\nB,men\n"],
      "templates": lambda: [
        b"image,template,medium,score\n"
        + b"".join(b"%s,%d,1,0.5\n" % (n.encode(), k // 2) for k, n in TABLE)
      ],
      "subjects": lambda: [b"template,subject\n0,5\n1,6\n"],
      "landmarks": lambda: [
        b"a.jpg 1 2 3 4 5 6 7 8 9 10\n",
        b"image,x1,y1,x2,y2,x3,y3,x4,y4,x5,y5\na,1,2,3,4,5,6,7,8,9,10\n",
      ],
      "image_list": lambda: [
        b"A/1.jpg 0\nB/2.jpg 1\n",
        b"path,label\nA/1.jpg,a\n",
        b"0\t5\tA/1.jpg\n1\tA/1.jpg\t7\n",
      ],
      "exclusions": lambda: [
        b"A/1.jpg\treason\nB/2.jpg\n",
        b"image\treason\twhat\nA/1.jpg\tx\ty\n",
      ],
      "identities": lambda: [b"A\nB\t5\n", b"Class_ID Name\nA x\n"],
      "ijb_faces": lambda: [b"1.jpg 1 69544\n2.jpg 7 69545\n"],
      "ijb_scores": lambda: [b"1.jpg 1 2 3 4 5 6 7 8 9 10 0.9\n"],
      "ijb_pairs": lambda: [b"1 7 1\n7 9 0\n"],
      "ijb_subjects": lambda: [b"TEMPLATE_ID,SUBJECT_ID\n1,5\n7,6\n"],
      "broken": lambda: [b"0\ta.jpg\tbroken\n"],
    }[name]()
  )
