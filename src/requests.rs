//! The JSON-lines files of `glan complete` and `glan score`.
