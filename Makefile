# Shorthands; every command below can be typed as it stands.
.PHONY: build quick test check fmt

build:
	cargo build --release

# The whole pipeline on tiny models.
quick:
	cargo run --release -- run -c configs/quick.toml

test:
	cargo test --release --workspace --tests

# What continuous integration runs.
check:
	scripts/check.sh

fmt:
	cargo fmt --all
