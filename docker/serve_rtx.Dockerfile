# The service on a GeForce or RTX card with TensorRT for RTX, x86-64 (docs/serving.md, rtx.Dockerfile):
# engines of the built-in model are made here, once, without a GPU.
#   docker build -f docker/serve_rtx.Dockerfile -t mt3:serve-rtx .
#   docker run --rm --gpus all -p 127.0.0.1:8765:8765 --read-only --tmpfs /tmp -v mt3-models:/models \
#       -v "$PWD/tokens.txt:/run/secrets/tokens:ro" mt3:serve-rtx
ARG BASE=python:3.12-slim-bookworm

FROM ${BASE} AS build
ARG TARGETS=all
COPY . /src
RUN python -m venv --without-pip /opt/mt3 \
    && python -m pip --python /opt/mt3/bin/python install --no-cache-dir "/src[rtx,serve]" \
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
EXPOSE 8765
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8765/health/ready', timeout=4)"]
ENTRYPOINT ["mt3"]
CMD ["serve", "--device", "rtx", "--host", "0.0.0.0", "--token-file", "/run/secrets/tokens", "--spool", "/models/service"]
