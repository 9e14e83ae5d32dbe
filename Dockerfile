# One image for the receiver, the workers, beat, Flower and the command; which of them runs is the command line's
# affair, and what it may know is its environment's. PostgreSQL and Redis are containers of their own.
FROM python:3.11-slim AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/reservoir
COPY requirements.lock /src/
RUN /opt/reservoir/bin/pip install --require-hashes -r /src/requirements.lock
COPY pyproject.toml README.md /src/
COPY schemas /src/schemas
COPY ingest /src/ingest
COPY workers /src/workers
COPY simulators /src/simulators
COPY console /src/console
# Without build isolation: setuptools is in the lock, and nothing comes from outside of it.
RUN /opt/reservoir/bin/pip install --no-deps --no-build-isolation /src

FROM python:3.11-slim
COPY --from=build /opt/reservoir /opt/reservoir
RUN useradd --system --uid 10001 --home-dir /nonexistent --shell /usr/sbin/nologin reservoir \
    # A new volume takes its owner from here.
    && install --directory --owner=10001 --mode=0700 /var/lib/reservoir/spool /var/lib/reservoir/metrics
ENV PATH=/opt/reservoir/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /tmp
USER 10001
CMD ["reservoir", "--help"]
