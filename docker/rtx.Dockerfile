# Transcription on a GeForce or RTX card (Turing to Blackwell) with TensorRT for RTX, x86-64.  Engines
# of the built-in model are made here, once, without a GPU; `mt3 engines verify` compares them with
# their digests, and so does every start.  The host brings the driver and the NVIDIA Container Toolkit.
#   docker build -f docker/rtx.Dockerfile -t mt3:rtx .
#   docker run --rm --gpus all -v mt3-models:/models -v "$PWD:/work" --user "$(id -u):$(id -g)" mt3:rtx \
#       transcribe song.wav --device rtx
ARG BASE=python:3.12-slim-bookworm

FROM ${BASE} AS build
ARG TARGETS=all
COPY . /src
RUN python -m venv --without-pip /opt/mt3 \
    && python -m pip --python /opt/mt3/bin/python install --no-cache-dir "/src[rtx]" \
    && MT3_CACHE=/opt/mt3/share /opt/mt3/bin/mt3 build default --for rtx --targets "${TARGETS}"

FROM ${BASE}
COPY --from=build /opt/mt3 /opt/mt3
RUN useradd --uid 10001 --create-home mt3 && install -d -o mt3 -g mt3 /models /work
ENV PATH=/opt/mt3/bin:$PATH MT3_CACHE=/models PYTHONDONTWRITEBYTECODE=1 \
    MT3_ENGINES=/opt/mt3/share/engines MT3_MODEL=/opt/mt3/share/bundles/default \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001
WORKDIR /work
VOLUME /models
HEALTHCHECK --interval=1h --timeout=5m CMD ["mt3", "doctor", "--device", "rtx"]
ENTRYPOINT ["mt3"]
CMD ["--help"]
