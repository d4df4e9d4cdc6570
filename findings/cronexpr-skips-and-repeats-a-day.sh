#!/usr/bin/env bash
# A daily cronexpr schedule has a day without its time when clocks go forward, and one with two
# when they go back.
#
# Version:  cronexpr 1.7.0 with jiff 0.2.46.
# Input:    "30 2 * * * Europe/Berlin" and the days around 29 March and 25 October 2026, on which
#           Berlin's clocks change between 02:00 and 03:00.
# Expected: once on each day. The documentation gives daylight saving time as the reason why a time
#           zone must be named, and cron(8) of Debian promises it: what falls into a skipped hour
#           "will be run soon after the change", and in a repeated one "will not be re-run".
# Seen:     the search goes over the times that exist and compares them with the fields:
#               28 March 02:30+01:00, then 30 March 02:30+02:00: nothing on the 29th
#               25 October 02:30+02:00, and again 25 October 02:30+01:00
# Effect:   a nightly backup, report or charge does not run in one night of the year, and runs twice
#           in another. Nothing says so, and tests in UTC or with other dates do not show it. To run
#           once, parse the five fields in UTC and convert each time with jiff's
#           `TimeZone::to_ambiguous_timestamp(…).compatible()`.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

mkdir src
cat > Cargo.toml <<'TOML'
[package]
name = "check"
version = "0.0.0"
edition = "2021"

[dependencies]
cronexpr = "=1.7.0"
jiff = "=0.2.46"

[workspace]
TOML
cat > src/main.rs <<'RUST'
fn times(from: &str, count: usize) -> Vec<String> {
    let crontab = cronexpr::parse_crontab("30 2 * * * Europe/Berlin").unwrap();
    let times = crontab.iter_after(from).unwrap();
    times.take(count).map(|time| time.unwrap().strftime("%d %B %H:%M%:z").to_string()).collect()
}

fn main() {
    let spring = times("2026-03-27T12:00:00Z", 2);
    println!("clocks go forward on 29 March: {}", spring.join(", "));
    assert_eq!(spring, ["28 March 02:30+01:00", "30 March 02:30+02:00"]);

    let autumn = times("2026-10-24T12:00:00Z", 3);
    println!("clocks go back on 25 October: {}", autumn.join(", "));
    assert_eq!(
        autumn,
        ["25 October 02:30+02:00", "25 October 02:30+01:00", "26 October 02:30+01:00"]
    );
}
RUST
CARGO_TARGET_DIR=$folder/target cargo run --quiet
