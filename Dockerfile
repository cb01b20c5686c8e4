# syntax=docker/dockerfile:1
# An image that trains, for CPUs or NVIDIA GPUs:
#
#   docker build --tag jamsface-jax .
#   docker build --tag jamsface-jax:cuda --build-arg EXTRAS=cuda .
#   docker run --rm --user "$(id -u)" --volume "$PWD:/work" jamsface-jax \
#     jamsface_jax.main --config=configs/demo.py:tiny --workdir=runs/tiny
#
# --env XDG_CACHE_HOME=/cache --volume "$HOME/.cache:/cache" before the image keep
# compiled programs for the next start.
#
# CUDA itself comes with JAX's wheels: the base is the same, and the host needs
# only a driver and --gpus=all. Not built yet where this was written: its RUN
# lines were run by hand, and it passes hadolint.

# The Python that constraints.txt was tested with.
ARG PYTHON=3.11-slim-bookworm

FROM python:${PYTHON} AS build
ARG EXTRAS=""
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/venv
ENV PATH="/opt/venv/bin:$PATH"
WORKDIR /source
# A pipe fails where any part of it does.
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# What a change of code leaves alone comes first: the packages, by their pins.
# The package that asks for them is empty here, but for its version: so are the
# folders that setup.cfg lists, those of recipes lie in configs/.
COPY setup.cfg pyproject.toml constraints.txt README.md LICENSE ./
RUN sed -n '/^packages =/,/^[^ ]*#/s/^    \([a-z_.]*\)$/\1/p' setup.cfg \
  | tr . / | sed 's#^jamsface_jax/configs$#configs#' | xargs mkdir -p \
  && echo '__version__ = "0"' > jamsface_jax/version.py \
  && pip install --constraint constraints.txt ".${EXTRAS:+[$EXTRAS]}"
COPY configs ./configs
COPY data_prep ./data_prep
COPY jamsface_jax ./jamsface_jax
RUN pip install --no-deps --force-reinstall .

FROM python:${PYTHON}
RUN useradd --create-home --uid 1000 jamsface \
  && install --directory --owner=jamsface --group=jamsface /work
COPY --from=build /opt/venv /opt/venv
ENV PATH="/opt/venv/bin:$PATH" PYTHONUNBUFFERED=1
# By number: what checks that an image does not run as root needs no names.
USER 1000
# Data, work directories and recipes of one's own are mounted here.
WORKDIR /work
# Versions, collectives and disk are sound, or there is no image. Not a
# HEALTHCHECK: beside a run it would take memory of the same GPU.
RUN JAX_PLATFORMS=cpu python -m jamsface_jax.doctor
ENTRYPOINT ["python", "-m"]
CMD ["jamsface_jax"]
