# syntax=docker/dockerfile:1
# Palate's one image: router, phases, arms, controller, learner, jobs, MLflow. k8s/README.md says what is where.
#   docker build -t palate:0.1.0 .
#   docker build -t palate:0.1.0-gpu --build-arg VARIANT=gpu .
# Give PYTHON_IMAGE with its digest (python@sha256:...) for an image that can be built again to the bit.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ARG VARIANT=cpu
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_NO_INPUT=1 PYTHONDONTWRITEBYTECODE=1
RUN python -m venv /opt/palate/venv
ENV PATH=/opt/palate/venv/bin:/usr/local/bin:/usr/bin:/bin
# The lock alone decides this layer: a change of our own code does not install 3 GB again.
COPY requirements/image-${VARIANT}.lock /build/requirements.lock
# torch comes first and alone: only it may be looked up in PyTorch's own index, and only its CPU build is there.
# hadolint ignore=DL3013
RUN torch="$(grep '^torch==' /build/requirements.lock)" \
    && case "$torch" in \
        *+cpu) pip install --no-deps --index-url "$TORCH_INDEX" "$torch" ;; \
        *) pip install --no-deps "$torch" ;; \
    esac \
    && pip install --no-deps --only-binary :all: --requirement /build/requirements.lock
COPY pyproject.toml README.md LICENSE /build/palate/
COPY serving /build/palate/serving
COPY registry /build/palate/registry
COPY training /build/palate/training
COPY requirements/cpu.lock /build/constraints.txt
# What builds our wheel and lists what is installed has a venv of its own and stays behind.
# hadolint ignore=DL3013
RUN python -m venv /build/tools \
    && /build/tools/bin/pip install --constraint /build/constraints.txt hatchling "cyclonedx-bom==7.5.0" \
    && /build/tools/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /build/wheels /build/palate \
    && pip install --no-deps --no-index --find-links /build/wheels palate \
    && pip uninstall --yes pip \
    && /build/tools/bin/cyclonedx-py environment --output-reproducible --output-file /opt/palate/sbom.cdx.json \
        /opt/palate/venv/bin/python \
    && { python -m compileall -q -j 0 --invalidation-mode unchecked-hash /opt/palate/venv/lib || true; }
COPY examples /opt/palate/examples

FROM ${PYTHON_IMAGE} AS final
ARG VARIANT=cpu
ARG VERSION=0.1.0
ARG REVISION=unknown
# Triton compiles a launcher for each of vLLM's GPU kernels when it first runs, with the C compiler it finds: only the
# GPU variant has one. Build with TRITON_COMPILER="" where no app generates.
ARG TRITON_COMPILER="gcc libc6-dev"
LABEL org.opencontainers.image.title="palate" \
      org.opencontainers.image.description="Kubernetes-native model serving: search, ranking and generation over a catalogue" \
      org.opencontainers.image.version="${VERSION}-${VARIANT}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.base.name="python:3.11-slim-bookworm"
# tini hands on signals, wget is what KubeRay's probes call. Which versions, the base image's digest decides.
# hadolint ignore=DL3008,SC2046
RUN apt-get update \
    && apt-get install --yes --no-install-recommends tini wget \
        $(if [ "$VARIANT" = gpu ]; then echo "$TRITON_COMPILER"; fi) \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt /var/log/apt /var/log/dpkg.log \
    && rm -rf /usr/local/lib/python3.11/site-packages/* /usr/local/lib/python3.11/ensurepip /usr/local/bin/pip* \
    && groupadd --gid 10001 palate \
    && useradd --uid 10001 --gid 10001 --home-dir /var/lib/palate --shell /usr/sbin/nologin --no-create-home palate \
    && mkdir -p /var/lib/palate /run/palate/metrics /etc/palate/secrets \
    && chown 10001:0 /var/lib/palate /run/palate/metrics \
    && chmod 0770 /var/lib/palate /run/palate/metrics
COPY --from=build /opt/palate /opt/palate
# A login shell, which KubeRay may be told to use, forgets PATH: these are on its own.
RUN for name in palate ray serve mlflow; do ln -s "/opt/palate/venv/bin/$name" "/usr/local/bin/$name"; done
# PALATE_SECRETS is a folder's name, no secret.
# hadolint ignore=DL3064
ENV PATH=/opt/palate/venv/bin:/usr/local/bin:/usr/bin:/bin \
    HOME=/var/lib/palate \
    PALATE_HOME=/var/lib/palate \
    PALATE_SECRETS=/etc/palate/secrets \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    RAY_USAGE_STATS_ENABLED=0 \
    MLFLOW_DISABLE_TELEMETRY=true \
    ANONYMIZED_TELEMETRY=false \
    VLLM_NO_USAGE_STATS=1 \
    DO_NOT_TRACK=1 \
    TOKENIZERS_PARALLELISM=false
WORKDIR /var/lib/palate
USER 10001:10001
EXPOSE 8000 8081 8265 9102
# Last: what is installed belongs together, and nothing shadows our import names.
RUN ["python", "-m", "registry.distributions"]
