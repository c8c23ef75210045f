# `just` lists the recipes; each is one line of what people and CI run anyway.

default:
    @just --list

# A whole mesh on this machine: 3 routers, 3 devices, a real model.
dev *ARGS:
    cargo run --release -p shoal -- dev {{ARGS}}

# What CI runs; `just test full`, `just test clippy`.
test *STAGES:
    ./test {{STAGES}}

# Fast checks before a commit.
check:
    ./test fmt clippy

# The container image, without any registry.
image:
    scripts/image.sh

# The cluster in containers, from the image at hand.
up: 
    docker-compose down && docker-compose up -d

# Ends the cluster; its volumes stay.
down:
    docker-compose down

# A stub upstream on a free port.
stub *ARGS:
    cargo run -p shoal-loadtest -- stub device {{ARGS}}
