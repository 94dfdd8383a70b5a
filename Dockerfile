# syntax=docker/dockerfile:1
# bookworm is named because the pinned Debian package belongs to it.
FROM python:3.11-slim-bookworm AS builder

ENV PIP_CACHE_DIR=/var/cache/pip \
    PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/venv
ENV PATH="/opt/venv/bin:$PATH"
WORKDIR /build

# Dependencies first, from the metadata alone: a change to the sources does not install torch again.
# DL3042 (no pip cache) is about caches that stay in the image; this one is a mount.
COPY pyproject.toml constraints.txt README.md LICENSE ./
# hadolint ignore=DL3042
RUN --mount=type=cache,target=/var/cache/pip \
    pip install -c constraints.txt ".[demo]" \
    && pip uninstall --yes vsr-dist \
    && rm -rf build ./*.egg-info

COPY sharding ./sharding
COPY vsr_dist ./vsr_dist
COPY sweeps ./sweeps
RUN pip install --no-cache-dir --no-deps .


FROM python:3.11-slim-bookworm

LABEL org.opencontainers.image.title="vsr-dist" \
      org.opencontainers.image.description="Train, compare and tune video super-resolution GANs on many GPUs." \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.vendor="The vsr-dist authors" \
      org.opencontainers.image.licenses="Apache-2.0"

# tini forwards SIGTERM and reaps orphans: a training run must get the signal to save before it is stopped.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends tini=0.19.* \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 1000 --create-home vsr \
    && install --directory --owner vsr --group vsr /work

COPY --from=builder /opt/venv /opt/venv

# PYTHONSAFEPATH: `python -m` uses the installed packages, not a checkout mounted at the working directory.
# GIT_PYTHON_REFRESH: MLflow looks for git, which is not in this image, and would warn.
ENV PATH="/opt/venv/bin:$PATH" \
    PYTHONSAFEPATH=1 \
    PYTHONUNBUFFERED=1 \
    GIT_PYTHON_REFRESH=quiet

USER 1000:1000
WORKDIR /work
ENTRYPOINT ["tini", "--", "vsr-dist"]
CMD ["--help"]
