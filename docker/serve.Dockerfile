# The service on the CPU, x86-64 and 64-bit Arm: HTTP and WebSocket on port 8765 (docs/serving.md).
#   docker build -f docker/serve.Dockerfile -t mt3:serve .
#   docker run --rm -p 127.0.0.1:8765:8765 --read-only --tmpfs /tmp -v mt3-models:/models \
#       -v "$PWD/tokens.txt:/run/secrets/tokens:ro" mt3:serve
ARG BASE=python:3.12-slim-bookworm

FROM ${BASE} AS build
COPY . /src
RUN python -m venv --without-pip /opt/mt3 \
    && python -m pip --python /opt/mt3/bin/python install --no-cache-dir "/src[cpu,serve]"

FROM ${BASE}
COPY --from=build /opt/mt3 /opt/mt3
RUN useradd --uid 10001 --create-home mt3 && install -d -o mt3 -g mt3 /models /work
ENV PATH=/opt/mt3/bin:$PATH MT3_CACHE=/models PYTHONDONTWRITEBYTECODE=1
USER 10001
WORKDIR /work
VOLUME /models
EXPOSE 8765
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8765/health/ready', timeout=4)"]
ENTRYPOINT ["mt3"]
CMD ["serve", "--host", "0.0.0.0", "--token-file", "/run/secrets/tokens", "--spool", "/models/service"]
