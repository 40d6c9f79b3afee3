# List what there is.
default:
    @just --list

# Everything that must pass: formatting, lints, docs and all tests, with services of their own.
check:
    scripts/test

# The tests that need no services.
test *ARGS:
    cargo test --package protocol --package runner {{ ARGS }}

# The integration tests, with services started for them and stopped after.
it *ARGS:
    scripts/test --package integration-tests {{ ARGS }}

# The integration tests against both sets of versions: this machine's, and Debian 13's.
matrix *ARGS:
    scripts/test --package integration-tests --no-fail-fast {{ ARGS }}
    scripts/test --suite trixie --package integration-tests --no-fail-fast {{ ARGS }}

# Play seeded histories of whole clusters: `just sim` some thousands, `just sim SEED=7` one of them
# with all that happened, `just sim HISTORIES=1000000` so many (optimised).
sim *ARGS:
    scripts/sim {{ ARGS }}

# Write the golden files and the tables of docs/wire.md anew; read the difference before you commit it.
golden:
    BOB_GOLDEN=write cargo test --package protocol --test golden
    BOB_GOLDEN=write cargo test --workspace --test wire

# Start RabbitMQ, etcd and rootless podman, and print the variables that name them.
up *ARGS:
    @scripts/services up {{ ARGS }}

# Stop them and remove their data.
down *ARGS:
    scripts/services down {{ ARGS }}

# Run a pipeline file here and now.
run FILE *ARGS:
    cargo run --quiet --bin bob-runner -- run {{ FILE }} {{ ARGS }}

# Measure, each figure beside its floor.
bench *ARGS:
    scripts/bench {{ ARGS }}

# Let everything fail around three workers, and hold what came of it against the invariants.
chaos *ARGS:
    scripts/chaos {{ ARGS }}

# Throw hostile bytes at whatever takes bytes from outside, a minute each: `just fuzz 600 mask` for longer.
fuzz *ARGS:
    scripts/fuzz {{ ARGS }}

# Ask the advisory database (needs the network), and the licences, bans and sources.
audit:
    cargo deny check

# Build the worker's container image.
image TAG="localhost/bob-runner:latest":
    podman build --file deploy/image/Containerfile --tag {{ TAG }} .
