# As cpu.Dockerfile, with CuPy. CUDA comes from PyPI's wheels, only the parts that CuPy loads, so the
# base stays slim; the host brings the driver and NVIDIA's container runtime.
ARG BASE_IMAGE=python:3.12-slim-bookworm

FROM ${BASE_IMAGE} AS build
RUN python3 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
WORKDIR /src
# Dependencies before the code, which changes more often: their layer is kept.
COPY docker/requirements.txt docker/requirements-gpu.txt docker/
RUN pip install --no-cache-dir --no-deps --requirement docker/requirements-gpu.txt
COPY . .
# Without an index: had setup.cfg asked for more than the pins, the build would end here.
# hadolint ignore=DL3013
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheel . \
    && pip install --no-cache-dir --no-index --find-links /wheel 'minicnn-roofs[api,aws,gpu]' \
    && pip uninstall --yes pip

FROM ${BASE_IMAGE}
# GDAL in rasterio's wheels takes libexpat from the system, which slim images do without. Debian
# keeps one version of it at a time, so a pin would only break the build at the next security fix.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libexpat1 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --user-group --home-dir /work --no-create-home minicnn \
    && install --directory --owner=minicnn --group=minicnn /work
COPY --from=build /opt/venv /opt/venv
COPY --chmod=755 docker/entrypoint.sh /opt/minicnn/
COPY docker/gunicorn.conf.py docker/healthcheck.py /opt/minicnn/

# The root file system may be read-only: what is written goes to /work, or to /tmp and is lost.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/work \
    XDG_CACHE_HOME=/work/.cache \
    MPLCONFIGDIR=/tmp/matplotlib \
    CUPY_CACHE_DIR=/work/.cache/cupy \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    MINICNN_DEVICE=auto \
    MINICNN_BIND=0.0.0.0:8000 \
    MINICNN_STORE=/work/api
WORKDIR /work
VOLUME ["/work", "/tmp"]
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=10s --start-period=30s CMD ["python", "/opt/minicnn/healthcheck.py"]
ENTRYPOINT ["/opt/minicnn/entrypoint.sh"]
CMD ["api"]

ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="minicnn" \
      org.opencontainers.image.description="Finds buildings in aerial photographs: train, predict, api" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
