# Builds Shoal from source. Needs the internet: a registry for the base image, crates.io for the crates.
# Where neither is reachable: scripts/image.sh, which uses Dockerfile.prebuilt.
FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
# x86-64-v3 (AVX2, FMA) makes the embedded engine several times faster; set CPU=x86-64 for machines before 2013.
ARG CPU=x86-64-v3
RUN set -eu; \
    target="$(rustc -vV | sed -n 's/^host: //p')"; \
    flags="-C target-feature=+crt-static"; \
    case "$target" in x86_64-*) flags="$flags -C target-cpu=$CPU" ;; esac; \
    RUSTFLAGS="$flags" cargo build --release --locked -p shoal --target "$target"; \
    mkdir -p /image/data/models /image/join; \
    cp "target/$target/release/shoal" /image/shoal

FROM scratch
COPY --from=build /image/shoal /shoal
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
# A new volume takes the owner of the folder that it is mounted on; there is no shell in here to do it later.
COPY --from=build --chown=65532:65532 /image/data /data
COPY --from=build --chown=65532:65532 /image/join /join
ENV SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt SHOAL_DATA_DIR=/data
USER 65532:65532
ENTRYPOINT ["/shoal"]
