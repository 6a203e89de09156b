# PyCounter in a small image, as a user without rights. docs/deploying.md says how to run it.

ARG PYTHON=3.13-slim-bookworm

FROM rust:1-slim-bookworm AS rust

FROM python:${PYTHON} AS build
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev
COPY --from=rust /usr/local/cargo/bin /usr/local/cargo/bin
COPY --from=rust /usr/local/rustup /usr/local/rustup
ENV PATH=/usr/local/cargo/bin:$PATH RUSTUP_HOME=/usr/local/rustup CARGO_HOME=/usr/local/cargo
WORKDIR /source
COPY . .
# The versions that the tests run with; pip itself isn't needed afterwards.
RUN sed '/--hash=/d; s/ \\$//' requirements-dev.txt > /constraints.txt && \
    python -m venv /opt/pycounter && \
    /opt/pycounter/bin/pip install --no-cache-dir --constraint /constraints.txt . && \
    /opt/pycounter/bin/pip uninstall --yes setuptools pip

FROM python:${PYTHON}
RUN useradd --system --uid 10001 --no-create-home pycounter && install -d -o pycounter -g pycounter -m 0700 /data
COPY --from=build /opt/pycounter /opt/pycounter
# PYCOUNTER_ variables are the settings of docs/operations.md. Here it listens on every address, so it wants a token. The
# data is a folder in the volume: other things, such as backups, can lie beside it.
ENV PATH=/opt/pycounter/bin:$PATH PYCOUNTER_DATA=/data/counters PYCOUNTER_HOST=0.0.0.0
USER pycounter
WORKDIR /data
VOLUME /data
EXPOSE 7400
HEALTHCHECK --interval=10s --timeout=10s --start-period=5m \
    CMD pycounter status --timeout-s 5 --port "${PYCOUNTER_PORT:-7400}" ${PYCOUNTER_TOKEN_FILE:+--token-file "$PYCOUNTER_TOKEN_FILE"}
ENTRYPOINT ["pycounter"]
CMD ["serve"]
