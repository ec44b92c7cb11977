# The edge image: one station of Linegate on the bare install, without training and without torch.
# How to run it: edge/deploy/README.md

FROM python:3.11-slim-bookworm AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE datasets-manifest.yaml ./
COPY inspect inspect
COPY training training
COPY edge edge
COPY models models
RUN python -m venv /opt/linegate && /opt/linegate/bin/pip install --no-cache-dir .

FROM python:3.11-slim-bookworm
# What opencv-python links to and its wheel does not bring: libGL.so.1, and libglib-2.0.so.0 with libgthread-2.0.so.0.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgl1 libglib2.0-0 \
    && rm -rf /var/lib/apt/lists/*
# A fixed number, so that the owner of a mounted folder can be named before the image is there.
RUN useradd --uid 10001 --no-create-home --home-dir /var/lib/linegate --shell /usr/sbin/nologin linegate \
    && install --directory --owner linegate --group linegate /var/lib/linegate
COPY --from=build /opt/linegate /opt/linegate
COPY edge/deploy/station.toml /etc/linegate/station.toml

# PYTHONSAFEPATH: no module is ever imported from the folder that the station happens to run in.
# ORT_DISABLE_TELEMETRY: onnxruntime's own builds report to their maker; a plant's station reports to nobody.
ENV PATH="/opt/linegate/bin:$PATH" \
    PYTHONSAFEPATH=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    ORT_DISABLE_TELEMETRY=1
USER 10001:10001
WORKDIR /var/lib/linegate
VOLUME /var/lib/linegate
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8080/healthz', timeout=4)"]
ENTRYPOINT ["linegate"]
CMD ["run", "/etc/linegate/station.toml"]
