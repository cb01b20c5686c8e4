"""Every reader of files that strangers make, and small files for each.

A reader takes the bytes of a file and may read them or refuse them, with the
errors that its docstring names; anything else is a fault.
"""

import contextlib
import gzip
import hashlib
import io
import json
import pathlib
import struct
import tempfile
import zipfile

import cv2
import numpy as np

from data_prep import align, clean, from_recordio
from data_prep.formats import ijb, pair_protocols
from data_prep.formats.identity_folders import read_identities
from data_prep.formats.image_list import read_entries
from data_prep.formats.insightface_bin import read_bin
from data_prep.formats.landmarks import read_landmarks
from data_prep.formats.recordio import Image, RecordFile
from data_prep.synthetic.classes import class_sizes
from data_prep.writing.exclusions import read_exclusions
from data_prep.writing.writer import DatasetAssembler
from jamsface_jax.ablation.trials import Trial
from jamsface_jax.data import decoding, orientation, records
from jamsface_jax.data.images import open_list
from jamsface_jax.embedding.files import EmbeddingFiles, read_broken
from jamsface_jax.errors import InputError
from jamsface_jax.evaluation import foreign_embeddings
from jamsface_jax.pods import step_cost
from jamsface_jax.protocols.groups_file import read_groups
from jamsface_jax.protocols.pairs_file import read_pairs
from jamsface_jax.protocols.results import read_roc_lines
from jamsface_jax.protocols.search_file import read_search
from jamsface_jax.protocols.template_files import read_templates
from jamsface_jax.reports.run_record import read_runs
from jamsface_jax.run import goodput, metrics_file
from jamsface_jax.run.fine_tune import plan_fine_tune
from jamsface_jax.run.launches import read_launches
from jamsface_jax.run.margin_curve import read_curve
from jamsface_jax.searching import threshold
from jamsface_jax.searching.sources import StoredEmbeddings
from jamsface_jax.settings.stored import read_settings
from jamsface_jax.storage import lease, lock, manifest
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
  sizes = records.parse_index(data, "dataset.json").class_sizes
  np.array(sizes, np.int64)  # As who opens a data set counts them.
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


def _curve(data):
  read_curve(_file("margins.csv", data), "cosine")


def _compiled(data):
  """What compile_check keeps: packed too, so that what is in it is changed."""
  step_cost._read_compiled(_file("kept.json.gz", data))
  step_cost._read_compiled(_file("kept.json.gz", gzip.compress(data)))


def _conversion(data):
  """The journal of a conversion that goes on."""
  with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
    opened = DatasetAssembler(folder, name="t", classes=["a", "b"], source="s")
    path = pathlib.Path(folder)
    (path / "images-00000.array_record").write_bytes(b"abc")
    source = opened._source.encode()
    (path / "journal.jsonl").write_bytes(data.replace(b"SOURCE", source))
    with contextlib.closing(opened.__enter__()):
      list(opened.skipped_lines())
      opened.close_gaps()


def _aligned(data):
  with align._Journal(_file("aligned.tsv", data)) as journal:
    journal.add({"a.jpg": "1"})
  align._read_list(str(FOLDER), "aligned.tsv")


def _stored(name, data):
  """A file beside embeddings that others have made."""
  folder = FOLDER / "stored"
  folder.mkdir(exist_ok=True)
  np.save(folder / "embeddings.npy", np.eye(3, dtype=np.float32))
  np.save(folder / "labels.npy", np.arange(3))
  (folder / "paths.txt").write_text("a\nb\nc\n")
  (folder / "meta.json").write_text("{}")
  (folder / name).write_bytes(data)
  path = str(folder / "embeddings.npy")
  for read in (
    lambda: clean.read_embeddings(str(folder)),
    lambda: foreign_embeddings.read_names(str(folder / "paths.txt")),
    lambda: foreign_embeddings.read_labels(str(folder / "labels.npy")),
  ):
    with contextlib.suppress(InputError):
      read()
  foreign_embeddings.is_flip_sum(path)
  stored = StoredEmbeddings(path, "--images")
  assert stored.network is None or stored.network
  list(stored.parts())


def _stored_rows(data):
  _stored("embeddings.npy", data)


def _stored_names(data):
  _stored("paths.txt", data)


def _stored_labels(data):
  _stored("labels.npy", data)


def _stored_meta(data):
  _stored("meta.json", data)


def _image_names(data):
  open_list(_file("images.txt", data), 8, str(FOLDER))


def _class_names(data):
  _file("classes.txt", data)
  records.read_classes(str(FOLDER))


def _tail(data):
  path = _file("sizes.txt", data)
  class_sizes(f"file:{path}", 5, images=None, smallest=1, largest=9)


def _trial(data):
  run = _in_run("ablation.json", data)
  Trial("r.py", "a", 0, None, run, ("x",)).finished()


def _property(data):
  _file("property", data)
  path = _file("train.rec", RECORDIO)
  with RecordFile(path, None) as file:
    from_recordio._check_property(file, 2)


def _holder(data):
  lock._holder(_file("lock", data))


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
  "curve": (_curve, InputError),
  "compiled": (_compiled, ()),
  "conversion": (_conversion, InputError),
  "aligned": (_aligned, ()),
  "stored_rows": (_stored_rows, InputError),
  "stored_names": (_stored_names, InputError),
  "stored_labels": (_stored_labels, InputError),
  "stored_meta": (_stored_meta, InputError),
  "image_names": (_image_names, InputError),
  "class_names": (_class_names, InputError),
  "tail": (_tail, InputError),
  "trial": (_trial, InputError),
  "property": (_property, ()),
  "holder": (_holder, ()),
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
COMPILED = {
  "temporaries": 5,
  "program": 7,
  "total": 9,
  "text": "HloModule jit_f",
  "compile_seconds": 1.5,
}


def _entries():
  """What a journal of two shards says, of which the first is there."""
  shard = {
    "file": "images-00000.array_record",
    "records": 2,
    "bytes": 3,
    "sha256": hashlib.sha256(b"abc").hexdigest(),
  }
  common = {"source": "SOURCE", "names": "0f", "image_sizes": [[2, 2]]}
  common |= {"inputs": "", "dropped": []}
  return (
    common
    | {"number": 0, "items": 3, "labels": [0, 1], "skipped": ["c\tx"]}
    | {"shard": shard},
    common
    | {"number": 1, "items": 1, "labels": [], "skipped": ["d\ty"]}
    | {"shard": None},
  )


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
        + (".avif",)
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
      "curve": lambda: [
        b"images,classes,angular,cosine\n1,2,0.5,0.1\n30,1,0.4,0.2\n"
      ],
      "compiled": lambda: [json.dumps(COMPILED).encode()],
      "conversion": lambda: [
        b"".join(json.dumps(one).encode() + b"\n" for one in _entries())
      ],
      "aligned": lambda: [b"a/1.png\t5 6 7\n\nb/2.png\t8 9 1\n"],
      "stored_rows": lambda: [_npy(np.eye(3, dtype=np.float16))],
      "stored_names": lambda: [b"a/1.jpg\nb/2.jpg\nc.jpg\n"],
      "stored_labels": lambda: [
        _npy(np.arange(3)),
        _npy(np.ones(3, np.float32)),
        _npy(np.array(["a", "b", "c"])),
      ],
      "stored_meta": lambda: [b'{"network": "0f", "flip": true}'],
      "image_names": lambda: [b"images.txt\na.jpg\tbroken\n"],
      "class_names": lambda: [b"A\nB\n"],
      "tail": lambda: [b"1\n5\n\n30\n"],
      "trial": lambda: [b'["x"]', b'["x", "y=1"]'],
      "property": lambda: [b"2,112,112\n"],
      "holder": lambda: [b"process 5 on host a\n"],
    }[name]()
  )
