# Transcription on a Jetson: TensorRT from NVIDIA's image, ONNX Runtime on the CPU, as there is no GPU
# wheel of it for 64-bit Arm.  Base and CUDA bindings must fit the JetPack of the device:
#   JetPack 6   nvcr.io/nvidia/tensorrt:25.05-py3-igpu and "cuda-bindings>=12.6,<13"
#   JetPack 7   nvcr.io/nvidia/tensorrt:25.08-py3 (NVIDIA's usual Arm image) and "cuda-bindings>=13,<14"
#   docker build -f docker/jetson.Dockerfile -t mt3:jetson .
#   docker run --rm --runtime nvidia -v "$PWD:/work" --user "$(id -u):$(id -g)" -e MT3_ENGINES=engines mt3:jetson \
#       build bundle
#   docker run --rm --runtime nvidia -v "$PWD:/work" --user "$(id -u):$(id -g)" -e MT3_ENGINES=engines mt3:jetson \
#       transcribe song.wav -m bundle --device tensorrt
ARG BASE=nvcr.io/nvidia/tensorrt:25.05-py3-igpu

# The image's own Python packages, TensorRT's among them, stay in sight.
FROM ${BASE} AS build
ARG CUDA_BINDINGS="cuda-bindings>=12.6,<13"
COPY . /src
RUN python3 -m venv --without-pip --system-site-packages /opt/mt3 \
    && python3 -m pip --python /opt/mt3/bin/python install --no-cache-dir \
        "/src[cpu]" "polygraphy>=0.53" "onnx>=1.20" "${CUDA_BINDINGS}"

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
