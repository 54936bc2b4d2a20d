# What rust:bookworm gives a build: a toolchain, a C++ compiler, Python and the usual authorities.
ARG BASE
FROM ${BASE}
RUN apt-get update \
    && apt-get install --yes --no-install-recommends build-essential ca-certificates pkg-config python3 \
    && rm -rf /var/lib/apt/lists/*
COPY toolchain/ /usr/local/
