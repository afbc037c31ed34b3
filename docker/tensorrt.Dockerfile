# Transcription on an NVIDIA GPU with TensorRT 10 beside ONNX Runtime, x86-64.  TensorRT's libraries
# come from NVIDIA's package index; as cuda.Dockerfile otherwise.  Engines are built once.
#   docker build -f docker/tensorrt.Dockerfile -t mt3:tensorrt .
#   docker run --rm --gpus all -v "$PWD:/work" --user "$(id -u):$(id -g)" -e MT3_ENGINES=engines mt3:tensorrt \
#       build bundle
#   docker run --rm --gpus all -v "$PWD:/work" --user "$(id -u):$(id -g)" -e MT3_ENGINES=engines mt3:tensorrt \
#       transcribe song.wav -m bundle --device tensorrt
ARG BASE=python:3.12-slim-bookworm

FROM ${BASE} AS build
COPY . /src
RUN python -m venv --without-pip /opt/mt3 \
    && python -m pip --python /opt/mt3/bin/python install --no-cache-dir \
        --extra-index-url https://pypi.nvidia.com "/src[gpu,trt]"

FROM ${BASE}
COPY --from=build /opt/mt3 /opt/mt3
RUN useradd --uid 10001 --create-home mt3 && install -d -o mt3 -g mt3 /models /work
ENV PATH=/opt/mt3/bin:$PATH MT3_CACHE=/models PYTHONDONTWRITEBYTECODE=1 \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001
WORKDIR /work
VOLUME /models
HEALTHCHECK --interval=1h --timeout=5m CMD ["mt3", "doctor", "--device", "tensorrt"]
ENTRYPOINT ["mt3"]
CMD ["--help"]
