# Transcription on the CPU, x86-64 and 64-bit Arm.
#   docker build -f docker/cpu.Dockerfile -t mt3:cpu .
#   docker run --rm -v "$PWD:/work" --user "$(id -u):$(id -g)" mt3:cpu transcribe song.wav
ARG BASE=python:3.12-slim-bookworm

FROM ${BASE} AS build
COPY . /src
RUN python -m venv --without-pip /opt/mt3 \
    && python -m pip --python /opt/mt3/bin/python install --no-cache-dir "/src[cpu]"

FROM ${BASE}
COPY --from=build /opt/mt3 /opt/mt3
RUN useradd --uid 10001 --create-home mt3 && install -d -o mt3 -g mt3 /models /work
ENV PATH=/opt/mt3/bin:$PATH MT3_CACHE=/models PYTHONDONTWRITEBYTECODE=1
USER 10001
WORKDIR /work
VOLUME /models
HEALTHCHECK --interval=5m --timeout=1m CMD ["mt3", "doctor"]
ENTRYPOINT ["mt3"]
CMD ["--help"]
