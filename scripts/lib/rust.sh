# shellcheck shell=bash
# The Rust toolchain. It is checked and never installed: users choose it with rustup.

RUST_MINOR=90

# rustup's directory is often not in the PATH of a shell opened before its installation.
add_cargo_to_path() {
  local bin=${CARGO_HOME:-$HOME/.cargo}/bin
  have cargo || [ ! -x "$bin/cargo" ] || PATH=$bin:$PATH
}

# require_rust [COMPONENT...]: the components are clippy and rustfmt.
require_rust() {
  local version minor component
  local install="curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh"
  add_cargo_to_path
  if ! have rustc || ! have cargo; then
    die "there is no Rust here: bob-runner needs 1.$RUST_MINOR or later" \
      "type: $install" 'then open a new shell, and run this again'
  fi
  version=$(rustc --version | cut -d' ' -f2) || die 'rustc --version failed: look at your Rust installation'
  minor=${version#*.}
  minor=${minor%%.*}
  if [ "${version%%.*}" -eq 1 ] && [ "$minor" -lt "$RUST_MINOR" ]; then
    if have rustup; then
      die "Rust $version is too old: bob-runner needs 1.$RUST_MINOR or later" 'type: rustup update stable'
    fi
    die "Rust $version at $(command -v rustc) is too old: bob-runner needs 1.$RUST_MINOR or later" "type: $install"
  fi
  for component in "$@"; do
    cargo "${component/rustfmt/fmt}" --version >/dev/null 2>&1 ||
      die "Rust's $component is missing" "type: rustup component add $component"
  done
}
