# List the recipes.
default:
    @just --list

# Run every check and every test, with services of their own.
check:
    scripts/test

# Run the tests that need no services.
test *ARGS:
    cargo test --package protocol --package runner --package test-support {{ ARGS }}

# Run the integration tests, with services started for them and stopped afterwards.
it *ARGS:
    scripts/test --package integration-tests --package rig {{ ARGS }}

# Run the integration tests against both sets of versions: this machine's and Debian 13's.
matrix *ARGS:
    scripts/test --package integration-tests --package rig --no-fail-fast {{ ARGS }}
    scripts/test --suite trixie --package integration-tests --package rig --no-fail-fast {{ ARGS }}

# Play seeded histories of whole clusters: `just sim` plays some thousands, `just sim SEED=7` one
# and prints what happens, `just sim HISTORIES=1000000` this many (optimised).
sim *ARGS:
    scripts/sim {{ ARGS }}

# Rewrite the golden files and the tables of docs/wire.md. Review the difference before a commit.
golden:
    BOB_GOLDEN=write cargo test --package protocol --test golden
    BOB_GOLDEN=write cargo test --workspace --test wire

# Start RabbitMQ, etcd and rootless podman, and print the variables that name them.
up *ARGS:
    @scripts/services up {{ ARGS }}

# Stop them and remove their data.
down *ARGS:
    scripts/services down {{ ARGS }}

# Run a pipeline file on this machine.
run FILE *ARGS:
    cargo run --quiet --bin bob-runner -- run {{ FILE }} {{ ARGS }}

# Run the benchmarks, and compare each figure with its floor.
bench *ARGS:
    scripts/bench {{ ARGS }}

# Inject faults into three workers and their services, and check the invariants.
chaos *ARGS:
    scripts/chaos {{ ARGS }}

# Fuzz everything that processes untrusted bytes, a minute each (`just fuzz 600 mask`: ten minutes).
fuzz *ARGS:
    scripts/fuzz {{ ARGS }}

# Check advisories (needs the network), licences, bans and sources of the dependencies.
audit:
    cargo deny check

# Build the worker's container image.
image TAG="localhost/bob-runner:latest":
    podman build --file deploy/image/Containerfile --tag {{ TAG }} .
