# syntax=docker/dockerfile:1
# Herald's image, one for all roles: docker build -t localhost/herald:0.1.0 .
# Without a Docker engine or access to these base images, `cargo xtask image` makes one of the same layout.

FROM docker.io/library/rust:1.95-bookworm AS build
# The compiler of the image, without the tools that rust-toolchain.toml names beside it.
ENV RUSTUP_TOOLCHAIN=1.95.0
WORKDIR /source
# The dependencies and the results of former builds stay in caches, outside of the layers.
RUN --mount=type=bind,target=/source,rw \
    --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/usr/local/cargo/git \
    --mount=type=cache,target=/target \
    CARGO_TARGET_DIR=/target cargo build --locked --profile dist --package herald \
    && cp /target/dist/herald /herald

# The C library, certificates, time zones and the user 65532; no shell.
FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build --chmod=755 /herald /herald
USER 65532:65532
WORKDIR /
ENTRYPOINT ["/herald"]
