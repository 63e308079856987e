# pgweir's chores. `make setup` installs what the others need on Debian and Ubuntu.

CARGO ?= cargo
# Seconds for each fuzz target.
FUZZ_SECONDS ?= 20
BENCH_OPTIONS ?=

INSTRUCTIONS = $(CARGO) bench --locked --profile dev --config benches/instructions.profile.toml --bench instructions

.PHONY: demo test lint bench pgo rooms instructions instructions-budget growth fuzz setup bench-setup

demo: setup
	$(CARGO) run --release --locked -- demo

test: setup lint
	$(CARGO) test --locked --lib --bins --tests
	$(CARGO) test --locked --doc
	$(INSTRUCTIONS)
	@if $(CARGO) fuzz --version >/dev/null 2>&1; then $(MAKE) fuzz; else echo "cargo-fuzz is not installed: no fuzz run"; fi

# Other people's test suites, fetched from package registries, directly and through pgweir: some hours. SUITES
# chooses some, SUITES_OPTIONS modes (--help).
.PHONY: suites
suites: setup
	$(CARGO) build --locked
	tests/suites/run.py $(SUITES) $(SUITES_OPTIONS)

lint:
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings

# What a query costs, beside PgBouncer and a bare relay. BENCH_OPTIONS: --quick, --only simple, --help, …
bench: bench-setup
	PATH="$(CURDIR)/target/pgbouncer/bin:$$PATH" $(CARGO) bench --locked --bench compare -- $(BENCH_OPTIONS)

# target/pgo/pgweir: the release build, laid out by a profile of the bench's loads.
pgo: bench-setup
	@CARGO="$(CARGO)" benches/pgo

# What the hot rooms cost: in time, and in instructions, which are held against benches/instructions.toml (also by
# `make test`), and so is by how much they grow with what there is of everything; growth shows that at more sizes.
rooms:
	$(CARGO) bench --locked --bench rooms

instructions: setup
	$(INSTRUCTIONS)

instructions-budget: setup
	$(INSTRUCTIONS) -- --write

growth: setup
	$(INSTRUCTIONS) -- --growth

# Runs each target of fuzz/ for a short while. RUSTC_BOOTSTRAP lets a stable compiler accept the sanitizer's flags.
fuzz:
	@test -d fuzz || { echo "no fuzz targets yet"; exit 0; }; \
	for target in $$($(CARGO) fuzz list); do \
		RUSTC_BOOTSTRAP=1 $(CARGO) fuzz run $$target -- -max_total_time=$(FUZZ_SECONDS) || exit 1; \
	done

setup:
	@.ci/setup

bench-setup:
	@.ci/setup bench
