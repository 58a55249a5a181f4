//! Tests of running files of requests.
