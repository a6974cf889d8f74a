# The image of one kvnode node. The build context is the repository's root:
#
#   docker build -t kvnode:0.1.0 --build-arg VERSION=0.1.0 .
#
# `docker run IMAGE` starts a throw-away node on port 8500, as Consul's image does. Arguments replace
# that: `IMAGE agent --data-dir=/data …`, `IMAGE kv get KEY`, and Consul's own
# `IMAGE agent -server -data-dir=/consul/data …`.

# A tag and not a digest, so that a rebuild brings the base's security updates. For builds that must
# repeat to the byte: --build-arg BASE_IMAGE=docker.io/library/python@sha256:…
ARG BASE_IMAGE=docker.io/library/python:3.13-slim

# ---- build: the wheel from the tree, and an environment with nothing but it and its packages ----------
FROM ${BASE_IMAGE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src

# Packages before the source: a change in the source alone builds nothing else again.
COPY docker/build-requirements.txt docker/requirements.txt docker/
RUN python3 -m venv /opt/build \
    && /opt/build/bin/pip install --require-hashes --only-binary=:all: -r docker/build-requirements.txt \
    # No pip and no compiler in what is shipped.
    && python3 -m venv --without-pip /opt/kvnode \
    && /opt/build/bin/pip --python /opt/kvnode/bin/python install \
        --require-hashes --only-binary=:all: -r docker/requirements.txt

COPY pyproject.toml README.md ./
COPY kvnode kvnode
RUN /opt/build/bin/pip wheel --no-deps --no-index --no-build-isolation --wheel-dir /dist . \
    && /opt/build/bin/pip --python /opt/kvnode/bin/python install --no-deps --no-index /dist/*.whl

# ---- the image ----------------------------------------------------------------------------------------
FROM ${BASE_IMAGE}
# A number, so that Kubernetes can check runAsNonRoot. Group 0 may write the folders, for platforms that
# choose the user themselves. Nothing outside them, /tmp and the mounted volumes is ever written.
# The account is written by hand: useradd is not in every base.
RUN echo 'kvnode:x:10001:' >> /etc/group \
    && echo 'kvnode:x:10001:10001::/nonexistent:/usr/sbin/nologin' >> /etc/passwd \
    && install -d -o 10001 -g 0 -m 0770 /data /consul /consul/config /consul/data /consul/log

COPY --from=build /opt/kvnode /opt/kvnode
# Called as `consul`, for the hooks and probes of manifests that were written for it.
RUN ln -s kvnode /opt/kvnode/bin/consul

# The byte code is in the image: nothing needs to be written, and nothing can be.
ENV PATH=/opt/kvnode/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 10001:10001
WORKDIR /
EXPOSE 8500 8300

# For plain container engines; Kubernetes has probes of its own and ignores this.
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 \
    CMD ["python3", "-c", "import http.client, os, sys; c = http.client.HTTPConnection('127.0.0.1', int(os.environ.get('KVNODE_HTTP_PORT', 8500)), timeout=2); c.request('GET', '/health/live'); sys.exit(c.getresponse().status != 200)"]

# Late, so that a new version builds no layer again.
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="kvnode" \
      org.opencontainers.image.description="A Consul-like, Raft-replicated key-value store" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"

# Exec form: the node is process 1 and gets SIGTERM itself.
ENTRYPOINT ["kvnode"]
CMD ["agent", "-dev", "-client=0.0.0.0"]
