#!/usr/bin/env bash
# The soak of `glan serve` for MINUTES (20 by default) instead of the minute that the tests give it: clients that behave,
# that leave, that send garbage, all at once. Fails on a wrong status, a panic, blocks that stay taken, or memory that
# grows; prints how often each kind of request had each outcome.
set -euo pipefail
cd "$(dirname "$0")/.."

minutes=${1:-20}
GLAN_SOAK_SECONDS=$((minutes * 60)) cargo test --release --locked --test suite soak:: -- --nocapture
