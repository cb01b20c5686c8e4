"""Stand-in for the hardware of a TPU: on PYTHONPATH, JAX sees one here.

On a TPU machine the PCI bus says so, and JAX notes it in this variable; see
`cloud_tpu_init` in jax/_src/cloud_tpu_init.py. Programs still run on the CPU.
"""

import os

import jax._src.clusters.cloud_tpu_cluster as cluster

cluster.running_in_cloud_tpu_vm = True
os.environ.pop("TPU_SKIP_MDS_QUERY", None)  # JAX sets it where there is none.
