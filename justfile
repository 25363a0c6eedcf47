# What a developer runs; `just` lists it. CI calls .ci/run, which runs `check` and `test`.

# List the commands
default:
    @just --list

# Start the server
serve *flags:
    cargo run --release -- serve {{flags}}

# Run every test
test:
    cargo test

# Formatting, lints, documentation: warnings are errors
check:
    cargo fmt --check
    cargo clippy --all-targets -- -D warnings
    RUSTDOCFLAGS="-D warnings" cargo doc --no-deps

# Licences, sources and advisories of dependencies (cargo-deny)
deny:
    cargo deny check

# Rebuild the guideline index
index:
    cargo run --release -- index build

# Fetch the models that the larger tests use
models:
    cargo run --release -- model pull smollm2-135m qwen2.5-coder-0.5b gemma3-270m

# Fuzz a parser (needs the nightly toolchain and cargo-fuzz)
fuzz target="gguf_header":
    cargo +nightly fuzz run {{target}}
