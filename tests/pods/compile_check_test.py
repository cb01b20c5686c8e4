"""Whether a run fits: on CPUs by shape here, on TPUs where libtpu is."""

import collections
import dataclasses
import gzip
import importlib.util
import json
import math
import pathlib
import types
from importlib.metadata import entry_points

import jax
import peak_memory
import pytest
from conftest import assert_one_sentence

from jamsface_jax.devices import sharding
from jamsface_jax.errors import InputError
from jamsface_jax.pods import accelerators, check, search, step_cost, tables
from jamsface_jax.pods.work import Work
from jamsface_jax.run import state
from jamsface_jax.run.components import make_components
from jamsface_jax.settings.defaults import base_config, make_settings
from jamsface_jax.settings.variants import tiny

ROOT = pathlib.Path(__file__).parents[2]
MODULE = "jamsface_jax.compile_check"
TINY = "--config=configs/ms1m_r100.py:tiny"
MIB = 2**20
needs_libtpu = pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None,
  reason="libtpu, which compiles for TPUs, is not installed: make test-pods.",
)
HAS_CUDA = any("cuda" in p for p in entry_points(group="jax_plugins").names)
needs_cuda = pytest.mark.skipif(
  not HAS_CUDA,
  reason="The CUDA compiler is not installed: make test-cuda.",
)


def settings(**changes):
  config = tiny(base_config())
  config.data.batch_size = 48
  config.data.image_size = 16
  config.model.stages = (1,)
  config.update_from_flattened_dict(changes)
  return make_settings(config)


@pytest.fixture(scope="module")
def eight():
  """The eight fake CPUs of the tests as a topology."""
  return accelerators.Topology("cpu:8", None, (8,), 1, jax.devices(), 2**30)


def measure(config, topology, classes=1000):
  return step_cost.measure(
    config, num_classes=classes, num_images=512, topology=topology
  )


@pytest.mark.parametrize("model", [8, 2])
def test_bytes_are_those_of_the_state_that_trains(eight, model):
  config = settings(**{"mesh.model": model})
  cost = measure(config, eight)
  assert cost.mesh == {"data": 8 // model, "model": model}
  components = make_components(config, 1000, 512)
  first = state.create_state(0, components, 16, sharding.make_mesh(model))

  def held(tree):
    device = jax.devices()[0]
    return sum(
      shard.data.nbytes
      for leaf in jax.tree.leaves(tree)
      for shard in leaf.addressable_shards
      if shard.device == device
    )

  assert cost.backbone == held((first.params["backbone"], first.batch_stats))
  assert cost.backbone_optimizer == held(first.opt_state["backbone"])
  assert cost.head == held(first.params["head"])
  assert cost.head_optimizer == held(first.opt_state["head"])
  # A pixel a byte, the label, and the images of its class.
  assert cost.inputs == 6 * (16 * 16 * 3 + 4 + 4)
  whole = held(first) + cost.inputs + cost.temporaries + cost.program
  # And the metrics that come out, a few scalars.
  assert 0 <= cost.total - whole < 1024


@pytest.mark.slow
def test_collectives_of_the_head_do_not_grow_with_the_classes(eight):
  """They grow with B x D alone; nothing of the size of C is ever sent."""

  def sent(classes, **changes):
    cost = measure(settings(**changes), eight, classes)
    bytes_of = collections.Counter()
    for c in cost.collectives:
      # With copies of the classes on a `data` axis, the sum of their gradient
      # is of their size.
      if c.axis != "data":
        bytes_of[c.kind, c.dtype] += c.bytes * c.runs
    return bytes_of

  for model, batch in ((8, 48), (4, 24)):
    few = sent(1000, **{"mesh.model": model})
    assert few == sent(16_000, **{"mesh.model": model})
    for kind in ("all-gather", "reduce-scatter"):
      assert few[kind, "f32"] == batch * 32 * 4
  twice = sent(1000, **{"mesh.model": 8, "data.batch_size": 96})
  assert twice["all-gather", "f32"] == 2 * 48 * 32 * 4
  # What grows of the all-reduces are five numbers for each example.
  more = twice["all-reduce", "f32"] - sent(1000)["all-reduce", "f32"]
  assert more == 5 * 48 * 4


@pytest.mark.slow
def test_refused_and_the_ways_out(eight, capsys):
  fixed = {"head.keep_mib": 0, "mesh.model": 4, "model.dtype": "bfloat16"}
  config = settings(**fixed)
  cost = measure(config, eight, 100_000)
  small = dataclasses.replace(eight, memory=cost.total * 3 // 4)
  cost = measure(config, small, 100_000)
  assert not cost.fits
  arguments = {"num_classes": 100_000, "num_images": 512, "cache": ""}
  now = search.chosen_settings(config, cost)
  ways = search.compile_each(search.ways_out(now, 8), now, small, **arguments)
  ways.sort(key=lambda way: way[1].total)
  # The classes on all eight devices: half of their bytes less.
  words, best = ways[0]
  assert words == "mesh.model=8" and best.fits
  saved = cost.head + cost.head_optimizer
  assert cost.total - best.total == pytest.approx(saved / 2, rel=0.2)
  table = tables.ways_table(cost, ways)
  assert "yes   mesh.model=8" in table
  for setting in ("model.remat=True", "data.batch_size=24", "sample_rate=0.1"):
    assert setting in table


def test_ways_out_are_only_those_that_change_something():
  def words(**changes):
    return [w for w, _ in search.ways_out(settings(**changes), 8)]

  plain = words(**{"mesh.model": 2, "head.fused_update": False})
  assert plain[:3] == ["mesh.model=8", "mesh.model=4", "head.fused_update=True"]
  assert not any("sample_rate" in w for w in plain)  # Needs the fused update.
  everything = {
    "mesh.model": -1,
    "model.dtype": "bfloat16",
    "model.remat": True,
    "data.batch_size": 8,
    "head.sample_rate": 0.5,
    "head.keep_mib": 0,
  }
  assert words(**everything) == []


def test_suggestions_are_only_those_that_change_something(eight):
  def words(topology=eight, **changes):
    return [w for w, _ in search.ways_up(settings(**changes), topology)]

  assert words() == [
    "model.dtype=bfloat16",
    "model.batch_norm_group=6",
    "data.batch_size=96",
    "data.batch_size=192",
  ]
  changes = {"model.dtype": "bfloat16", "model.batch_norm_group": 6}
  changes |= {"model.remat": True, "head.keep_mib": 0, "model.lanes": 1}
  assert words(**changes) == [
    "model.remat=False",
    "head.keep_mib=256",
    "data.batch_size=96 model.batch_norm_group=12",
    "data.batch_size=192 model.batch_norm_group=24",
  ]
  tpu = types.SimpleNamespace(platform="tpu")
  tpus = dataclasses.replace(eight, devices=[tpu] * 8)
  assert "model.lanes=0" in words(tpus, **changes)
  assert "model.lanes=1" in words(tpus)


@pytest.mark.slow
def test_suggestions_are_compiled_where_it_fits(eight, capsys):
  chosen, found = check.check(
    settings(**{"model.dtype": "bfloat16", "model.batch_norm_group": 6}),
    eight,
    num_classes=100,
    num_images=512,
    batch_per_device=None,
    models="",
    cache="",
    suggest=True,
  )
  assert chosen.fits and not found["ways_out"]
  batches = {one["batch"] for one in found["suggestions"]}
  assert batches == {2 * chosen.batch, 4 * chosen.batch}
  shown = capsys.readouterr().out
  assert "data.batch_size=192 model.batch_norm_group=24" in shown


@pytest.mark.slow
def test_all_meshes_in_one_table(eight):
  config = settings()
  arguments = {"num_classes": 1000, "num_images": 512, "cache": ""}
  costs = search.compare(
    config, eight, batch_per_device=2, models="auto", **arguments
  )
  assert [c.mesh["model"] for c in costs] == [1, 2, 4, 8]
  assert all(c.batch == 16 for c in costs)
  assert costs[0].head == 8 * costs[3].head
  best = search.choose(costs)
  assert best.sent + best.moved == min(c.sent + c.moved for c in costs)
  text = tables.why(best, costs)
  assert f"best: mesh.model={best.mesh['model']}" in text
  # Where it is too small for all but the last, that one is chosen.
  limit = costs[3].total
  tight = [dataclasses.replace(c, memory=limit) for c in costs]
  assert [c.fits for c in tight].count(True) == 1
  chosen = search.choose(tight)
  assert chosen.mesh["model"] == 8
  assert "3 of 4 do not fit; the only one" in tables.why(chosen, tight)


def test_results_are_kept_by_program(eight, tmp_path):
  cache = str(tmp_path / "cache")
  arguments = {"num_classes": 100, "num_images": 512, "topology": eight}
  first = step_cost.measure(settings(), cache=cache, **arguments)
  again = step_cost.measure(settings(), cache=cache, **arguments)
  assert first == again  # Its time of compiling among it.
  (path,) = (tmp_path / "cache").iterdir()
  other = settings(**{"model.remat": True})
  step_cost.measure(other, cache=cache, **arguments)
  assert len(list((tmp_path / "cache").iterdir())) == 2
  found = json.loads(gzip.decompress(path.read_bytes())) | {"total": 12345}
  path.write_bytes(gzip.compress(json.dumps(found).encode()))
  assert step_cost.measure(settings(), cache=cache, **arguments).total == 12345
  # What is damaged is made again.
  path.write_bytes(path.read_bytes()[:-20])
  assert step_cost.measure(settings(), cache=cache, **arguments).total == (
    first.total
  )


def test_what_was_kept_of_a_program_is_sound_or_not_there(tmp_path):
  path = tmp_path / "kept.json.gz"
  kept = {"temporaries": None, "program": 1, "total": 2, "compile_seconds": 3.5}

  def read(content):
    path.write_bytes(content)
    return step_cost._read_compiled(str(path))

  def packed(**changes):
    return gzip.compress(json.dumps(kept | {"text": "x"} | changes).encode())

  assert read(packed()).total == 2
  bomb = packed(text=" " * 2**24)
  for content in (b"", b"{}", packed()[:-1], packed(total="2"), bomb):
    assert read(content) is None
  assert peak_memory.peak_above(lambda: read(bomb)) < 12 * 2**20
  path.unlink()
  path.mkdir()
  assert step_cost._read_compiled(str(path)) is None


@pytest.mark.parametrize(
  ("message", "expected"),
  [
    ("RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in"
     " memory space hbm. Used 27.35G of 15.75G hbm. Exceeded", 27.35),
    ("RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required"
     " for HLO temporaries (596.24G) exceeds available HBM (15.75G).", 596.24),
  ],
)  # fmt: skip
def test_bytes_of_a_refusal(message, expected):
  error = jax.errors.JaxRuntimeError(message)
  assert step_cost.refused(error) == int(expected * 2**30)
  other = jax.errors.JaxRuntimeError("INTERNAL: something else")
  with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
    step_cost.refused(other)


def test_seconds_of_collectives_by_hand():
  v5e = accelerators.ACCELERATORS["v5e"]
  pod = accelerators.Topology("v5e:16x16", v5e, (16, 16), 1, (), 0)
  gigabyte = 10**9

  def seconds(topology, kind, group, slices=1):
    return topology.seconds(kind, gigabyte, group, slices)

  # Both axes are rings: 4 links of 50 GB/s, 8 hops at most along each.
  gather = gigabyte * 255 / 256 / 200e9 + 16e-6
  assert seconds(pod, "all-gather", 256) == pytest.approx(gather)
  assert seconds(pod, "all-reduce", 256) == pytest.approx(2 * gather)
  one = gigabyte * 15 / 16 / 100e9 + 8e-6
  assert seconds(pod, "reduce-scatter", 16) == pytest.approx(one)
  # 4 do not close to a ring: one link each way, 3 hops.
  part = accelerators.Topology("v5e:4x4", v5e, (4, 4), 1, (), 0)
  line = gigabyte * 15 / 16 / 100e9 + 6e-6
  assert seconds(part, "all-gather", 16) == pytest.approx(line)
  # Of two slices each device sends a 256th of half over the slow network.
  two = dataclasses.replace(pod, slices=2)
  between = gigabyte / 256 / 2 / v5e.far + 10e-6
  assert seconds(two, "all-gather", 512, slices=2) == pytest.approx(
    gather + between
  )
  # Devices that are each other's like in their slices have it to themselves.
  assert seconds(two, "all-reduce", 2, slices=2) == pytest.approx(
    2 * (gigabyte / 2 / v5e.far + 10e-6)
  )
  assert seconds(two, "all-gather", 256) == pytest.approx(gather)
  h100 = accelerators.ACCELERATORS["h100"]
  eight = accelerators.Topology("h100:8", h100, (8,), 1, (), 0)
  all_eight = gigabyte * 7 / 8 / 450e9 + 1e-6
  assert seconds(eight, "all-gather", 8) == pytest.approx(all_eight)
  assert seconds(eight, "collective-permute", 8) == pytest.approx(
    gigabyte / 450e9 + 1e-6
  )
  assert (
    seconds(dataclasses.replace(pod, accelerator=None), "all-gather", 2) == 0
  )


def test_estimate_by_hand(eight):
  one = accelerators.Accelerator(1, 1e12, 1e9, 1e9, 1, 1, 1e8, 0, 1e6, 1)
  ring = dataclasses.replace(eight, accelerator=one)
  work = [
    Work(10**9, 6, 10**6, 3000, 2),
    Work(0, 1, 10**7, 500, 1),
  ]
  found = step_cost.estimate(work, [], ring, {"data": 1, "model": 8})
  # 6 passes of 1 ms beat 1 ms of memory, twice; then 10 ms of memory.
  assert found.compute == pytest.approx(2 * 6e-3 + 10e-3)
  assert found.compiler == pytest.approx(6.5e-3)


@pytest.mark.parametrize(
  ("flags", "parts"),
  [
    (["--topology=v9:4x4"], ["v9:4x4", "v5e:4x4"]),
    (["--topology=v5e:16"], ["v5e:16", "2 numbers"]),
    (["--topology=2*h100:8"], ["2*h100:8", "slices are of TPUs"]),
    (["--topology=h100:12"], ["h100:12", "multiple of 8"]),
    (["--topology=a100:2x4"], ["a100:2x4", "1 numbers"]),
    (["--topology=cpu:8", "--config.mesh.model=3"], ["mesh.model=3", "8"]),
    (["--topology=cpu:8", "--mesh=x"], ["--mesh='x'", "auto"]),
    (["--topology=cpu:8", "--batch_per_device=0"], ["batch_per_device=0"]),
    (["--topology=cpu:8", "--classes=3000000000"], ["--classes=3000000000"]),
    (["--topology=cpu:3"], ["data.batch_size", "multiple of 3"]),
    ([], ["--topology", "needed"]),
  ],
)
def test_mistakes_are_one_sentence(run, flags, parts):
  assert_one_sentence(run(MODULE, TINY, *flags), *parts)


@pytest.mark.parametrize("page", ["docs/runs.md", "docs/pods.md"])
def test_commands_of_the_documents_need_no_data(page):
  """Who asks whether a data set fits need not have it."""
  text = (ROOT / page).read_text().replace("\\\n", " ")
  commands = [x for x in text.splitlines() if f"-m {MODULE}" in x]
  assert commands
  for command in commands:
    assert "--classes=" in command and "--images=" in command, command


@pytest.mark.slow
def test_command_says_what_fits_and_what_does_not(run, tmp_path):
  output = tmp_path / "found.json"
  flags = [TINY, f"--output={output}", "--batch_per_device=2"]
  done = run(MODULE, *flags, "--topology=cpu:8", "--topology=cpu:4")
  assert done.returncode == 0, done.stderr
  assert "cpu:8: iresnet, bfloat16, 64 classes, batch 16 (2 on" in done.stdout
  assert "all-gather" in done.stdout
  eight, four = json.loads(output.read_text())
  assert eight["chosen"]["batch"] == 16 and four["chosen"]["batch"] == 8
  assert eight["chosen"]["seconds"] == four["chosen"]["seconds"] == 0
  many = ["--classes=2000000000", "--config.model.embedding_size=1024"]
  less = ["--config.model.remat=True", "--config.head.keep_mib=0"]
  done = run(MODULE, TINY, *many, *less, "--topology=cpu:1")
  assert done.returncode == 1, done.stderr
  assert "DOES NOT FIT" in done.stdout and "ways out" in done.stdout


@needs_libtpu
@pytest.mark.pods
@pytest.mark.slow
def test_a_small_step_for_tpus(run, tmp_path):
  output = tmp_path / "found.json"
  flags = [TINY, f"--output={output}", "--batch_per_device=4"]
  flags += ["--config.model.batch_norm_group=4"]
  names = ["v5e:4x4", "v4:2x2x1", "v6e:2x2", "v5p:2x2x1", "2*v5e:2x2"]
  done = run(MODULE, *flags, *(f"--topology={name}" for name in names))
  assert done.returncode == 0, done.stderr
  found = json.loads(output.read_text())
  for entry, name, devices in zip(found, names, (16, 4, 4, 4, 8), strict=True):
    cost = entry["chosen"]
    assert entry["topology"] == name
    assert math.prod(cost["mesh"].values()) == devices
    assert cost["compiler_seconds"] > 0 and cost["operations"] > 0
    assert cost["program"] > 0
  # Of two slices, the classes stay in one.
  assert found[-1]["chosen"]["mesh"] == {"data": 2, "model": 4}


@needs_libtpu
@pytest.mark.pods
@pytest.mark.slow
def test_folded_maps_take_fewer_cycles_of_a_tpu():
  (tpus,) = accelerators.open_topologies(["v5e:2x2"])
  changes = {"model.width": 1.0, "data.image_size": 56, "model.stages": (1,)}
  changes |= {"model.dtype": "bfloat16", "data.batch_size": 256}
  folded, plain = (
    measure(settings(**changes | {"model.lanes": lanes}), tpus)
    for lanes in (0, 1)
  )
  # The first stage of an IResNet, of 64 channels: 1.7 times as fast.
  assert folded.compiler_seconds < 0.75 * plain.compiler_seconds


@needs_libtpu
@pytest.mark.pods
@pytest.mark.slow
def test_the_compiler_of_tpus_refuses_what_does_not_fit(run):
  flags = ["--classes=2000000", "--config.model.embedding_size=4096"]
  done = run(MODULE, TINY, *flags, "--topology=v5e:1x1")
  assert done.returncode == 1, done.stderr
  assert "DOES NOT FIT" in done.stdout


def test_topology_without_libtpu(run):
  if importlib.util.find_spec("libtpu"):
    pytest.skip("libtpu is installed")
  done = run(MODULE, TINY, "--topology=v5e:4x4")
  assert_one_sentence(done, "v5e:4x4", "install libtpu")


@needs_cuda
@pytest.mark.cuda
def test_a_small_step_for_gpus(run, tmp_path):
  """By the compiler of GPUs, where there is none; 16 are two machines."""
  output = tmp_path / "found.json"
  flags = [TINY, f"--output={output}", "--batch_per_device=4"]
  flags += ["--config.model.batch_norm_group=4", f"--cache={tmp_path / 'c'}"]
  names = ["h100:16", "a100:2", "h100:1"]
  topologies = [f"--topology={name}" for name in names]
  done = run(MODULE, *flags, *topologies)
  assert done.returncode == 0, done.stderr
  assert "estimates, nothing was measured" in done.stdout
  assert "chosen on the card" in done.stdout
  costs = [entry["chosen"] for entry in json.loads(output.read_text())]
  assert [c["mesh"] for c in costs] == [
    {"data": 2, "model": 8},
    {"data": 1, "model": 2},
    {"data": 1, "model": 1},
  ]
  for cost in costs:
    assert cost["operations"] > 0 and cost["launches"] > 100
    assert cost["compiler_seconds"] == 0 < cost["compute_seconds"]
    assert not cost["unknown_calls"]
  assert costs[0]["memory"] == int(0.75 * 84_942_979_072)
  # The same program for both: arithmetic does not depend on the card.
  assert costs[0]["sent"] > costs[2]["sent"] == 0
  again = run(MODULE, *flags, *topologies)
  assert again.stdout == done.stdout  # Not even another time of compiling.


@needs_cuda
@pytest.mark.cuda
def test_gradients_between_gpus(run, tmp_path):
  """Sent in float32, or in bfloat16 where that is asked for."""
  output = tmp_path / "found.json"
  flags = [TINY, f"--output={output}", "--batch_per_device=4"]
  flags += ["--topology=h100:8", "--config.model.batch_norm_group=4"]
  sent = {}
  for dtype in ("float32", "bfloat16"):
    done = run(MODULE, *flags, f"--config.optimizer.gradient_dtype={dtype}")
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(output.read_text())
    sent[dtype] = collections.Counter()
    for c in found["chosen"]["collectives"]:
      if c["kind"] == "all-reduce":
        sent[dtype][c["dtype"]] += c["bytes"] * c["runs"]
  assert set(sent["float32"]) == {"f32"}
  assert set(sent["bfloat16"]) == {"f32", "bf16"}
  half = sent["bfloat16"]["bf16"]
  total = sent["bfloat16"]["f32"] + 2 * half
  assert sent["float32"]["f32"] == pytest.approx(total, rel=0.01)


def test_topology_without_the_cuda_compiler(run):
  if HAS_CUDA:
    pytest.skip("the CUDA compiler is installed")
  done = run(MODULE, TINY, "--topology=h100:8")
  assert_one_sentence(done, "h100:8", "compile-cuda", "no card")


def test_hybrid_mesh_keeps_classes_in_a_slice():
  # One is no other, as with devices: JAX compares it with those it has seen.
  @dataclasses.dataclass(frozen=True, eq=False)
  class Device:
    id: int
    slice_index: int
    process_index: int
    platform: str = "cpu"
    device_kind: str = "cpu"
    __class__ = property(lambda self: jax.Device)  # For what checks types.

  @dataclasses.dataclass(frozen=True, eq=False)
  class Bare:
    id: int
    process_index: int = 0
    platform: str = "gpu"
    device_kind: str = "gpu"
    __class__ = property(lambda self: jax.Device)

  devices = [Device(k, k // 8, k // 4) for k in range(16)]
  for model, shape in ((-1, (2, 8)), (4, (4, 4)), (1, (16, 1))):
    mesh = sharding.make_mesh(model, devices)
    assert mesh.devices.shape == shape
    for row in mesh.devices:
      assert len({device.slice_index for device in row}) == 1
    # What does not say its slice is told it.
    told = sharding.make_mesh(model, [Bare(d.id) for d in devices], 2)
    ids = [d.id for d in told.devices.flat]
    assert ids == [d.id for d in mesh.devices.flat]
  # Whole slices may be put together.
  for few in (devices, [Bare(d.id) for d in devices]):
    mesh = sharding.make_mesh(16, few, 0 if few is devices else 2)
    assert mesh.devices.shape == (1, 16)
    assert [d.id for d in mesh.devices.flat] == list(range(16))
  for model in (3, 12, 32):
    with pytest.raises(InputError, match="8 devices of each of 2 slices"):
      sharding.make_mesh(model, devices)
