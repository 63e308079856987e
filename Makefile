# pgweir's chores. `make setup` installs what the others need on Debian and Ubuntu.

CARGO ?= cargo
# Seconds for each fuzz target.
FUZZ_SECONDS ?= 20

.PHONY: demo test lint bench fuzz setup

demo: setup
	$(CARGO) run --release --locked -- demo

test: setup lint
	$(CARGO) test --locked --all-targets
	$(CARGO) test --locked --doc
	@if $(CARGO) fuzz --version >/dev/null 2>&1; then $(MAKE) fuzz; else echo "cargo-fuzz is not installed: no fuzz run"; fi

lint:
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings

bench:
	$(CARGO) bench --locked

# Runs each target of fuzz/ for a short while. RUSTC_BOOTSTRAP lets a stable compiler accept the sanitizer's flags.
fuzz:
	@test -d fuzz || { echo "no fuzz targets yet"; exit 0; }; \
	for target in $$($(CARGO) fuzz list); do \
		RUSTC_BOOTSTRAP=1 $(CARGO) fuzz run $$target -- -max_total_time=$(FUZZ_SECONDS) || exit 1; \
	done

setup:
	@.ci/setup
