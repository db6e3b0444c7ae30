# Two images from one file, for x86-64 and arm64:
#   docker build --target hub  -t prunewatch:hub  .     scores, fits, prunes and keeps versions
#   docker build --target edge -t prunewatch:edge .     scores one exported bundle; no torch, no store
#   docker buildx build --platform linux/arm64 --target edge -t prunewatch:edge-arm64 .
# Both run as uid 10001 and write nowhere but /data (and /tmp), so the root file system may be read-only.

ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS wheel
USER 10001:10001
WORKDIR /tmp/source
COPY --chown=10001:10001 . .
RUN ["python", "-m", "pip", "wheel", "--no-cache-dir", "--no-deps", "--wheel-dir", "/tmp/wheels", "."]

# The environments are made by uid 10001 too: no step of this file runs a package's code as root.
FROM ${BASE} AS environment
RUN ["install", "-d", "-o", "10001", "-g", "10001", "/opt/prunewatch"]
USER 10001:10001
RUN ["python", "-m", "venv", "--without-pip", "/opt/prunewatch"]

FROM environment AS edge-environment
COPY --from=wheel /tmp/wheels /tmp/wheels
RUN python -m pip --python /opt/prunewatch/bin/python install --no-cache-dir --no-compile /tmp/wheels/*.whl
# What a device never uses of what was installed, much of it: ONNX Runtime's library for C (the extension for Python has
# its own copy) and its tools for models; numpy's tests, headers and bridges to compilers; what only type checkers read.
# tests/test_container.py scores with what is left.
# hadolint ignore=DL3003
RUN cd /opt/prunewatch/lib/python3*/site-packages \
 && rm -rf onnxruntime/capi/libonnxruntime.so* onnxruntime/backend onnxruntime/datasets onnxruntime/quantization \
      onnxruntime/tools onnxruntime/transformers numpy/distutils numpy/f2py numpy/_core/include numpy/_core/lib \
 && find . -type d -name tests -prune -exec rm -rf {} + \
 && find . -type f \( -name '*.pyi' -o -name '*.pxd' -o -name '*.h' -o -name '*.proto' -o -name '*_tests.*.so' \) -delete
# A read-only root can not take the bytecode that Python makes when it starts, and the official Python images have none of
# the standard library: without this most of a start is compiling.
RUN PYTHONPYCACHEPREFIX=/opt/prunewatch/bytecode python -m compileall -q -x 'pygments/(lexers|styles)' \
      /opt/prunewatch/lib/python3*/site-packages \
 && PYTHONPYCACHEPREFIX=/opt/prunewatch/bytecode python -m compileall -q \
      -x '/(site-packages|dist-packages|test|tests|idlelib|lib2to3|tkinter|turtledemo|ensurepip|pydoc_data|distutils)/' \
      "$(python -c 'import os; print(os.path.dirname(os.__file__))')"

FROM environment AS hub-environment
# torch first and by itself: the layer is large and stays when the sources change. Name an index when yours would give
# the CUDA build, with --build-arg TORCH_INDEX=URL
ARG TORCH_INDEX=""
RUN python -m pip --python /opt/prunewatch/bin/python install --no-cache-dir torch==2.13.0 ${TORCH_INDEX:+--index-url "$TORCH_INDEX"}
COPY --from=wheel /tmp/wheels /tmp/wheels
RUN python -m pip --python /opt/prunewatch/bin/python install --no-cache-dir "$(ls /tmp/wheels/*.whl)[hub]"
# Much of it is never used here: tests, headers, stubs, ONNX Runtime's library for C, tools for other model formats.
# hadolint ignore=DL3003
RUN cd /opt/prunewatch/lib/python3*/site-packages \
 && rm -rf numpy/_core/include onnx/backend/test onnxruntime/capi/libonnxruntime.so* onnxruntime/quantization \
      onnxruntime/tools onnxruntime/transformers pyarrow/include pyarrow/*flight* torch/include torch/test \
 && find torch/bin -type f ! -name torch_shm_manager -delete \
 && find . -type d -name tests -prune -exec rm -rf {} + \
 && find . -type f -name '*.pyi' -delete

FROM ${BASE} AS runtime
ARG VERSION=0.1.0
ARG REVISION=""
LABEL org.opencontainers.image.title="prunewatch" \
      org.opencontainers.image.description="Hosts anomaly detectors for time series over gRPC and keeps pruning them to meet latency budgets." \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
RUN groupadd --gid 10001 prunewatch \
 && useradd --uid 10001 --gid 10001 --home-dir /data --no-create-home --shell /usr/sbin/nologin prunewatch \
 && install -d -o 10001 -g 10001 /data
ENV PATH=/opt/prunewatch/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    ORT_DISABLE_TELEMETRY=1
USER 10001:10001
WORKDIR /data
VOLUME /data
# gRPC, then HTTP with the page, /metrics, /healthz and /readyz
EXPOSE 8001 8002
# SIGTERM lets calls end (`drain_seconds`), writes what is buffered, and stops.
STOPSIGNAL SIGTERM

FROM runtime AS edge
COPY --from=edge-environment /opt/prunewatch /opt/prunewatch
# A port can only be published if the process listens on more than loopback. Without `tls` and `auth` (docs/security.md)
# that has to be said out loud: publish to addresses that you trust only.
ENV PYTHONPYCACHEPREFIX=/opt/prunewatch/bytecode \
    PRUNEWATCH__LISTEN=0.0.0.0:8001 \
    PRUNEWATCH__ADMIN=0.0.0.0:8002 \
    PRUNEWATCH__INSECURE=true
# A check starts Python, half a second of a server's core: on a device not too often.
HEALTHCHECK --interval=60s --timeout=20s --start-period=30s --retries=3 CMD ["prunewatch", "healthcheck"]
ENTRYPOINT ["prunewatch", "edge"]
CMD ["--bundle", "/data/bundle.tar"]

FROM runtime AS hub
COPY --from=hub-environment /opt/prunewatch /opt/prunewatch
# Says `insecure: true`, for the same reason; mount your own file over it.
COPY deploy/hub.yaml /etc/prunewatch/hub.yaml
HEALTHCHECK --interval=15s --timeout=10s --start-period=30s --retries=3 CMD ["prunewatch", "healthcheck", "--config", "/etc/prunewatch/hub.yaml"]
ENTRYPOINT ["prunewatch"]
CMD ["serve", "--config", "/etc/prunewatch/hub.yaml"]
