# Transcription on an NVIDIA GPU with ONNX Runtime, x86-64.  CUDA 13 and cuDNN come as wheels, so the
# base holds neither; the host brings the driver (580 or newer) and the NVIDIA Container Toolkit.
# The bundle needs the profile portable: export.Dockerfile's image makes it (--profiles cpu,portable).
#   docker build -f docker/cuda.Dockerfile -t mt3:cuda .
#   docker run --rm --gpus all -v "$PWD:/work" --user "$(id -u):$(id -g)" mt3:cuda \
#       transcribe song.wav -m bundle --device cuda
ARG BASE=python:3.12-slim-bookworm

FROM ${BASE} AS build
COPY . /src
RUN python -m venv --without-pip /opt/mt3 \
    && python -m pip --python /opt/mt3/bin/python install --no-cache-dir "/src[gpu]"

FROM ${BASE}
COPY --from=build /opt/mt3 /opt/mt3
RUN useradd --uid 10001 --create-home mt3 && install -d -o mt3 -g mt3 /models /work
ENV PATH=/opt/mt3/bin:$PATH MT3_CACHE=/models PYTHONDONTWRITEBYTECODE=1 \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001
WORKDIR /work
VOLUME /models
HEALTHCHECK --interval=5m --timeout=1m CMD ["mt3", "doctor", "--device", "cuda"]
ENTRYPOINT ["mt3"]
CMD ["--help"]
