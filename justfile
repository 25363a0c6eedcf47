# What a developer runs; `just` lists it. CI calls .ci/run, which does what `check` and `test` do.

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
    cargo run --release -- model pull smollm2-135m qwen2.5-coder-0.5b gemma3-270m multilingual-e5-small all-minilm-l6-v2

# Fuzz a parser (needs the nightly toolchain and cargo-fuzz)
fuzz target="gguf_header":
    cargo +nightly fuzz run {{target}}

# Make the data of the `clinic` adapters and of the reader
clinic-data:
    #!/usr/bin/env bash
    set -euo pipefail
    cargo build --release
    data=models/datasets out=target/datasets/clinic
    for language in en ja; do
        target/release/shishin dataset ground $data/grounded/{samples,invented,cases,polar,unanswerable,nearmiss}.$language.jsonl \
            --guidelines index/guidelines/$language --guidelines $data/grounded/guidelines/$language \
            --passages 2 --ranked --without 0.25 --declined 0.33 --quotes --out $out/$language
        for later in ward agree; do
            target/release/shishin dataset ground $data/grounded/$later.$language.jsonl \
                --guidelines index/guidelines/$language --guidelines $data/grounded/guidelines/$language \
                --passages 2 --ranked --without 0.25 --declined 0.33 --quotes --out $out/$later-$language
        done
        target/release/shishin dataset ground $data/rounds/$language.jsonl \
            --guidelines index/guidelines/$language --guidelines $data/grounded/guidelines/$language \
            --guidelines $data/rounds/guidelines/$language \
            --passages 2 --ranked --without 0.25 --declined 0.33 --quotes --out $out/rounds-$language
        target/release/shishin dataset ground $data/bedside/{leaflets,uncovered}.$language.jsonl \
            --guidelines index/guidelines/$language --guidelines $data/grounded/guidelines/$language \
            --guidelines $data/bedside/guidelines/$language \
            --passages 2 --ranked --without 0 --variants 2 --quotes --out $out/leaflets-$language
        target/release/shishin dataset ground $data/general/{instructions,refusals,safe}.$language.jsonl \
            --guidelines index/guidelines/$language --out $out/general-$language
    done
    target/release/shishin dataset ground $data/bedside/{en,ja}.jsonl --guidelines index/guidelines --out $out/bedside

# Train the reader of an embedder
reader embedder="multilingual-e5-small": clinic-data
    target/release/shishin reader train --run models/readers/{{embedder}}.toml

# Train the `clinic` adapter for a base
adapter-clinic base="qwen2.5-coder-0.5b": clinic-data
    #!/usr/bin/env bash
    set -euo pipefail
    [ -f models/adapters/clinic/{{base}}.toml ] || { echo "there is no models/adapters/clinic/{{base}}.toml; write one, or take another base"; exit 1; }
    for run in models/adapters/clinic/{{base}}{,.second,.third,.fourth,.fifth,.sixth,.seventh}.toml; do
        if [ -f $run ]; then target/release/shishin tune --run $run; fi
    done

# Make the data of the adapters for fixed forms, and train them for a base that has their recipes
adapter-forms base="qwen2.5-coder-0.5b":
    #!/usr/bin/env bash
    set -euo pipefail
    for form in radiology-summary referral-letter; do
        recipe=models/adapters/$form/{{base}}.toml
        [ -f $recipe ] || { echo "there is no $recipe; write one, or take a base that has it: $(ls models/adapters/$form/*.toml)"; exit 1; }
    done
    cargo build --release
    for form in radiology-summary referral-letter; do
        target/release/shishin dataset ground models/datasets/$form/{en,ja}.jsonl --guidelines index/guidelines --out target/datasets/$form
        target/release/shishin tune --run models/adapters/$form/{{base}}.toml
    done
