# All of the project with Python 3.11; written by the documentation of Docker and not built yet.
#   docker build -t sr_lightning .
#   docker run --rm --gpus all --shm-size 4g -v "$PWD:/mnt" sr_lightning sr-upscale photo.jpg
#   docker run --rm --gpus all --shm-size 4g -v "$PWD:/mnt" sr_lightning sr-train experiment=espcn_fast
# PyPI's torch for Linux is built for CUDA and also runs without a GPU (leave --gpus out). For a smaller image with a CPU
# build alone, add --build-arg TORCH_INDEX=URL with the address that pytorch.org names for it.
FROM python:3.11-slim

ARG TORCH_INDEX=
RUN pip install --no-cache-dir ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch==2.13.0

WORKDIR /opt/sr_lightning
COPY pyproject.toml README.md LICENSE train.py evaluate.py ./
COPY conf conf
COPY sr_lightning sr_lightning
RUN pip install --no-cache-dir '.[all]'

ENV SR_CACHE_DIR=/mnt/.cache
WORKDIR /mnt
