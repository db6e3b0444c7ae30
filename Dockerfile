# Two images from one file:
#   docker build --target hub  -t prunewatch:hub  .     scores, fits, prunes and keeps versions
#   docker build --target edge -t prunewatch:edge .     scores one exported bundle; no torch, no store
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
RUN python -m pip --python /opt/prunewatch/bin/python install --no-cache-dir /tmp/wheels/*.whl

FROM environment AS hub-environment
# torch first and by itself: the layer is large and stays when the sources change. Name an index when yours would give
# the CUDA build, with --build-arg TORCH_INDEX=URL
ARG TORCH_INDEX=""
RUN python -m pip --python /opt/prunewatch/bin/python install --no-cache-dir torch==2.13.0 ${TORCH_INDEX:+--index-url "$TORCH_INDEX"}
COPY --from=wheel /tmp/wheels /tmp/wheels
RUN python -m pip --python /opt/prunewatch/bin/python install --no-cache-dir "$(ls /tmp/wheels/*.whl)[hub]"

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
# A port can only be published if the process listens on more than loopback. There is no TLS and no authentication yet,
# so that has to be said out loud: publish to addresses that you trust only.
ENV PRUNEWATCH__LISTEN=0.0.0.0:8001 \
    PRUNEWATCH__ADMIN=0.0.0.0:8002 \
    PRUNEWATCH__INSECURE=true
HEALTHCHECK --interval=15s --timeout=10s --start-period=30s --retries=3 CMD ["prunewatch", "healthcheck"]
ENTRYPOINT ["prunewatch", "edge"]
CMD ["--bundle", "/data/bundle.tar"]

FROM runtime AS hub
COPY --from=hub-environment /opt/prunewatch /opt/prunewatch
# Says `insecure: true`, for the same reason; mount your own file over it.
COPY deploy/hub.yaml /etc/prunewatch/hub.yaml
HEALTHCHECK --interval=15s --timeout=10s --start-period=30s --retries=3 CMD ["prunewatch", "healthcheck", "--config", "/etc/prunewatch/hub.yaml"]
ENTRYPOINT ["prunewatch"]
CMD ["serve", "--config", "/etc/prunewatch/hub.yaml"]
