"""Situations that users of other systems reported: docs/reports.md lists them.

Inputs are small and drawn here. Pillow, which is not used by the code, writes
EXIF and stands for the cameras.
"""

import io
import json
import os
import pickle
import struct

import cv2
import numpy as np
import pytest
from conftest import assert_one_sentence
from PIL import Image

from data_prep import align, clean, from_bin, from_list, from_pairs
from data_prep import from_folder as from_folder_command
from data_prep.formats import recordio
from jamsface_jax.data import decoding, records
from jamsface_jax.data.images import open_images
from jamsface_jax.data.sources import open_source
from jamsface_jax.doctor import NOTE, check_data
from jamsface_jax.errors import InputError
from jamsface_jax.protocols.pairs_file import read_pairs
from jamsface_jax.settings.defaults import base_config, make_settings

RNG = np.random.default_rng(7)


def face(seed, height=40, width=40):
  """A smooth picture, the same for the same seed."""
  coarse = np.random.default_rng(seed).integers(0, 255, (5, 5, 3), np.uint8)
  return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def encoded(pixels, end=".jpg"):
  if end == ".pgm":
    pixels = pixels[:, :, 0]
  return cv2.imencode(end, pixels)[1].tobytes()


def write(root, names, data=None):
  """Writes files; an image each unless it is said what."""
  for number, name in enumerate(names):
    path = os.path.join(str(root), name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    end = os.path.splitext(name)[1].lower()
    with open(path, "wb") as file:
      file.write(encoded(face(number), end) if data is None else data)


def from_folder(source, directory, **changes):
  from_folder_command.convert(
    str(source),
    str(directory),
    **{
      "name": "x",
      "identities": None,
      "min_images": 1,
      "pairs": None,
      "skip_bad": True,
      "exclude": None,
      "threads": 2,
    }
    | changes,
  )
  return records.RecordReader(str(directory))


def skipped(directory):
  """Reasons by name, as `skipped.txt` has them."""
  with open(os.path.join(str(directory), "skipped.txt")) as file:
    return dict(line.rstrip("\n").split("\t") for line in file)


def people(root, count=4, images=3):
  names = [
    f"p{k}/p{k}_{i + 1:04d}.jpg" for k in range(count) for i in range(images)
  ]
  write(root, names)
  return names


# 1: identities chosen by a list of numbers.


@pytest.mark.parametrize("head", [[], ["4"], ["\ufeff4"]])
def test_identities_that_are_numbers(tmp_path, head):
  wanted = ["0000045", "0000099", "0166921", "m.01abc"]
  write(tmp_path / "in", [f"{one}/1.jpg" for one in [*wanted, "0000100"]])
  listed = tmp_path / "ids.txt"
  listed.write_text("\r\n".join(head + wanted) + "\n", encoding="utf-8")
  from_folder(tmp_path / "in", tmp_path / "out", identities=str(listed))
  assert records.read_classes(str(tmp_path / "out")) == wanted


def test_identities_of_lfw_and_one_that_is_missing(tmp_path):
  write(tmp_path / "in", ["A B/1.jpg", "C/1.jpg", "7/1.jpg"])
  listed = tmp_path / "ids.txt"
  # LFW's people.txt: folds, then in each how many, names and their images.
  listed.write_text("2\n1\nA B\t1\n1\nC\t1\n")
  from_folder(tmp_path / "in", tmp_path / "out", identities=str(listed))
  assert records.read_classes(str(tmp_path / "out")) == ["A B", "C"]
  listed.write_text("7\nC\n8\n")  # The first is a folder, the last is none.
  with pytest.raises(InputError, match="names '8'"):
    from_folder(tmp_path / "in", tmp_path / "out2", identities=str(listed))


# 2 and 3: broken and missing images of verification sets.


def lfw_pairs(path, count=12):
  same = [f"p{k} 1 2" for k in range(count)]
  other = [f"p{k} 1 p{(k + 1) % count} 3" for k in range(count)]
  path.write_text("\n".join([str(count), *same, *other]) + "\n")


def test_pairs_of_a_broken_image_are_left_out(tmp_path):
  people(tmp_path / "in", 12)
  lfw_pairs(tmp_path / "pairs.txt")
  whole = from_folder(
    tmp_path / "in", tmp_path / "whole", pairs=str(tmp_path / "pairs.txt")
  )
  copied = (tmp_path / "whole" / "pairs.txt").read_bytes()
  assert copied == (tmp_path / "pairs.txt").read_bytes()
  assert whole.index.left_out == {}
  write(tmp_path / "in", ["p5/p5_0001.jpg"], data=b"")  # In two pairs.
  os.remove(tmp_path / "in" / "p7" / "p7_0003.jpg")  # In one.
  reader = from_folder(
    tmp_path / "in", tmp_path / "out", pairs=str(tmp_path / "pairs.txt")
  )
  names = [record.name for record in reader.scan()]
  pairs = read_pairs(tmp_path / "out" / "pairs.txt", names)
  assert len(pairs.first) == 21
  assert reader.index.left_out == {"images": 1, "pairs": 3}
  assert list(skipped(tmp_path / "out")) == ["p5/p5_0001.jpg"]
  # The folds of the others are as they were.
  before = read_pairs(tmp_path / "pairs.txt", [r.name for r in whole.scan()])
  kept = np.delete(np.arange(24), [5, 17, 18])
  np.testing.assert_array_equal(pairs.folds, before.folds[kept])


def photographs(root, names):
  """Photographs and, but for the last, their landmarks."""
  write(root / "photos", names)
  points = "14 14 26 14 20 20 15 27 25 27"
  lines = [f"{name} {points}" for name in names[:-1]]
  (root / "points.txt").write_text("\n".join(lines))


def run_align(root, **changes):
  align.align(
    str(root / "photos"),
    str(root / "faces"),
    align.from_file(str(root / "points.txt")),
    origin={},
    **{"size": 32, "extension": "jpg", "skip_bad": True, "threads": 2}
    | changes,
  )


def run_from_pairs(root, protocol, pairs, *, skip_bad=True):
  from_pairs.convert(
    str(root / "faces"),
    str(root / "set"),
    protocol=protocol,
    pairs=str(pairs),
    name="x",
    skip_bad=skip_bad,
    threads=2,
  )
  return records.RecordReader(str(root / "set"))


@pytest.mark.parametrize("protocol", ["list", "agedb30", "calfw", "lfw"])
def test_pairs_of_images_without_a_face_are_left_out(tmp_path, protocol):
  """Photographs are PNG, faces JPEG: both are the image that is meant."""
  names = [f"p{k}/p{k}_{i:04d}.png" for k in range(12) for i in (1, 2)]
  photographs(tmp_path, names)
  run_align(tmp_path)
  same = [(names[2 * k], names[2 * k + 1], 1) for k in range(12)]
  other = [(names[2 * k], names[(2 * k + 2) % 24], 0) for k in range(12)]
  path = tmp_path / "pairs.txt"
  if protocol == "lfw":
    text = "12\n" + "".join(f"p{k} 1 2\n" for k in range(12))
    text += "".join(f"p{k} 1 p{(k + 1) % 12} 1\n" for k in range(12))
  elif protocol == "calfw":
    text = "".join(f"{a} {s}\n{b} {s}\n" for a, b, s in same + other)
  else:
    text = "".join(f"{a} {b} {s}\n" for a, b, s in same + other)
  path.write_text(text)
  with pytest.raises(InputError, match="p11"):
    run_from_pairs(tmp_path, protocol, path, skip_bad=False)
  reader = run_from_pairs(tmp_path, protocol, path)
  assert reader.index.left_out == {"images": 1, "pairs": 1}
  [(name, reason)] = skipped(tmp_path / "set").items()
  assert name.startswith("p11/p11_0002") and reason == "no face was found"
  found = [record.name for record in reader.scan()]
  assert len(read_pairs(tmp_path / "set" / "pairs.txt", found).first) == 23


# 4 and 5: classes of which little or nothing can be read.


def test_identities_without_a_readable_image(tmp_path):
  names = people(tmp_path / "in")
  write(tmp_path / "in", names[3:6], data=b"")
  reader = from_folder(tmp_path / "in", tmp_path / "out")
  assert records.read_classes(str(tmp_path / "out")) == ["p0", "p2", "p3"]
  assert reader.index.left_out == {"images": 3, "classes": 1}
  kept = [(record.label, record.name) for record in reader.scan()]
  assert kept == [
    (label, f"{person}/{person}_{i:04d}.jpg")
    for label, person in enumerate(["p0", "p2", "p3"])
    for i in (1, 2, 3)
  ]
  labels = records.read_labels(str(tmp_path / "out"), reader.index)
  assert labels.tolist() == [label for label, _ in kept]
  assert list(skipped(tmp_path / "out")) == names[3:6]


def test_min_images_counts_what_can_be_read(tmp_path):
  names = people(tmp_path / "in", 3, 4)
  write(tmp_path / "in", names[:2], data=b"no image")
  write(tmp_path / "in", ["p3/1.jpg"])
  reader = from_folder(tmp_path / "in", tmp_path / "out", min_images=3)
  assert records.read_classes(str(tmp_path / "out")) == ["p1", "p2"]
  assert reader.index.left_out == {"images": 4, "classes": 1}
  reasons = skipped(tmp_path / "out")
  assert list(reasons) == names[:4]
  assert "2 image(s) that can be read, and 3 are needed" in reasons[names[2]]


def test_lists_and_one_shard_an_image(tmp_path):
  """However the shards are cut; one that loses all its images goes."""
  names = people(tmp_path / "in")
  write(tmp_path / "in", [names[1], names[4], names[5]], data=b"")
  listed = tmp_path / "list.csv"
  lines = [f"{name},{name.split('/')[0]}" for name in names]
  listed.write_text("\n".join(["path,label", *lines]))
  outputs = []
  for number, shard_bytes in enumerate((1, 2**20)):
    out = tmp_path / f"out{number}"
    from_list.convert(
      str(listed),
      str(out),
      root=str(tmp_path / "in"),
      name="x",
      min_images_per_class=2,
      skip_bad=True,
      exclude=None,
      check_images=True,
      threads=2,
      shard_bytes=shard_bytes,
    )
    reader = records.RecordReader(str(out))
    outputs.append([*reader.scan()])
    assert records.read_classes(str(out)) == ["p0", "p2", "p3"]
    assert sorted(skipped(out)) == [names[1], *names[3:6]]
    shards = {name for name in os.listdir(out) if name.startswith("images-")}
    assert shards == {shard.file for shard in reader.index.shards}
  assert outputs[0] == outputs[1] and len(outputs[0]) == 8


def test_no_class_is_left(tmp_path):
  names = people(tmp_path / "in", 2, 2)
  write(tmp_path / "in", names[::2], data=b"")
  with pytest.raises(InputError, match="has 2 image.* the largest 1"):
    from_folder(tmp_path / "in", tmp_path / "out", min_images=2)


# 6 and 10: embeddings of a folder or a list with a broken image in it.


def embed(run, workdir, images, output, *flags):
  done = run(
    "jamsface_jax.embed",
    f"--workdir={workdir}",
    f"--images={images}",
    f"--output={output}",
    *flags,
  )
  assert done.returncode == 0, done.stderr
  return done


def test_clean_leaves_out_what_could_not_be_embedded(
  run, untrained, tmp_path, capsys
):
  names = people(tmp_path / "in", 3, 4)
  write(tmp_path / "in", names[5:6], data=b"")
  embed(run, untrained, tmp_path / "in", tmp_path / "e")
  assert np.isnan(np.load(tmp_path / "e" / "embeddings.npy")[5]).all()
  clean.clean(
    str(tmp_path / "e"),
    str(tmp_path / "noise.tsv"),
    min_similarity=None,
    class_similarity=None,
    duplicate_similarity=0.5,
  )
  said = capsys.readouterr().out
  assert "1 images of broken.txt were not looked at" in said
  lines = (tmp_path / "noise.tsv").read_text().splitlines()[1:]
  listed = {line.split("\t")[0] for line in lines}
  assert listed and listed <= set(names) - {names[5]}
  # And the list of what is broken is one that converters take.
  reader = from_folder(
    tmp_path / "in",
    tmp_path / "out",
    skip_bad=False,
    exclude=str(tmp_path / "e" / "broken.txt"),
  )
  assert len(reader) == 11


def listed_images(tmp_path, text, encoding="utf-8"):
  names = people(tmp_path / "in", 2, 2)
  path = tmp_path / "list.txt"
  path.write_bytes(text(names).encode(encoding))
  return names, open_images(
    str(path), 32, root=str(tmp_path / "in"), color_order=None
  )


@pytest.mark.parametrize(
  "text",
  [
    lambda names: "\ufeff" + "\n".join(names),
    lambda names: "\r\n".join(names) + "\r\n\r\n",
    lambda names: "".join(f"{name}\t0\n" for name in names),
    lambda names: "".join(f"{name}  \n" for name in names),
  ],
  ids=["mark", "windows", "tabs", "blanks"],
)
def test_lists_as_programs_save_them(tmp_path, text):
  names, images = listed_images(tmp_path, text)
  block = images.read(0, len(images))
  assert block.names == names and not block.broken


# 7, 11 and what else is in folders.


def test_identities_that_are_links(run, untrained, tmp_path):
  people(tmp_path / "store")
  (tmp_path / "in").mkdir()
  for k in range(3):
    (tmp_path / "in" / f"p{k}").symlink_to(tmp_path / "store" / f"p{k}")
  embed(run, untrained, tmp_path / "in", tmp_path / "e")
  assert len(np.load(tmp_path / "e" / "embeddings.npy")) == 9
  assert len(from_folder(tmp_path / "in", tmp_path / "out")) == 9


@pytest.mark.parametrize("odd", [b"caf\xe9.jpg", b"a\nb.jpg"])
def test_names_that_no_list_can_hold(run, untrained, tmp_path, odd):
  people(tmp_path / "in", 3, 2)
  path = os.path.join(os.fsencode(tmp_path), b"in", b"p0", odd)
  with open(path, "wb") as file:
    file.write(encoded(face(9)))
  done = run(
    "data_prep.from_folder",
    f"--input={tmp_path / 'in'}",
    f"--output={tmp_path / 'no'}",
  )
  assert_one_sentence(done, "not UTF-8 or has a line break", "rename")
  reader = from_folder(tmp_path / "in", tmp_path / "out")
  [name] = skipped(tmp_path / "out")
  assert len(reader) == 6 and name in ("p0/caf\\xe9.jpg", "p0/a\\nb.jpg")
  embed(run, untrained, tmp_path / "in", tmp_path / "e")
  lines = (tmp_path / "e" / "paths.txt").read_text().splitlines()
  assert len(lines) == 7 and name in lines
  assert np.isfinite(np.load(tmp_path / "e" / "embeddings.npy")).all()


def test_a_nested_folder_is_gone_down_into_and_not_deleted(tmp_path):
  """As archives come: FOLDER/part/person/image."""
  people(tmp_path / "in" / "part one", 3, 2)
  with pytest.raises(InputError) as error:
    from_folder(tmp_path / "in", tmp_path / "no", skip_bad=False)
  text = str(error.value)
  assert f"give --input='{tmp_path}/in/part one'" in text
  assert "folders with 6" in text and "delete" not in text


def test_what_else_lies_in_folders_is_said(tmp_path, capsys):
  people(tmp_path / "in", 3, 2)
  for name in ("p0/1.heic", "p0/2.mp4", "p1/deep/3.jpg", "beside.jpg"):
    write(tmp_path / "in", [name], data=encoded(face(0)))
  (tmp_path / "in" / "empty").mkdir()
  with pytest.raises(InputError, match="empty' has no image"):
    from_folder(tmp_path / "in", tmp_path / "no", skip_bad=False)
  capsys.readouterr()
  assert len(from_folder(tmp_path / "in", tmp_path / "out")) == 6
  said = capsys.readouterr().err
  for part in (
    "2 files that are no images (1 .heic, 1 .mp4)",
    "1 images in folders within folders",
    "1 images beside the folders",
    "1 identities have no image, such as 'empty'",
  ):
    assert part in said


# 8: photographs as cameras write them.


STORED = {
  1: lambda p: p,
  2: lambda p: p[:, ::-1],
  3: lambda p: p[::-1, ::-1],
  4: lambda p: p[::-1],
  5: lambda p: p.transpose(1, 0, 2),
  6: lambda p: np.rot90(p, 1),
  7: lambda p: p[::-1, ::-1].transpose(1, 0, 2),
  8: lambda p: np.rot90(p, -1),
}


def with_exif(pixels, orientation, kind):
  image = Image.fromarray(np.ascontiguousarray(pixels))
  exif = image.getexif()
  exif[0x0112] = orientation
  exif[0x010F] = "A camera"  # Its maker: another tag before.
  stream = io.BytesIO()
  options = {
    "JPEG": {"quality": 100, "subsampling": 0},
    "WEBP": {"lossless": True},
    "AVIF": {"quality": 100, "subsampling": "4:4:4"},
  }
  image.save(stream, kind, exif=exif, **options.get(kind, {}))
  return stream.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", STORED)
def test_images_are_turned_as_exif_says(kind, orientation):
  upright = face(3, 24, 40)
  data = with_exif(STORED[orientation](upright), orientation, kind)
  pixels = decoding.decode_image(data)
  assert pixels.shape == upright.shape == (*decoding.read_size(data), 3)
  assert np.abs(pixels.astype(int) - upright).max() < 8
  square = face(3, 32, 32)
  data = with_exif(STORED[orientation](square), orientation, kind)
  into = np.empty((32, 32, 3), np.uint8)
  decoding.decode_into(data, into)
  assert np.abs(into.astype(int) - square).max() < 8


def test_broken_exif_turns_nothing():
  data = with_exif(face(3), 6, "JPEG")
  at = data.index(b"Exif\0\0")
  for change in (bytes([255] * 30), bytes(30)):
    damaged = data[: at + 6] + change + data[at + 36 :]
    assert decoding.decode_image(damaged).shape == (40, 40, 3)


# 9: InsightFace's .lst.


def convert_list(listed, root, out, **changes):
  from_list.convert(
    str(listed),
    str(out),
    root=str(root),
    name="x",
    **{
      "min_images_per_class": 1,
      "skip_bad": False,
      "exclude": None,
      "check_images": True,
      "threads": 2,
    }
    | changes,
  )
  return records.RecordReader(str(out))


@pytest.mark.parametrize("more", ["", "\t0\t0\t9\t9"])
def test_list_of_insightface(tmp_path, more):
  names = people(tmp_path / "in", 2, 2)
  listed = tmp_path / "train.lst"
  lines = [f"1\t{n}\t{k // 2}{more}\n" for k, n in enumerate(names)]
  listed.write_text("".join(lines))
  reader = convert_list(listed, tmp_path / "in", tmp_path / "out")
  found = [(record.name, record.label) for record in reader.scan()]
  assert found == [(name, k // 2) for k, name in enumerate(names)]


def test_list_of_detection_is_refused(tmp_path):
  listed = tmp_path / "train.lst"
  listed.write_text("0\t2\t5\t1\t.1\t.1\t.5\t.5\ta.jpg\n")
  with pytest.raises(InputError, match="7 labels .* detection"):
    convert_list(listed, tmp_path, tmp_path / "out")


# 12 and other nonsense.


def test_one_class_is_not_trained_in_silence(tmp_path, capsys):
  people(tmp_path / "in", 1, 4)
  from_folder(tmp_path / "in", tmp_path / "out")
  assert "one class" in capsys.readouterr().err
  found = [
    one for one in check_data(str(tmp_path / "out")) if one.state == NOTE
  ]
  assert any("one class" in one.text for one in found)
  with pytest.raises(InputError, match="one class"):
    open_training(str(tmp_path / "out"))


def notes(directory):
  """What the doctor notes of a data set."""
  return [one.text for one in check_data(str(directory)) if one.state == NOTE]


def open_training(directories):
  config = base_config()
  config.data.directory = directories
  return open_source(make_settings(config).data)


def test_the_same_data_twice_is_refused(tmp_path):
  people(tmp_path / "in", 2)
  people(tmp_path / "in2", 3)
  from_folder(tmp_path / "in", tmp_path / "a")
  from_folder(tmp_path / "in", tmp_path / "b")
  from_folder(tmp_path / "in2", tmp_path / "c")
  assert open_training(f"{tmp_path}/a,{tmp_path}/c").num_classes == 5
  for twice in (f"{tmp_path}/a,{tmp_path}/a", f"{tmp_path}/a,{tmp_path}/b"):
    with pytest.raises(InputError, match="same data set twice"):
      open_training(twice)


@pytest.mark.parametrize(
  ("sizes", "doubtful"),
  [
    ([(112, 112)], False),
    ([(218, 178)], False),
    ([(112, 96)], False),
    ([(480, 640)], True),
    ([(1200, 1200)], True),
    ([(250, 200), (300, 190), (90, 150)], True),
    ([(60 + k, 60 + k) for k in range(6)], True),
  ],
)
def test_photographs_that_are_not_aligned(tmp_path, capsys, sizes, doubtful):
  for k, (height, width) in enumerate(sizes):
    for name in ("a", "b"):
      write(
        tmp_path / "in", [f"{name}/{k}.jpg"], encoded(face(k, height, width))
      )
  from_folder(tmp_path / "in", tmp_path / "out")
  said = capsys.readouterr().err
  assert ("data_prep.align" in said) == doubtful
  found = notes(tmp_path / "out")
  assert any("data_prep.align" in note for note in found) == doubtful


def test_labels_that_are_one_number(tmp_path):
  names = people(tmp_path / "in", 2, 2)
  listed = tmp_path / "list.csv"
  labels = ["001", "1", "002", "002"]
  pairs = zip(names, labels, strict=True)
  listed.write_text("".join(f"{name},{label}\n" for name, label in pairs))
  with pytest.raises(InputError, match="'001' and '1', which are one number"):
    convert_list(listed, tmp_path / "in", tmp_path / "out")
  listed.write_text("".join(f"{n},{k:03d}\n" for k, n in enumerate(names)))
  assert convert_list(listed, tmp_path / "in", tmp_path / "out").index.classes


# 16: arrays in a .bin.


def test_arrays_of_one_column_and_empty_entries(tmp_path):
  images = []
  for number in range(80):
    data = np.frombuffer(encoded(face(number)), np.uint8)
    images.append(data.reshape(-1, 1) if number % 3 else data.reshape(1, -1))
  images[7], images[12], images[13] = None, b"", np.empty((0, 1), np.uint8)
  same = [k % 2 == 0 for k in range(40)]
  path = tmp_path / "small.bin"
  path.write_bytes(pickle.dumps((images, same), protocol=4))
  flags = {"name": "x", "threads": 2}
  with pytest.raises(InputError, match="cannot be read"):
    from_bin.convert(str(path), str(tmp_path / "a"), skip_bad=False, **flags)
  from_bin.convert(str(path), str(tmp_path / "b"), skip_bad=True, **flags)
  reader = records.RecordReader(str(tmp_path / "b"))
  assert reader.index.left_out == {"images": 3, "pairs": 2}
  assert len(reader) == 77


# 17: landmarks of images of another size.


def test_landmarks_outside_the_image(tmp_path, capsys):
  photographs(tmp_path, [f"p/{k}.jpg" for k in range(4)])
  lines = (tmp_path / "points.txt").read_text().splitlines()
  lines[0] = "p/0.jpg 35 37 59 37 47 50 37 60 57 60"  # Of 100 pixels, say.
  lines[1] = "p/1.jpg 14 14 26 14 20 20 15 27 41 27"  # At the border.
  (tmp_path / "points.txt").write_text("\n".join(lines))
  with pytest.raises(InputError, match="landmarks lie outside its 40 x 40"):
    run_align(tmp_path, skip_bad=False)
  run_align(tmp_path)
  assert list(skipped(tmp_path / "faces")) == ["p/0.jpg"]
  said = capsys.readouterr()
  assert "2 faces in" in said.out and "1 in no_face.txt" in said.out
  assert "1 faces have a landmark outside their image" in said.err


# 18: other formats.


@pytest.mark.parametrize("end", [".pgm", ".ppm", ".tif", ".jfif", ".gif"])
def test_other_formats_are_read_by_all(tmp_path, end):
  data = encoded(face(1), ".jpg" if end == ".jfif" else end)
  for name in ("s1/1", "s2/1"):
    write(tmp_path / "in", [name + end], data)
  assert len(from_folder(tmp_path / "in", tmp_path / "out")) == 2
  images = open_images(str(tmp_path / "in"), 32, root=None, color_order=None)
  assert len(images) == 2 and not images.read(0, 2).broken


@pytest.mark.parametrize("end", [".png", ".tiff", ".pgm"])
def test_files_of_16_bits(end):
  """OpenCV writes them, and takes the upper half of every number."""
  grey = face(1)[:, :, 0]
  for factor in 1, 257:
    data = cv2.imencode(end, grey.astype(np.uint16) * factor)[1].tobytes()
    np.testing.assert_array_equal(decoding.decode_image(data)[:, :, 0], grey)


@pytest.mark.parametrize("white", [1, 15, 100, 1023, 4095])
@pytest.mark.parametrize("kind", [b"P2", b"P5"])
def test_what_stands_for_white_is_said(white, kind):
  values = face(1)[:, :, 0].astype(int) * white // 255
  head = b"%s\n# of a camera\n40 40\n%d\n" % (kind, white)
  if kind == b"P2":
    data = head + b" ".join(b"%d" % v for v in values.ravel()) + b"\n"
  else:
    data = head + values.astype(">u2" if white > 255 else "u1").tobytes()
  want = values * 255 / white
  got = decoding.decode_image(data)[:, :, 0]
  assert np.abs(got - want).max() < 1


# Lists and records.


def test_names_with_blanks_in_the_layout_of_lfw(tmp_path):
  names = [f"A B {k}/A B {k}_{i:04d}.jpg" for k in range(12) for i in (1, 2)]
  path = tmp_path / "pairs.txt"
  same = [f"A B {k}\t1\t2" for k in range(12)]
  other = [f"A B {k}\t1\tA B {(k + 1) % 12}\t2" for k in range(12)]
  path.write_text("\r\n".join(["\ufeff12", *same, *other]), encoding="utf-8")
  pairs = read_pairs(path, names)
  assert len(pairs.first) == 24
  assert [names[k] for k in (pairs.first[1], pairs.second[1])] == names[2:4]


def test_records_of_detection_are_no_classes(tmp_path):
  """im2rec's: numbers in the head, numbers of a box, boxes (MXNet's docs)."""
  labels = struct.pack("<7f", 2, 5, 0, 0.1, 0.1, 0.6, 0.6)
  payload = struct.pack("<IfQQ", 7, 0, 1, 0) + labels + encoded(face(1))
  payload += bytes(-len(payload) % 4)
  path = tmp_path / "train.rec"
  path.write_bytes(struct.pack("<II", 0xCED7230A, len(payload)) + payload)
  with recordio.RecordFile(str(path), None) as file:
    [record] = file.records()
  assert "7 labels, as those of detection" in record.reason


def test_results_say_what_was_left_out(run, untrained, tmp_path):
  people(tmp_path / "in", 12)
  write(tmp_path / "in", ["p5/p5_0001.jpg"], data=b"")
  lfw_pairs(tmp_path / "pairs.txt")
  from_folder(
    tmp_path / "in", tmp_path / "set", pairs=str(tmp_path / "pairs.txt")
  )
  done = run(
    "jamsface_jax.evaluate",
    f"--workdir={untrained}",
    f"--data={tmp_path / 'set'}",
    f"--output={tmp_path / 'results'}",
  )
  assert done.returncode == 0, done.stderr
  assert "left out: 1 images, 2 pairs" in done.stdout
  [path] = (tmp_path / "results").glob("**/results.json")
  [one] = json.loads(path.read_text())["sets"]
  assert one["facts"]["left_out"] == {"images": 1, "pairs": 2}


# Ten more, searched out for docs/reports.md.


def convert_bin(tmp_path, images, protocol=4, **changes):
  same = [k % 2 == 0 for k in range(len(images) // 2)]
  path = tmp_path / "set.bin"
  path.write_bytes(pickle.dumps((images, same), protocol=protocol))
  from_bin.convert(
    str(path),
    str(tmp_path / "set"),
    **{"name": "x", "threads": 2, "skip_bad": False} | changes,
  )
  return records.RecordReader(str(tmp_path / "set"))


def test_bitmaps_in_a_bin(tmp_path):
  images = [encoded(face(k), ".bmp") for k in range(80)]
  reader = convert_bin(tmp_path, images)
  found = [record.image for record in reader.scan()]
  assert found == images


@pytest.mark.parametrize("junk", [".DS_Store", "Thumbs.db", "desktop.ini"])
def test_files_of_file_managers(tmp_path, capsys, junk):
  people(tmp_path / "in", 2, 2)
  write(tmp_path / "in", [junk, f"p0/{junk}"], data=b"junk")
  assert len(from_folder(tmp_path / "in", tmp_path / "out")) == 4
  assert records.read_classes(str(tmp_path / "out")) == ["p0", "p1"]
  said = capsys.readouterr().err
  assert ("1 files that are no images" in said) == (not junk.startswith("."))


@pytest.mark.parametrize("end", [".JPG", ".JPEG", ".Png"])
def test_endings_in_capitals(tmp_path, end):
  write(tmp_path / "in", [f"a/1{end}", f"b/1{end}"])
  assert len(from_folder(tmp_path / "in", tmp_path / "out")) == 2


def test_jpeg_of_four_inks():
  """Pillow writes CMYK as Photoshop does, inverted."""
  picture = face(5)
  stream = io.BytesIO()
  Image.fromarray(picture).convert("CMYK").save(stream, "JPEG", quality=100)
  decoded = decoding.decode_image(stream.getvalue())
  assert np.abs(decoded.astype(int) - picture).max() < 12


def test_a_truncated_image_is_none(tmp_path):
  """And no picture with a grey half."""
  names = people(tmp_path / "in", 2, 3)
  data = encoded(face(1, 112, 112))
  for name, part in zip(names[:2], (0.5, 0.97), strict=True):
    write(tmp_path / "in", [name], data=data[: int(len(data) * part)])
  assert len(from_folder(tmp_path / "in", tmp_path / "out")) == 4
  assert list(skipped(tmp_path / "out")) == names[:2]


@pytest.mark.parametrize("protocol", [0, 1, 2])
def test_bin_of_python_2(tmp_path, protocol):
  """NumPy's arrays and texts as Python 2 pickled them have protocol 2 or less.

  Python 3 writes bytes of such protocols by a call of `codecs.encode`.
  """
  images = [np.frombuffer(encoded(face(k)), np.uint8) for k in range(80)]
  assert len(convert_bin(tmp_path, images, protocol)) == 80


def test_pairs_of_other_images_are_no_result(tmp_path):
  """All 6,000 pairs skipped is no evaluation, also with --skip_bad."""
  people(tmp_path / "in", 12)
  same = [f"q{k} 1 2" for k in range(12)]
  other = [f"q{k} 1 q{(k + 1) % 12} 3" for k in range(12)]
  path = tmp_path / "pairs.txt"
  path.write_text("\n".join(["12", *same, *other]))
  with pytest.raises(InputError, match="the 0 pairs with readable images"):
    from_folder(tmp_path / "in", tmp_path / "out", pairs=str(path))


def test_paths_where_the_layout_has_numbers(tmp_path):
  """A list of paths and a table of names are told apart by the first line."""
  names = people(tmp_path / "in", 12)
  listed = tmp_path / "pairs.txt"
  pairs = [(f"p{k}", 1, f"p{k}", 2, 1) for k in range(12)]
  pairs += [(f"p{k}", 1, f"p{(k + 1) % 12}", 3, 0) for k in range(12)]
  listed.write_text(
    "".join(
      f"{a}/{a}_{i:04d}.jpg {b}/{b}_{j:04d}.jpg {s}\n"
      for a, i, b, j, s in pairs
    )
  )
  lfw_pairs(tmp_path / "lfw.txt")
  one, two = (read_pairs(tmp_path / n, names) for n in ("pairs.txt", "lfw.txt"))
  np.testing.assert_array_equal(one.first, two.first)
  np.testing.assert_array_equal(one.second, two.second)


# The chain: what is missing on the way does not break the next command.


def troubled_photographs(root):
  """Photographs of 12 people in every kind of trouble; returns their files."""
  names = [f"p{k}/p{k}_{i:04d}.jpg" for k in range(12) for i in (1, 2, 3)]
  write(root / "photos", names)
  points = "14 14 26 14 20 20 15 27 25 27"
  faceless = {"p1/p1_0002.jpg", "p2/p2_0001.jpg"}
  lines = [f"{name}\t" + points.replace(" ", "\t") for name in names]
  lines = [one for one in lines if one.split("\t")[0] not in faceless]
  (root / "points.txt").write_text("\n".join(lines))
  broken = ["p3/p3_0001.jpg", "p4/p4_0001.jpg", "p4/p4_0002.jpg"]
  broken += ["p4/p4_0003.jpg"]
  write(root / "photos", broken[:2], data=b"")
  write(root / "photos", broken[2:], data=encoded(face(2))[:300])
  turned = with_exif(STORED[6](face(15)), 6, "JPEG")
  write(root / "photos", ["p5/p5_0001.jpg"], data=turned)
  os.rename(root / "photos" / "p6", root / "p6")
  (root / "photos" / "p6").symlink_to(root / "p6")
  (root / "photos" / "p7" / "back").symlink_to(root / "photos")
  write(root / "photos", ["p8/a.heic", "p8/b.mp4", "Thumbs.db"], data=b"x")
  odd = os.path.join(os.fsencode(root), b"photos", b"p9", b"caf\xe9.jpg")
  with open(odd, "wb") as file:
    file.write(encoded(face(3)))
  (root / "photos" / "nobody").mkdir()
  return names, faceless, broken


@pytest.mark.slow
def test_the_chain_on_a_folder_with_every_kind_of_trouble(
  run, tmp_path, monkeypatch
):
  names, faceless, broken = troubled_photographs(tmp_path)

  def command(module, *flags):
    done = run(module, *flags)
    assert done.returncode == 0, f"{module}: {done.stderr}"
    return done

  photos, faces = tmp_path / "photos", tmp_path / "faces"
  # As they are: images, and what is listed, make up what is there.
  command(
    "data_prep.from_folder",
    f"--input={photos}",
    f"--output={tmp_path / 'raw'}",
    "--skip_bad",
  )
  index = records.read_index(str(tmp_path / "raw"))
  listed = skipped(tmp_path / "raw")
  assert index.images + len(listed) == len(names) + 1
  assert set(broken) < set(listed) and "p9/caf\\xe9.jpg" in listed
  assert index.left_out == {"images": 5, "classes": 1}
  # Aligned.
  command(
    "data_prep.align",
    f"--input={photos}",
    f"--output={faces}",
    f"--landmarks={tmp_path / 'points.txt'}",
    "--skip_bad",
    "--size=32",
  )
  no_face = (faces / "no_face.txt").read_text().split()
  # Through the link that leads back each is met once, and not again.
  assert set(no_face) == faceless
  assert set(skipped(faces)) == set(listed)
  made = sum(1 for _ in faces.glob("*/*.jpg"))
  assert made + len(no_face) + len(listed) == len(names) + 1
  # A verification set, of what is left.
  lfw_pairs(tmp_path / "pairs.txt")
  command(
    "data_prep.from_pairs",
    "--protocol=lfw",
    f"--input={faces}",
    f"--pairs={tmp_path / 'pairs.txt'}",
    f"--output={tmp_path / 'set'}",
    "--skip_bad",
  )
  index = records.read_index(str(tmp_path / "set"))
  gone = {*faceless, *broken}
  pairs = [(f"p{k}", 1, f"p{k}", 2) for k in range(12)]
  pairs += [(f"p{k}", 1, f"p{(k + 1) % 12}", 3) for k in range(12)]
  lost = sum(
    any(f"{p}/{p}_{i:04d}.jpg" in gone for p, i in ((a, i), (b, j)))
    for a, i, b, j in pairs
  )
  assert index.left_out["pairs"] == lost > 0
  assert (
    len((tmp_path / "set" / "pairs.txt").read_text().split("\n")) == 25 - lost
  )
  reasons = skipped(tmp_path / "set")
  assert (
    set(reasons) == gone and reasons["p2/p2_0001.jpg"] == "no face was found"
  )
  # Trained on the faces.
  done = command(
    "data_prep.from_folder",
    f"--input={faces}",
    f"--output={tmp_path / 'train'}",
    "--skip_bad",
    "--min_images=2",
  )
  assert len(records.read_classes(str(tmp_path / "train"))) == 11
  command(
    "jamsface_jax.main",
    "--config=configs/ms1m_r100.py:tiny",
    f"--workdir={tmp_path / 'w'}",
    "--config.schedule.length=2.0",
    f"--config.data.directory={tmp_path / 'train'}",
    f"--config.evaluation.data={tmp_path / 'set'}",
  )
  # Evaluated: the results say what they were not measured on.
  done = command(
    "jamsface_jax.evaluate",
    f"--workdir={tmp_path / 'w'}",
    f"--data={tmp_path / 'set'}",
    f"--output={tmp_path / 'results'}",
  )
  assert f"{lost} pairs" in done.stdout
  # Embedded as they are, with broken ones; judged and cleaned all the same.
  done = command(
    "jamsface_jax.embed",
    f"--workdir={tmp_path / 'w'}",
    f"--images={photos}",
    f"--output={tmp_path / 'e'}",
  )
  assert "3 files that are no images" in done.stderr
  rows = np.load(tmp_path / "e" / "embeddings.npy")
  bad = np.isnan(rows).any(axis=1)
  paths = (tmp_path / "e" / "paths.txt").read_text().splitlines()
  assert len(rows) == len(names) + 1 == len(paths)
  assert {paths[k] for k in np.flatnonzero(bad)} == set(broken)
  done = command(
    "jamsface_jax.evaluate",
    f"--protocol={tmp_path / 'pairs.txt'}",
    f"--embeddings={tmp_path / 'e' / 'embeddings.npy'}",
  )
  assert "left out: 4 images" in done.stdout
  done = command(
    "data_prep.clean",
    f"--embeddings={tmp_path / 'e'}",
    f"--output={tmp_path / 'noise.tsv'}",
  )
  assert "4 images of broken.txt were not looked at" in done.stdout
  # And both lists are ones that the converter takes.
  for number, path in enumerate(("e/broken.txt", "noise.tsv")):
    command(
      "data_prep.from_folder",
      f"--input={photos}",
      "--skip_bad",
      f"--output={tmp_path / f'again{number}'}",
      f"--exclude={tmp_path / path}",
    )
